"""CIRR, release 2 (Liu et al., ICCV 2021), in the layout of its own repository.

captions/cap.rc2.{split}.json            [{"pairid", "reference", "target_hard", "caption", "img_set"}, …]
image_splits/split.rc2.{split}.json      {id: "./dev/dev-244-0-img0.png", …}: the gallery
images/dev/… or img_raw/dev/… or dev/…   (train/, dev/ and test1/; also flat in images/)

A query's id is its pairid, as the test server takes it. The target is `target_hard`, as all public code
scores it. `Triplet.subset` holds the five other members of the query's image set, without the reference.
"""

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, TypeAdapter, model_validator

from .annotations import Captions, Text, check_triplets, read_annotations
from .base import Benchmark, Triplet, check_choice
from .image_files import scan_images

SPLITS = ("train", "val", "test1")
IMAGE_FOLDERS = {"train": "train", "val": "dev", "test1": "test1"}
VERSION = "rc2"


class _ImageSet(BaseModel):
    members: Captions


class _TestQuery(BaseModel):
    pairid: int
    reference: Text
    caption: str
    img_set: _ImageSet

    @model_validator(mode="after")
    def _reference_is_a_member(self):
        if self.reference not in self.img_set.members:
            raise ValueError("the reference must be one of 'members'")
        return self

    def triplet(self, *targets: str) -> Triplet:
        subset = tuple(member for member in self.img_set.members if member != self.reference)
        return Triplet(str(self.pairid), self.reference, (self.caption,), targets, None, subset)


class _Query(_TestQuery):
    target_hard: Text


QUERIES, TEST_QUERIES = TypeAdapter(list[_Query]), TypeAdapter(list[_TestQuery])
FILES = TypeAdapter(dict[str, Text])


def load(root: str | Path, *, split: str) -> Benchmark:
    """One split of CIRR; `test1` has no targets.

    >>> load(folder, split="dev")
    Traceback (most recent call last):
    cirlib.benchmarks.base.BenchmarkError: Unknown split 'dev': allowed are train, val, test1.
    """
    root = Path(root)
    check_choice(split, SPLITS, "split")
    source = root / "captions" / f"cap.{VERSION}.{split}.json"
    queries = read_annotations(source, TEST_QUERIES if split == "test1" else QUERIES, "CIRR's queries")
    files = read_annotations(
        root / "image_splits" / f"split.{VERSION}.{split}.json", FILES, "an object from image id to image file"
    )
    triplets = [q.triplet() if split == "test1" else q.triplet(q.target_hard) for q in queries]
    check_triplets(triplets, list(files), source)
    return Benchmark("cirr", split, triplets, list(files), _locate(root, files, split))


def _locate(root: Path, files: Mapping[str, str], split: str) -> dict[str, Path | str]:
    """Each id → its file, by name: the extension and folder may differ from those the split file gives."""
    folders = (root / "images", root / "img_raw", root / IMAGE_FOLDERS[split])
    there = [folder for folder in folders if folder.is_dir()]
    if not there:
        return dict.fromkeys(files, f"no folder {' or '.join(map(str, folders))}")
    found: dict[str, Path] = {}
    for folder in reversed(there):
        found |= scan_images(folder)
    reason = f"no file under {' or '.join(f.name + '/' for f in there)} has this name"
    return {image: found.get(Path(file).stem, reason) for image, file in files.items()}
