"""What every benchmark loader shares: the data types, reading JSON with good errors, finding images."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cirlib.study.errors import StudyError

EXTENSIONS = (".jpg", ".png", ".jpeg", ".webp")
LONGEST_ID = 200  # bytes; file systems allow 255, extension included
PROTOCOLS_OF_GALLERY = ("original", "val_split")


class BenchmarkError(StudyError, ValueError):
    """A benchmark's files, or what was asked of them, are not as they must be. Says what and where."""


@dataclass(frozen=True, slots=True)
class Triplet:
    """One query of composed image retrieval.

    `targets` is empty where the answers are not public (test splits); its first entry is the hard
    target where a benchmark has several. `subset` is CIRR's: the candidates of the subset metric
    in the order of the annotation file, *without* the reference; empty elsewhere.
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

    `gallery` holds image ids in the order of the split file, without repeats. `images` maps every
    gallery id to its file, or to a sentence saying why there is none. `complete` is False once
    something was dropped (`drop_missing`) or the gallery is known to be partial: a number measured
    on it must be marked as such.
    """

    name: str
    split: str
    triplets: list[Triplet]
    gallery: list[str]
    images: dict[str, Path | str]
    protocol: str = "original"
    complete: bool = True
    dropped_queries: int = 0
    dropped_images: int = 0

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

    def path(self, image: str) -> Path:
        """The file of an image.

        Raises:
            BenchmarkError: the id is unknown, or the image is missing.
        """
        if image not in self.images:
            raise BenchmarkError(f"{self.name} {self.split}: no image has the id {image!r}.")
        found = self.images[image]
        if isinstance(found, str):
            raise BenchmarkError(f"{self.name} {self.split}: image {image!r} is missing: {found}.")
        return found


# ------------------------------------------------------------------ arguments and files
def check_choice(value: str, allowed: Iterable[str], what: str) -> None:
    """Refuses a value that is not one of `allowed`, naming those."""
    names = list(allowed)
    if value not in names:
        raise BenchmarkError(f"Unknown {what} {value!r}: allowed are {', '.join(names) or 'none here'}.")


def check_root(root: Path) -> None:
    """Refuses a root folder that does not exist."""
    if not root.is_dir():
        raise BenchmarkError(f"No folder {root}: expected the benchmark's root, with its annotations and images.")


def read_json(path: Path, expected: str) -> Any:
    """The content of a JSON file; `expected` says what it should be, for the error when it is not there.

    Raises:
        BenchmarkError: the file is absent, unreadable or not JSON (names the line).
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BenchmarkError(f"No file {path}: expected {expected}.") from None
    except json.JSONDecodeError as error:
        raise BenchmarkError(f"{path}, line {error.lineno}: not valid JSON ({error.msg}).") from None
    except RecursionError:
        raise BenchmarkError(f"{path}: nested too deep, expected {expected}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BenchmarkError(f"{path}: cannot be read as UTF-8 text ({error}).") from None
    except ValueError:  # of Python, which reads no longer number
        raise BenchmarkError(f"{path}: holds a number of thousands of digits, expected {expected}.") from None


def read_records(path: Path, expected: str) -> list[dict[str, Any]]:
    """A JSON file that holds a list of objects."""
    records = read_json(path, expected)
    if not isinstance(records, list):
        raise BenchmarkError(f"{path}: expected a list of objects, found {_kind(records)}.")
    for index, record in enumerate(records):
        if not isinstance(record, dict):
            raise BenchmarkError(f"{path}, record {index}: expected an object, found {_kind(record)}.")
    return records


def read_ids(path: Path, expected: str) -> list[str]:
    """A JSON file that holds a list of image ids, each once."""
    ids = read_json(path, expected)
    if not isinstance(ids, list):
        raise BenchmarkError(f"{path}: expected a list of image ids, found {_kind(ids)}.")
    for index, image in enumerate(ids):
        if not isinstance(image, str) or not image:
            found = short(image)
            raise BenchmarkError(f"{path}, record {index}: expected an image id (non-empty text), found {found}.")
        if not _is_file_name(image):
            raise BenchmarkError(
                f"{path}, record {index}: image id {short(image)} is no file name: slashes, NUL and halves of "
                f"characters are not allowed, nor more than {LONGEST_ID} bytes."
            )
    check_unique(ids, path, "image ids")
    return ids


def _is_file_name(image: str) -> bool:
    if image in (".", "..") or any(character in image for character in "/\\\0"):
        return False
    try:
        return len(image.encode()) <= LONGEST_ID
    except UnicodeEncodeError:  # half of a surrogate pair
        return False


# ------------------------------------------------------------------ records
@dataclass(frozen=True, slots=True)
class Record:
    """One object of an annotation file, read key by key with errors that name file, index and key."""

    path: Path
    index: int
    data: dict[str, Any]

    def text(self, key: str) -> str:
        """A non-empty text."""
        return str(self._get(key, lambda v: isinstance(v, str) and v != "", "a non-empty text"))

    def caption(self, key: str) -> str:
        """A text that may be empty: real annotations have empty captions."""
        return str(self._get(key, lambda v: isinstance(v, str), "a text"))

    def integer(self, key: str) -> int:
        """A whole number."""
        return int(self._get(key, _is_integer, "a whole number"))

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of one or more texts, any of which may be empty."""
        return tuple(self._get(key, _list_of(lambda v: isinstance(v, str)), "a list of one or more texts"))

    def integers(self, key: str) -> tuple[int, ...]:
        """A list of one or more whole numbers."""
        return tuple(self._get(key, _list_of(_is_integer), "a list of one or more whole numbers"))

    def nested(self, key: str) -> Record:
        """An object inside this one."""
        inner = self._get(key, lambda v: isinstance(v, dict), "an object")
        return Record(self.path, self.index, inner)

    def _get(self, key: str, accepts: Callable[[Any], bool], expected: str) -> Any:
        where = f"{self.path}, record {self.index}"
        if key not in self.data:
            raise BenchmarkError(f"{where}: no key {key!r}, expected {expected}.")
        if not accepts(self.data[key]):
            raise BenchmarkError(f"{where}: {key!r} must be {expected}, found {short(self.data[key])}.")
        return self.data[key]


