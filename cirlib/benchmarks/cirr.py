"""CIRR, release 2 (Liu et al., ICCV 2021), in the layout of its own repository.

captions/cap.rc2.{split}.json            [{"pairid", "reference", "target_hard", "caption", "img_set"}, …]
image_splits/split.rc2.{split}.json      {id: "./dev/dev-244-0-img0.png", …}: the gallery
images/dev/… or img_raw/dev/… or dev/…   (train/, dev/ and test1/; also flat in images/)

A query's id is its pairid, as the test server takes it. The target is `target_hard`, as all public code
scores it. `Triplet.subset` holds the five other members of the query's image set, without the reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from .base import (
    Benchmark,
    BenchmarkError,
    Record,
    Triplet,
    check_choice,
    check_root,
    check_triplets,
    check_unique,
    read_json,
    read_records,
    scan_images,
    short,
)

SPLITS = ("train", "val", "test1")
IMAGE_FOLDERS = {"train": "train", "val": "dev", "test1": "test1"}
SERVER_SPLIT = "test1"
VERSION = "rc2"


def load(root: str | Path, *, split: str) -> Benchmark:
    """One split of CIRR; `test1` has no targets.

    Raises:
        BenchmarkError: see `cirlib.benchmarks.load_benchmark`.
    """
    root = Path(root)
    check_choice(split, SPLITS, "split")
    check_root(root)
    captions = root / "captions" / f"cap.{VERSION}.{split}.json"
    records = [Record(captions, i, r) for i, r in enumerate(read_records(captions, "CIRR's queries"))]
    files = _read_files(root / "image_splits" / f"split.{VERSION}.{split}.json")
    triplets = [_triplet(record, split) for record in records]
    check_unique([t.id for t in triplets], captions, "pairids")
    check_triplets(triplets, list(files), captions)
    return Benchmark("cirr", split, triplets, list(files), _locate(root, files, split))


def _triplet(record: Record, split: str) -> Triplet:
    reference = record.text("reference")
    members = record.nested("img_set").texts("members")
    if reference not in members:
        raise BenchmarkError(
            f"{record.path}, record {record.index}: the reference {short(reference)} must be one of 'members'."
        )
    targets = () if split == SERVER_SPLIT else (record.text("target_hard"),)
    subset = tuple(member for member in members if member != reference)
    return Triplet(str(record.integer("pairid")), reference, (record.caption("caption"),), targets, None, subset)


def _read_files(path: Path) -> dict[str, str]:
    files = read_json(path, "an object from image id to image file")
    if not isinstance(files, dict):
        raise BenchmarkError(f"{path}: expected an object from image id to image file.")
    for image, file in files.items():
        if not isinstance(file, str) or not file:
            raise BenchmarkError(f"{path}: {short(image)} must be an image file's path, found {short(file)}.")
    return files


def _locate(root: Path, files: Mapping[str, str], split: str) -> dict[str, Path | str]:
    """Each id → its file, by name: the extension and folder may differ from those the split file gives."""
    folders = (root / "images", root / "img_raw", root / IMAGE_FOLDERS[split])
    there = [folder for folder in folders if folder.is_dir()]
    if not there:
        return dict.fromkeys(files, f"no folder {' or '.join(map(str, folders))}")
    found: dict[str, Path] = {}
    for folder in reversed(there):
        found.update(scan_images(folder))
    reason = f"no file under {' or '.join(f.name + '/' for f in there)} has this name"
    return {image: found.get(Path(file).stem, reason) for image, file in files.items()}
