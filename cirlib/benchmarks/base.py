"""What every loader gives: queries, a gallery and its image files. And the check of a name against those allowed."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cirlib.study.errors import StudyError

PROTOCOLS_OF_GALLERY = ("original", "val_split")


class BenchmarkError(StudyError, ValueError):
    """A benchmark's files, or what was asked of them, are not as they must be. Says what and where."""


@dataclass(frozen=True, slots=True)
class Triplet:
    """One query of composed image retrieval.

    `targets` is empty where the answers are not public (test splits); the first is the hard target where there are
    several. `subset` is CIRR's: the candidates of its subset metric in file order, without the reference.
    """

    id: str
    reference: str
    captions: tuple[str, ...]
    targets: tuple[str, ...]
    category: str | None
    subset: tuple[str, ...] = ()


@dataclass(frozen=True)
class Benchmark:
    """The queries of one split and the gallery they search.

    `gallery`: image ids in file order, without repeats. `images`: gallery id → its file, or the reason why there is
    none. `complete`: False once something was dropped or the gallery is known to be partial; a number measured on it
    must be marked so.
    """

    name: str
    split: str
    triplets: list[Triplet]
    gallery: list[str]
    images: dict[str, Path | str]
    protocol: str = "original"
    complete: bool = True

    @cached_property
    def missing(self) -> dict[str, str]:
        """Gallery ids without a usable file, in gallery order → the reason."""
        return {i: reason for i in self.gallery if isinstance(reason := self.images[i], str)}

    @cached_property
    def gallery_index(self) -> dict[str, int]:
        """Image id → its row in the gallery."""
        return {image: row for row, image in enumerate(self.gallery)}

    @cached_property
    def categories(self) -> list[str]:
        """The categories of the queries, in order of appearance; empty where there are none."""
        return [c for c in dict.fromkeys(t.category for t in self.triplets) if c is not None]

    @cached_property
    def query_images(self) -> set[str]:
        """The images that are a reference or a target."""
        return {image for t in self.triplets for image in (t.reference, *t.targets)}

    def path(self, image: str) -> Path:
        """The file of an image; `BenchmarkError` where the id is unknown or the image is missing."""
        if image not in self.images:
            raise BenchmarkError(f"{self.name} {self.split}: no image has the id {image!r}.")
        found = self.images[image]
        if isinstance(found, str):
            raise BenchmarkError(f"{self.name} {self.split}: image {image!r} is missing: {found}.")
        return found


def check_choice(value: str, allowed: Iterable[str], what: str) -> None:
    """Raises `BenchmarkError`, which lists the allowed values, unless `value` is one of them.

    >>> check_choice("val", ("train", "val"), "split")
    """
    names = list(allowed)
    if value not in names:
        raise BenchmarkError(f"Unknown {what} {value!r}: allowed are {', '.join(names) or 'none here'}.")
