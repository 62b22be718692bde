"""FashionIQ (Wu et al., CVPR 2021) and any data in its files: one pair of JSON files a category and split.

captions/cap.{category}.{split}.json        [{"candidate": id, "target": id, "captions": [text, text]}, …]
image_splits/split.{category}.{split}.json  [id, id, …]: the gallery
images/{id}.jpg                             or .png, .jpeg, .webp
"""

import re
from pathlib import Path

from pydantic import BaseModel, TypeAdapter

from .annotations import IMAGE_IDS, Captions, Text, check_triplets, read_annotations
from .base import PROTOCOLS_OF_GALLERY, Benchmark, BenchmarkError, Triplet, check_choice
from .image_files import locate

SPLITS = ("train", "val", "test")
FASHIONIQ_CATEGORIES = ("dress", "shirt", "toptee")


class _Query(BaseModel):
    candidate: Text
    target: Text
    captions: Captions


class _TestQuery(_Query):
    target: Text = ""  # FashionIQ's test targets are not public


QUERIES, TEST_QUERIES = TypeAdapter(list[_Query]), TypeAdapter(list[_TestQuery])


def categories(root: str | Path, split: str) -> list[str]:
    """The categories that have a captions file for this split, sorted by name.

    >>> categories(folder, "val")
    []
    """
    pattern = re.compile(rf"cap\.(.+)\.{re.escape(split)}\.json")
    names = (pattern.fullmatch(file.name) for file in (Path(root) / "captions").glob("cap.*.json"))
    return sorted(match[1] for match in names if match)


def load(root: str | Path, *, split: str, category: str | None, protocol: str, name: str = "fashioniq") -> Benchmark:
    """One category, or with `category=None` all of them together (galleries joined, no repeats).

    >>> load(stage.images, split="val", category="hat", protocol="original", name="custom").gallery[:2]
    ['hat-val-0', 'hat-val-1']
    """
    root = Path(root)
    check_choice(split, SPLITS, "split")
    check_choice(protocol, PROTOCOLS_OF_GALLERY, "protocol")
    triplets: list[Triplet] = []
    gallery: dict[str, None] = {}
    for wanted in _wanted(root, split, category, name):
        queries, images = _load_category(root, split, wanted, protocol)
        triplets += queries
        gallery |= dict.fromkeys(images)
    return Benchmark(name, split, triplets, list(gallery), locate(gallery, root / "images"), protocol)


def _wanted(root: Path, split: str, category: str | None, name: str) -> list[str]:
    """The categories to load; FashionIQ itself always means all three."""
    found = categories(root, split)
    expected = FASHIONIQ_CATEGORIES if name == "fashioniq" and category is None else ("*",) if not found else ()
    if absent := [c for c in expected if c not in found]:
        file = root / "captions" / f"cap.{absent[0]}.{split}.json"
        raise BenchmarkError(f"No file {file}: expected a file of captions a category (other data load as 'custom').")
    if category is None:
        return found
    check_choice(category, found, "category")
    return [category]


def _load_category(root: Path, split: str, category: str, protocol: str) -> tuple[list[Triplet], list[str]]:
    source = root / "captions" / f"cap.{category}.{split}.json"
    queries = read_annotations(source, TEST_QUERIES if split == "test" else QUERIES, "the queries of this category")
    gallery = read_annotations(
        root / "image_splits" / f"split.{category}.{split}.json", IMAGE_IDS, "the image ids of this category"
    )
    triplets = [
        Triplet(f"{category}-{split}-{i}", q.candidate, tuple(q.captions), (q.target,) if q.target else (), category)
        for i, q in enumerate(queries)
    ]
    check_triplets(triplets, gallery, source)
    if len({bool(t.targets) for t in triplets}) > 1:
        raise BenchmarkError(f"{source}: some records have a 'target' and some do not, expected all or none.")
    if protocol == "original":
        return triplets, gallery
    if not triplets[0].targets:
        raise BenchmarkError(f"{source}: 'val_split' needs targets, which this split does not have: take 'original'.")
    used = {image for t in triplets for image in (t.reference, *t.targets)}
    return triplets, [image for image in gallery if image in used]