def check_unique(ids: Sequence[Any], path: Path, what: str) -> None:
    """Refuses ids that appear more than once; gives the first and how many there are."""
    repeated = [i for i, n in Counter(ids).items() if n > 1]
    if repeated:
        first = short(repeated[0])
        raise BenchmarkError(f"{path}: {len(repeated)} {what} appear more than once, the first is {first}.")


def check_triplets(triplets: Sequence[Triplet], gallery: Sequence[str], source: Path) -> None:
    """Every image that a query names is in the gallery, and no query has its reference as a target.

    Raises:
        BenchmarkError: with the first offender and the number of offenders; also on an empty gallery.
    """
    if not triplets:
        raise BenchmarkError(f"{source}: holds no query, expected at least one.")
    if not gallery:
        raise BenchmarkError(f"{source}: the gallery is empty, expected at least one image id.")
    known = set(gallery)
    for role in ("reference", "target", "subset member"):
        outside = [(t.id, i) for t in triplets for i in _named(t, role) if i not in known]
        if outside:
            query, image = outside[0]
            raise BenchmarkError(
                f"{source}: {len(outside)} {role}s are not in the split's gallery of {len(gallery)} images, "
                f"the first is {short(image)} of query {query!r}."
            )
    same = [t for t in triplets if t.reference in t.targets]
    if same:
        raise BenchmarkError(
            f"{source}: {len(same)} queries have their own reference as a target, "
            f"the first is {same[0].id!r} ({short(same[0].reference)})."
        )


def _named(triplet: Triplet, role: str) -> tuple[str, ...]:
    return {"reference": (triplet.reference,), "target": triplet.targets}.get(role, triplet.subset)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _list_of(accepts: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and bool(value) and all(map(accepts, value))


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a text", type(None): "null"}
    return names.get(type(value), short(value))


def short(value: object) -> str:
    """A value as a sentence shows it, long ones cut."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


# ------------------------------------------------------------------ images
def scan_images(folder: Path) -> dict[str, Path]:
    """All images under a folder, by file name without extension, from one walk of the folder.

    Extensions count in any case. Where two files share a name, the one directly in the folder wins
    over deeper ones, then the extension that comes first in `EXTENSIONS`.
    """
    found: dict[str, tuple[tuple[int, int, str], Path]] = {}
    for where, folders, files in os.walk(folder):
        folders.sort()
        depth = where.count(os.sep)
        for file in files:
            stem, extension = os.path.splitext(file)
            if (kind := extension.lower()) not in EXTENSIONS or _dangles(os.path.join(where, file)):
                continue
            rank = (depth, EXTENSIONS.index(kind), os.path.join(where, file))
            if stem not in found or rank < found[stem][0]:
                found[stem] = (rank, Path(where, file))
    return {stem: path for stem, (_, path) in found.items()}


def _dangles(path: str) -> bool:
    return os.path.islink(path) and not os.path.exists(path)


def locate(gallery: Iterable[str], folder: Path) -> dict[str, Path | str]:
    """Each id of a gallery → its file under `folder`, or the reason why there is none."""
    reason = f"no file under {folder.name}/ has this name" if folder.is_dir() else f"no folder {folder}"
    files = scan_images(folder)
    return {image: files.get(image, reason) for image in gallery}
