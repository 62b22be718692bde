"""CIRCO (Baldrati et al., ICCV 2023): several targets a query, COCO 2017's unlabeled images as gallery.

annotations/{val,test}.json   [{"id", "reference_img_id", "relative_caption", "gt_img_ids"}, …]
COCO2017_unlabeled/annotations/image_info_unlabeled2017.json  (or beside val.json): the gallery
COCO2017_unlabeled/unlabeled2017/000000271520.jpg             (or unlabeled2017/, or images/)

Image ids are COCO's numbers as text without leading zeros ("271520"); a query's id is its number as text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
)

SPLITS = ("val", "test")
SERVER_SPLIT = "test"
GALLERY_SIZE = 123_403
INFO_FILE = "image_info_unlabeled2017.json"
INFO_PLACES = (Path("COCO2017_unlabeled/annotations", INFO_FILE), Path("annotations", INFO_FILE))
IMAGE_FOLDERS = (Path("COCO2017_unlabeled/unlabeled2017"), Path("unlabeled2017"), Path("images"))


def load(root: str | Path, *, split: str) -> Benchmark:
    """One split of CIRCO; `test` has no targets.

    Without COCO's info file the gallery is the images folder, sorted by id. The benchmark is not `complete`
    unless the gallery holds all 123,403 images.

    Raises:
        BenchmarkError: see `cirlib.benchmarks.load_benchmark`.
    """
    root = Path(root)
    check_choice(split, SPLITS, "split")
    check_root(root)
    annotations = root / "annotations" / f"{split}.json"
    records = read_records(annotations, "CIRCO's queries")
    triplets = [_triplet(Record(annotations, i, record), split) for i, record in enumerate(records)]
    check_unique([t.id for t in triplets], annotations, "query ids")
    info = _first_there(root, INFO_PLACES)
    folder = _first_there(root, IMAGE_FOLDERS)
    files = _scan(folder) if folder else {}
    gallery = _read_info(info) if info else _from_folder(root, files)
    check_triplets(triplets, gallery, annotations)
    reason = f"no file under {folder.name}/ has this number" if folder else f"no folder {root / IMAGE_FOLDERS[0]}"
    images: dict[str, Path | str] = {image: files.get(image, reason) for image in gallery}
    return Benchmark("circo", split, triplets, gallery, images, complete=len(gallery) == GALLERY_SIZE)


def _triplet(record: Record, split: str) -> Triplet:
    targets = () if split == SERVER_SPLIT else tuple(map(str, record.integers("gt_img_ids")))
    check_unique(targets, record.path, f"targets of record {record.index}")
    return Triplet(
        id=str(record.integer("id")),
        reference=str(record.integer("reference_img_id")),
        captions=(record.caption("relative_caption"),),
        targets=targets,
        category=None,
    )


def _first_there(root: Path, places: tuple[Path, ...]) -> Path | None:
    return next((root / place for place in places if (root / place).exists()), None)


def _scan(folder: Path) -> dict[str, Path]:
    """Image id → file, for the files whose names are numbers."""
    return {str(int(stem)): path for stem, path in scan_images(folder).items() if stem.isdecimal()}


def _read_info(path: Path) -> list[str]:
    """The image ids of COCO's info file, in its order."""
    info = read_json(path, "COCO's info file of the unlabeled images")
    images: Any = info.get("images") if isinstance(info, dict) else None
    if not isinstance(images, list):
        raise BenchmarkError(f"{path}: expected an object whose key 'images' is a list.")
    for index, image in enumerate(images):
        if not isinstance(image, dict):
            raise BenchmarkError(f"{path}, record {index}: expected an object with an 'id'.")
    ids = [str(Record(path, index, image).integer("id")) for index, image in enumerate(images)]
    check_unique(ids, path, "image ids")
    return ids


def _from_folder(root: Path, files: dict[str, Path]) -> list[str]:
    if not files:
        raise BenchmarkError(
            f"No gallery under {root}: expected COCO's info file {INFO_PLACES[0]}, or the unlabeled images "
            f"(12-digit file names) in {' or '.join(map(str, IMAGE_FOLDERS))}."
        )
    return sorted(files, key=int)
