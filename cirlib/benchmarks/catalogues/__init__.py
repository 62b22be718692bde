"""A folder of photographs with a table: read, cleaned, and made into pairs and edits that a study can be trained on."""

from cirlib.benchmarks.catalogues.catalogue_layout import read_catalogue, write_catalogue

__all__ = ["read_catalogue", "write_catalogue"]
