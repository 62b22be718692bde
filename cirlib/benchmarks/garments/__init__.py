"""The embedded benchmark: a drawn fashion catalogue in FashionIQ's layout, the same for the same seed."""

from cirlib.benchmarks.garments.attributes import Garment
from cirlib.benchmarks.garments.catalogue import Catalogue, plan_catalogue
from cirlib.benchmarks.garments.catalogue_files import draw_garments
from cirlib.benchmarks.garments.drawing import render_garment

__all__ = ["Catalogue", "Garment", "draw_garments", "plan_catalogue", "render_garment"]
