"""CIRCO (Baldrati et al., ICCV 2023): several targets a query, COCO 2017's unlabeled images as gallery.

annotations/{val,test}.json   [{"id", "reference_img_id", "relative_caption", "gt_img_ids"}, …]
COCO2017_unlabeled/annotations/image_info_unlabeled2017.json  (or beside val.json): the gallery
COCO2017_unlabeled/unlabeled2017/000000271520.jpg             (or unlabeled2017/, or images/)

Image ids are COCO's numbers as text without leading zeros ("271520"); a query's id is its number as text.
"""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field, TypeAdapter

from .annotations import check_triplets, read_annotations, unique
from .base import Benchmark, BenchmarkError, Triplet, check_choice
from .image_files import scan_images

SPLITS = ("val", "test")
GALLERY_SIZE = 123_403
INFO_FILE = "image_info_unlabeled2017.json"
INFO_PLACES = (Path("COCO2017_unlabeled/annotations", INFO_FILE), Path("annotations", INFO_FILE))
IMAGE_FOLDERS = (Path("COCO2017_unlabeled/unlabeled2017"), Path("unlabeled2017"), Path("images"))


class _TestQuery(BaseModel):
    id: int
    reference_img_id: int
    relative_caption: str

    def triplet(self, *targets: int) -> Triplet:
        captions = (self.relative_caption,)
        return Triplet(str(self.id), str(self.reference_img_id), captions, tuple(map(str, targets)), None)


class _Query(_TestQuery):
    gt_img_ids: Annotated[list[int], Field(min_length=1)]


class _Image(BaseModel, frozen=True):
    id: int


class _Info(BaseModel):
    images: Annotated[list[_Image], AfterValidator(unique)]


QUERIES, TEST_QUERIES, INFO = TypeAdapter(list[_Query]), TypeAdapter(list[_TestQuery]), TypeAdapter(_Info)


def load(root: str | Path, *, split: str) -> Benchmark:
    """One split of CIRCO; `test` has no targets.

    Without COCO's info file the gallery is the images folder, sorted by id. The benchmark is not `complete`
    unless the gallery holds all 123,403 images.

    >>> load(folder, split="train")
    Traceback (most recent call last):
    cirlib.benchmarks.base.BenchmarkError: Unknown split 'train': allowed are val, test.
    """
    root = Path(root)
    check_choice(split, SPLITS, "split")
    source = root / "annotations" / f"{split}.json"
    queries = read_annotations(source, TEST_QUERIES if split == "test" else QUERIES, "CIRCO's queries")
    triplets = [q.triplet() if split == "test" else q.triplet(*q.gt_img_ids) for q in queries]
    folder = _first_there(root, IMAGE_FOLDERS)
    files = {str(int(stem)): path for stem, path in scan_images(folder).items() if stem.isdecimal()} if folder else {}
    gallery = _gallery(root, files)
    check_triplets(triplets, gallery, source)
    reason = f"no file under {folder.name}/ has this number" if folder else f"no folder {root / IMAGE_FOLDERS[0]}"
    images: dict[str, Path | str] = {image: files.get(image, reason) for image in gallery}
    return Benchmark("circo", split, triplets, gallery, images, complete=len(gallery) == GALLERY_SIZE)


def _first_there(root: Path, places: tuple[Path, ...]) -> Path | None:
    return next((root / place for place in places if (root / place).exists()), None)


def _gallery(root: Path, files: dict[str, Path]) -> list[str]:
    """The image ids of COCO's info file in its order; without one, those of the folder."""
    if info := _first_there(root, INFO_PLACES):
        return [str(image.id) for image in read_annotations(info, INFO, "COCO's info file").images]
    if not files:
        raise BenchmarkError(
            f"No gallery under {root}: expected COCO's info file {INFO_PLACES[0]}, or the unlabeled images "
            f"(12-digit file names) in {' or '.join(map(str, IMAGE_FOLDERS))}."
        )
    return sorted(files, key=int)
