"""A folder of photographs with a table: read, cleaned, and made into pairs and edits that a study can be trained on."""

from cirlib.benchmarks.catalogues.catalogue_layout import read_catalogue, write_catalogue
from cirlib.benchmarks.catalogues.items import Look

__all__ = ["Look", "read_catalogue", "write_catalogue"]
