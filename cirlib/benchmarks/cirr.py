"""CIRR, release 2 (Liu et al., ICCV 2021), in the layout of its own repository.

captions/cap.rc2.{split}.json            [{"pairid", "reference", "target_hard", "caption", "img_set"}, …]
image_splits/split.rc2.{split}.json      {id: "./dev/dev-244-0-img0.png", …}: the gallery
images/dev/… or img_raw/dev/… or dev/…   (train/, dev/ and test1/; also flat in images/)

A query's id is its pairid, as the test server takes it. The target is `target_hard`, as all public code
scores it. `Triplet.subset` holds the five other members of the query's image set, without the reference.
"""

from pathlib import Path

from pydantic import BaseModel

from .annotations import Text, Texts, check_triplets, read_annotations
from .base import Benchmark, Triplet
from .image_files import locate

SPLITS = ("train", "val", "test1")
VERSION = "rc2"


class _ImageSet(BaseModel):
    members: Texts


class _TestQuery(BaseModel):
    pairid: int
    reference: Text
    caption: str
    img_set: _ImageSet
    target_hard: Text = ""  # test targets are not public


class _Query(_TestQuery):
    target_hard: Text


def load(root: Path, split: str) -> Benchmark:
    """One split of CIRR; `test1` has no targets.

    >>> load(Path("nowhere"), "val")
    Traceback (most recent call last):
    cirlib.benchmarks.base.BenchmarkError: No file nowhere/captions/cap.rc2.val.json: expected CIRR's queries.
    """
    source = root / "captions" / f"cap.{VERSION}.{split}.json"
    queries = read_annotations(source, list[_TestQuery] if split == "test1" else list[_Query], "CIRR's queries")
    split_file = root / "image_splits" / f"split.{VERSION}.{split}.json"
    files = read_annotations(split_file, dict[str, Text], "an object from image id to image file")
    triplets = [
        Triplet(
            str(query.pairid),
            query.reference,
            (query.caption,),
            (query.target_hard,) if query.target_hard else (),
            category=None,
            subset=tuple(member for member in query.img_set.members if member != query.reference),
        )
        for query in queries
    ]
    check_triplets(triplets, list(files), source)
    # By name alone: the extension and folder may differ from those the split file gives.
    folders = [root / name for name in ("images", "img_raw", "dev" if split == "val" else split)]
    images = locate({image: Path(file).stem for image, file in files.items()}, *folders)
    return Benchmark("cirr", split, triplets, list(files), images)
