"""FashionIQ (Wu et al., CVPR 2021) and any data in its files: one pair of JSON files a category and split.

captions/cap.{category}.{split}.json        [{"candidate": id, "target": id, "captions": [text, text]}, …]
image_splits/split.{category}.{split}.json  [id, id, …]: the gallery
images/{id}.jpg                             or .png, .jpeg, .webp
"""

from __future__ import annotations

import re
from pathlib import Path

from .base import (
    PROTOCOLS_OF_GALLERY,
    Benchmark,
    BenchmarkError,
    Record,
    Triplet,
    check_choice,
    check_root,
    check_triplets,
    locate,
    read_ids,
    read_records,
)

SPLITS = ("train", "val", "test")
FASHIONIQ_CATEGORIES = ("dress", "shirt", "toptee")


def categories(root: str | Path, split: str) -> list[str]:
    """The categories that have a captions file for this split, sorted by name."""
    folder = Path(root) / "captions"
    pattern = re.compile(rf"cap\.(.+)\.{re.escape(split)}\.json")
    names = (pattern.fullmatch(file.name) for file in folder.glob("cap.*.json"))
    return sorted(match[1] for match in names if match)


def load(root: str | Path, *, split: str, category: str | None, protocol: str, name: str = "fashioniq") -> Benchmark:
    """One category, or with `category=None` all of them together (galleries joined, no repeats).

    Raises:
        BenchmarkError: see `cirlib.benchmarks.load_benchmark`.
    """
    root = Path(root)
    check_choice(split, SPLITS, "split")
    check_choice(protocol, PROTOCOLS_OF_GALLERY, "protocol")
    check_root(root)
    triplets: list[Triplet] = []
    gallery: dict[str, None] = {}
    for wanted in _wanted(root, split, category, name):
        queries, images = _load_category(root, split, wanted, protocol)
        triplets += queries
        gallery.update(dict.fromkeys(images))
    return Benchmark(name, split, triplets, list(gallery), locate(gallery, root / "images"), protocol)


def _wanted(root: Path, split: str, category: str | None, name: str) -> list[str]:
    """The categories to load; FashionIQ itself always means all three."""
    found = categories(root, split)
    if not found:
        raise BenchmarkError(
            f"No file {root / 'captions'}/cap.*.{split}.json: expected one file of captions a category."
        )
    if category is not None:
        check_choice(category, found, "category")
        return [category]
    absent = [c for c in FASHIONIQ_CATEGORIES if c not in found] if name == "fashioniq" else []
    if absent:
        raise BenchmarkError(
            f"No file {root / 'captions'}/cap.{absent[0]}.{split}.json: FashionIQ has the categories "
            f"{', '.join(FASHIONIQ_CATEGORIES)} (load other data as 'custom', or name one category)."
        )
    return found


def _load_category(root: Path, split: str, category: str, protocol: str) -> tuple[list[Triplet], list[str]]:
    captions = root / "captions" / f"cap.{category}.{split}.json"
    splits = root / "image_splits" / f"split.{category}.{split}.json"
    records = read_records(captions, "the queries of this category and split")
    gallery = read_ids(splits, "the image ids of this category and split")
    triplets = [
        _triplet(Record(captions, index, data), f"{category}-{split}-{index}", category, split)
        for index, data in enumerate(records)
    ]
    check_triplets(triplets, gallery, captions)
    if len({bool(t.targets) for t in triplets}) > 1:
        raise BenchmarkError(f"{captions}: some records have a 'target' and some do not, expected all or none.")
    if protocol == "val_split":
        gallery = _val_split(triplets, gallery, captions)
    return triplets, gallery


def _triplet(record: Record, query: str, category: str, split: str) -> Triplet:
    has_target = split != "test" or "target" in record.data  # FashionIQ's test targets are not public
    targets = (record.text("target"),) if has_target else ()
    return Triplet(query, record.text("candidate"), record.texts("captions"), targets, category)


def _val_split(triplets: list[Triplet], gallery: list[str], source: Path) -> list[str]:
    """The images that are a reference or a target of some query, in the order of the split file."""
    if not all(t.targets for t in triplets):
        raise BenchmarkError(
            f"{source}: protocol 'val_split' needs the targets, which this split does not have; "
            "allowed here is 'original'."
        )
    used = {t.reference for t in triplets} | {i for t in triplets for i in t.targets}
    return [image for image in gallery if image in used]
