"""FashionIQ (Wu et al., CVPR 2021) and any data in its files: one pair of JSON files a category and split.

captions/cap.{category}.{split}.json        [{"candidate": id, "target": id, "captions": [text, text]}, …]
image_splits/split.{category}.{split}.json  [id, id, …]: the gallery
images/{id}.jpg                             or as image_files has it
"""

from pathlib import Path

from pydantic import BaseModel

from .annotations import IMAGE_IDS, Text, Texts, check_triplets, read_annotations
from .base import Benchmark, BenchmarkError, Triplet
from .image_files import locate

SPLITS = ("train", "val", "test")
FASHIONIQ_CATEGORIES = ("dress", "shirt", "toptee")


class _Query(BaseModel):
    candidate: Text
    target: Text
    captions: Texts


class _TestQuery(_Query):
    target: Text = ""  # FashionIQ's test targets are not public


def categories(root: Path, split: str) -> list[str]:
    """The categories that have a captions file for this split, sorted by name.

    >>> categories(folder, "val")
    []
    """
    files = (root / "captions").glob(f"cap.*.{split}.json")
    return sorted(file.name.removeprefix("cap.").removesuffix(f".{split}.json") for file in files)


def load(root: Path, name: str, split: str, category: str | None, protocol: str) -> Benchmark:
    """One category, or with None all of them together (galleries joined, no repeats); FashionIQ always has three.

    >>> load(stage.images, "custom", "val", "hat", "original").gallery[:2]
    ['hat-val-0', 'hat-val-1']
    """
    wanted = FASHIONIQ_CATEGORIES if name == "fashioniq" else categories(root, split) or ["*"]
    parts = [_load_category(root, split, one, protocol) for one in ([category] if category else wanted)]
    gallery = {image: image for _, images in parts for image in images}
    triplets = [triplet for queries, _ in parts for triplet in queries]
    return Benchmark(name, split, triplets, list(gallery), locate(gallery, root / "images"), protocol)


def _load_category(root: Path, split: str, category: str, protocol: str) -> tuple[list[Triplet], list[str]]:
    source, split_file = (root / f"{kind}.{category}.{split}.json" for kind in ("captions/cap", "image_splits/split"))
    expected = f"the queries of a category (here are {', '.join(categories(root, split)) or 'none'})"
    queries = read_annotations(source, list[_TestQuery] if split == "test" else list[_Query], expected)
    gallery = read_annotations(split_file, IMAGE_IDS, "the image ids of this category")
    triplets = [
        Triplet(f"{category}-{split}-{i}", q.candidate, tuple(q.captions), (q.target,) if q.target else (), category)
        for i, q in enumerate(queries)
    ]
    check_triplets(triplets, gallery, source)
    if protocol == "original":
        return triplets, gallery
    if not all(t.targets for t in triplets):
        raise BenchmarkError(f"{source}: 'val_split' needs targets, which this split does not have: take 'original'.")
    used = {image for t in triplets for image in (t.reference, *t.targets)}
    return triplets, [image for image in gallery if image in used]
