"""Annotation files: JSON checked against a type, and what is wrong in one sentence."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from cirlib.study.files import read_text

from .base import BenchmarkError, Triplet

LONGEST_ID = 200  # bytes; file systems allow 255, extension included

Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[list[str], Field(min_length=1)]  # any may be empty: real captions are


def is_image_id(text: str) -> bool:
    """Whether ``text`` can be the path of a file: of letters, in at most `LONGEST_ID` bytes, not out of its folder.

    >>> is_image_id("bags/001"), is_image_id("../001"), is_image_id("a" * 201)
    (True, False, False)
    """
    letters = not re.search(r"[\\\0-\x1f\x7f\ud800-\udfff]", text)
    return letters and not {"", ".", ".."} & {*text.split("/")} and len(text.encode()) <= LONGEST_ID


def _unique_file_names(ids: list[str]) -> list[str]:
    for image, number in Counter(ids).items():
        if not is_image_id(image):
            raise ValueError(f"{_short(image)} is no path of a file in at most {LONGEST_ID} bytes")
        if number > 1:
            raise ValueError(f"{image!r} appears {number} times")
    return ids


IMAGE_IDS = Annotated[list[str], AfterValidator(_unique_file_names)]


def read_annotations(path: Path, kind: Any, expected: str) -> Any:
    """The content of a JSON file of the type `kind`; `expected` says what it is, for the error where it is absent.

    Raises `BenchmarkError` where the file is absent, cannot be read, is not JSON or not of this type.

    >>> (folder / "a.json").write_text('["x"]'), read_annotations(folder / "a.json", IMAGE_IDS, "image ids")
    (5, ['x'])
    """
    try:
        return TypeAdapter(kind).validate_json(read_text(path), strict=True)
    except FileNotFoundError:
        raise BenchmarkError(f"No file {path}: expected {expected}.") from None
    except OSError as error:
        raise BenchmarkError(f"{path}: cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        raise BenchmarkError(f"{path}: is no text ({error.reason} at byte {error.start}).") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = "".join(f", {_short(part)}" for part in first["loc"])
        if first["loc"] and isinstance(first["loc"][0], int):
            place = f", record {place[2:]}"
        raise BenchmarkError(f"{path}{place}: {first['msg']}, found {_short(first['input'])}.") from None


def check_triplets(triplets: Sequence[Triplet], gallery: Sequence[str], source: Path) -> None:
    """Raises `BenchmarkError` for repeated ids or targets, images outside the gallery, a reference that is a target.

    >>> check_triplets([Triplet("q", "a", ("is red",), ("b",), None)], ["a", "b"], Path("cap.json"))
    """
    known, ids = set(gallery), Counter(t.id for t in triplets)
    outside = [(t, i) for t in triplets for i in (t.reference, *t.targets, *t.subset) if i not in known]
    problems = {
        f"name images outside the gallery of {len(known)}": [f"{t.id} names {i}" for t, i in outside],
        "have the id of another": [t.id for t in triplets if ids[t.id] > 1],
        "have a target twice": [t.id for t in triplets if len(set(t.targets)) < len(t.targets)],
        "have their own reference as a target": [t.id for t in triplets if t.reference in t.targets],
    }
    for problem, found in problems.items():
        if found:
            raise BenchmarkError(f"{source}: {len(found)} queries {problem}, as {_short(found[0])}.")
    if not triplets:
        raise BenchmarkError(f"{source}: holds no query.")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
