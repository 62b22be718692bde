"""CIRCO (Baldrati et al., ICCV 2023): several targets a query, COCO 2017's unlabeled images as gallery.

annotations/{val,test}.json   [{"id", "reference_img_id", "relative_caption", "gt_img_ids"}, …]
COCO2017_unlabeled/annotations/image_info_unlabeled2017.json  (or beside val.json): the gallery
COCO2017_unlabeled/unlabeled2017/000000271520.jpg             (or unlabeled2017/, or images/)

Image ids are COCO's numbers as text without leading zeros ("271520"); a query's id is its number as text.
"""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field

from cirlib.study.pictures import EXTENSIONS

from .annotations import check_triplets, read_annotations
from .base import Benchmark, BenchmarkError, Triplet
from .image_files import locate, walk

SPLITS = ("val", "test")
GALLERY_SIZE = 123_403
INFO_FOLDERS = ("COCO2017_unlabeled/annotations", "annotations")
INFO_FILE = "image_info_unlabeled2017.json"
IMAGE_FOLDERS = ("COCO2017_unlabeled/unlabeled2017", "unlabeled2017", "images")


class _TestQuery(BaseModel):
    id: int
    reference_img_id: int
    relative_caption: str
    gt_img_ids: list[int] = []  # test targets are not public


class _Query(_TestQuery):
    gt_img_ids: Annotated[list[int], Field(min_length=1)]


class _Image(BaseModel):
    id: int


class _Info(BaseModel):
    images: list[_Image]


def load(root: Path, split: str) -> Benchmark:
    """One split of CIRCO; `test` has no targets.

    Without COCO's info file the gallery is the images folder, sorted by id. The benchmark is not `complete`
    unless the gallery holds all 123,403 images.

    >>> load(Path("nowhere"), "val")
    Traceback (most recent call last):
    cirlib.benchmarks.base.BenchmarkError: No file nowhere/annotations/val.json: expected CIRCO's queries.
    """
    source = root / "annotations" / f"{split}.json"
    queries = read_annotations(source, list[_TestQuery] if split == "test" else list[_Query], "CIRCO's queries")
    triplets = [
        Triplet(str(q.id), str(q.reference_img_id), (q.relative_caption,), tuple(map(str, q.gt_img_ids)), None)
        for q in queries
    ]
    folders = [root / name for name in IMAGE_FOLDERS]
    if info := next((f for name in INFO_FOLDERS if (f := root / name / INFO_FILE).exists()), None):
        stems = [f"{image.id:012d}" for image in read_annotations(info, _Info, "COCO's info file").images]
    else:
        found = {
            Path(path).stem for folder in folders for path in walk(str(folder), []) if path.lower().endswith(EXTENSIONS)
        }
        stems = sorted((stem for stem in found if stem.isdecimal()), key=int)
    if not stems:
        raise BenchmarkError(
            f"No gallery under {root}: expected COCO's info file {INFO_FOLDERS[0]}/{INFO_FILE}, or images of "
            f"COCO (12-digit file names) in {' or '.join(IMAGE_FOLDERS)}."
        )
    gallery = {str(int(stem)): stem for stem in stems}
    check_triplets(triplets, list(gallery), source)
    images = locate(gallery, *folders)
    return Benchmark("circo", split, triplets, list(gallery), images, complete=len(gallery) == GALLERY_SIZE)
