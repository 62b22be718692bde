"""What every loader gives: queries, a gallery and its image files. And the check of a name against those allowed."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from cirlib.study.errors import StudyError

MADE = "made_edits"  # the category of a reported split whose edits are made, not written by people
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


@dataclass(frozen=True, repr=False)
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

    def __repr__(self) -> str:
        sizes = f"{len(self.triplets):,} queries, {len(self.gallery):,} gallery images, {len(self.missing):,} missing"
        named = ", ".join([self.name, self.split, *self.categories])
        return f"<Benchmark {named}: {sizes}; {self.protocol.replace('_', ' ')} gallery>"

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

    @cached_property
    def lost_queries(self) -> set[str]:
        """The ids of queries that cannot be scored: the reference is missing, or every target is."""
        gone = self.missing.keys()
        return {t.id for t in self.triplets if t.reference in gone or (t.targets and gone >= set(t.targets))}

    def path(self, image: str) -> Path:
        """The file of an image; `BenchmarkError` where the id is unknown or the image is missing."""
        found = self.images.get(image, "it is not in the gallery")
        if isinstance(found, str):
            raise BenchmarkError(f"{self.name} {self.split}: image {image!r} is missing: {found}.")
        return found

    def mark_unusable(self, reasons: Mapping[str, str]) -> "Benchmark":
        """The same with more images missing: image id → the reason. Ids of no gallery image are passed over."""
        return replace(self, images=self.images | {i: r for i, r in reasons.items() if i in self.images})

    def drop_missing(self, allow: bool = False) -> "Benchmark":
        """What is there: without missing gallery images and the queries that they cost, and then not `complete`.

        A query keeps the targets and subset members that are left. Raises `BenchmarkError`, which counts what is
        missing, unless that is allowed (``data.allow_missing``) and leaves something to score.
        """
        gone, lost = self.missing, self.lost_queries
        if self.complete and not gone:
            return self
        if not allow or len(lost) == len(self.triplets):
            said = f"the gallery of {len(self.gallery)} images is known to be partial."
            if gone:
                said = (
                    f"{len(gone)} of {len(self.gallery)} gallery images are missing, which costs {len(lost)} of "
                    f"{len(self.triplets)} queries (the first is {next(iter(gone))!r}: {next(iter(gone.values()))})."
                )
            go_on = (
                "Put them there (`dvc checkout` brings back what a study made), or set data.allow_missing to true to "
                "go on so; every number is then marked incomplete."
            )
            raise BenchmarkError(f"{self.name} {self.split}: {said} {'Nothing is left to score.' if allow else go_on}")
        triplets = [
            replace(t, **{key: tuple(i for i in getattr(t, key) if i not in gone) for key in ("targets", "subset")})
            for t in self.triplets
            if t.id not in lost
        ]
        images = {image: self.images[image] for image in self.gallery if image not in gone}
        return replace(self, triplets=triplets, gallery=list(images), images=images, complete=False)


def check_choice(value: str, allowed: Collection[str], what: str) -> None:
    """Raises `BenchmarkError`, which lists the allowed values, unless `value` is one of them.

    >>> check_choice("val", ("train", "val"), "split")
    """
    if value not in allowed:
        raise BenchmarkError(f"Unknown {what} {value!r}: allowed are {', '.join(allowed)}.")
