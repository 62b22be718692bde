"""Where triplets and galleries come from: one file a benchmark, all with the same result."""

from pathlib import Path

from . import circo, cirr, fashioniq
from .base import PROTOCOLS_OF_GALLERY, Benchmark, BenchmarkError, Triplet, check_choice
from .caption_joining import join_captions, query_texts, sample_join
from .protocols import PROTOCOLS

__all__ = [
    "NAMES", "PROTOCOLS", "SPLITS", "Benchmark", "BenchmarkError", "Triplet", "categories", "join_captions",
    "load_benchmark", "query_texts", "sample_join",
]  # fmt: skip

SPLITS = {
    "fashioniq": fashioniq.SPLITS,
    "cirr": cirr.SPLITS,
    "circo": circo.SPLITS,
    "custom": (*fashioniq.SPLITS, "dev"),
}
NAMES = tuple(SPLITS)
_BY_CATEGORY = ("fashioniq", "custom")


def load_benchmark(
    name: str, root: str | Path, *, split: str = "val", category: str | None = None, protocol: str = "original"
) -> Benchmark:
    """The queries, gallery and image files of one split.

    Args:
        name: "fashioniq", "cirr", "circo", or "custom" for any data in FashionIQ's files.
        root: the folder with `captions/`, `image_splits/` and `images/` (CIRCO: `annotations/`).
        split: "train", "val" or "test", of custom data "dev" too; CIRR calls its test split "test1", CIRCO has no
            "train".
        category: one of `categories(...)`; None is all of them together, their galleries joined.
        protocol: "original", the gallery of the split file; or "val_split", only the queries' references and
            targets (FashionIQ and custom data). Load a train split so: no other image of it is ever opened.

    Missing *images* are no error here, see `Benchmark.missing`. Raises `BenchmarkError` for an unknown name, split or
    protocol, and where an annotation file is absent or wrong.

    >>> len(load_benchmark("custom", stage.images, split="val", category="hat").triplets)
    3
    """
    check_choice(name, NAMES, "benchmark")
    check_choice(split, SPLITS[name], "split")
    check_choice(protocol, PROTOCOLS_OF_GALLERY if name in _BY_CATEGORY else ("original",), f"protocol of {name}")
    if name in _BY_CATEGORY:
        return fashioniq.load(Path(root), name, split, category, protocol)
    if category is not None:
        raise BenchmarkError(f"Unknown category {category!r}: {name} has no categories, allowed is None.")
    return (cirr if name == "cirr" else circo).load(Path(root), split)


def categories(name: str, root: str | Path, split: str = "val") -> list[str]:
    """The categories that `load_benchmark` can load on their own; empty for CIRR and CIRCO.

    >>> categories("custom", stage.images)
    ['hat', 'shoe']
    """
    check_choice(name, NAMES, "benchmark")
    check_choice(split, SPLITS[name], "split")
    return fashioniq.categories(Path(root), split) if name in _BY_CATEGORY else []
