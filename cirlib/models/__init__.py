"""Encoders, composers and the features they make: what turns pictures and edits into embeddings."""

from cirlib.models.transforms import image_transform

__all__ = ["image_transform"]
