"""The published size of each benchmark, counted from its annotation files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .circo import GALLERY_SIZE


@dataclass(frozen=True, slots=True)
class Counts:
    """How many queries and gallery images a split has; None where it is not defined."""

    queries: int
    gallery: int
    val_split_gallery: int | None = None


Expected = Mapping[tuple[str, str | None], Counts]  # (split, category) → counts

EXPECTED: dict[str, Expected] = {
    "fashioniq": {
        ("train", "dress"): Counts(5_985, 11_452, 7_757),
        ("train", "shirt"): Counts(5_988, 19_036, 8_988),
        ("train", "toptee"): Counts(6_027, 16_121, 8_695),
        ("val", "dress"): Counts(2_017, 3_817, 2_628),
        ("val", "shirt"): Counts(2_038, 6_346, 3_089),
        ("val", "toptee"): Counts(1_961, 5_373, 2_902),
        ("test", "dress"): Counts(2_024, 3_818),
        ("test", "shirt"): Counts(2_038, 6_346),
        ("test", "toptee"): Counts(2_056, 5_374),
    },
    "cirr": {
        ("train", None): Counts(28_225, 16_939),
        ("val", None): Counts(4_181, 2_297),
        ("test1", None): Counts(4_148, 2_315),
    },
    "circo": {
        ("val", None): Counts(220, GALLERY_SIZE),
        ("test", None): Counts(800, GALLERY_SIZE),
    },
}
