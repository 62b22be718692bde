"""Annotation files: JSON checked against a type, and what is wrong in one sentence."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from .base import BenchmarkError, Triplet

LONGEST_ID = 200  # bytes; file systems allow 255, extension included

Text = Annotated[str, Field(min_length=1)]
Captions = Annotated[list[str], Field(min_length=1)]  # any may be empty: real ones are


def _file_name(image: str) -> str:
    if image in (".", "..") or any(c in image for c in "/\\\0") or len(image.encode()) > LONGEST_ID:
        raise ValueError(f"must be a file name: no slashes, no NUL, at most {LONGEST_ID} bytes")
    return image


def unique(values: list[Any]) -> list[Any]:
    """The values, of which none may appear twice; for pydantic's `AfterValidator`.

    >>> unique(["a", "b"])
    ['a', 'b']
    """
    if repeated := _repeated(values):
        raise ValueError(f"must appear once each: {len(repeated)} do not, the first is {_short(repeated[0])}")
    return values


def _repeated(values: Sequence[Any]) -> list[Any]:
    return [value for value, n in Counter(values).items() if n > 1]


IMAGE_IDS = TypeAdapter(Annotated[list[Annotated[Text, AfterValidator(_file_name)]], AfterValidator(unique)])


def read_annotations(path: Path, kind: TypeAdapter, expected: str) -> Any:
    """The content of a JSON file of the type `kind`; `expected` says what it is, for the error where it is absent.

    Raises `BenchmarkError` where the file is absent, cannot be read, is not JSON or not of this type.

    >>> (folder / "a.json").write_text('["x"]'), read_annotations(folder / "a.json", IMAGE_IDS, "image ids")
    (5, ['x'])
    """
    try:
        return kind.validate_json(path.read_bytes(), strict=True)
    except FileNotFoundError:
        raise BenchmarkError(f"No file {path}: expected {expected}.") from None
    except OSError as error:
        raise BenchmarkError(f"{path}: cannot be read ({error.strerror}).") from None
    except ValidationError as error:
        raise BenchmarkError(f"{path}{_first_problem(error)}.") from None


def _first_problem(error: ValidationError) -> str:
    """`, record 3: 'target' must be a valid string, found 7`."""
    first = error.errors(include_url=False)[0]
    *_, problem = first["msg"].partition("Value error, ") if first["type"] == "value_error" else [first["msg"]]
    if first["type"] == "json_invalid":
        return f": {problem}"
    place = list(first["loc"])
    number = next((part for part in place if isinstance(part, int)), None)
    if number is not None:
        place.remove(number)
    record = "" if number is None else f", record {number}"
    key = f" {'.'.join(map(str, place))!r}" if place else ""
    problem = re.sub(r"^\w+ should (be|have)", r"must \1", problem).replace("Field required", "is required")
    problem = re.sub(r"( after validation)?, not \d+$", "", problem)
    return f"{record}:{key} {problem}" + ("" if first["type"] == "missing" else f", found {_short(first['input'])}")


def check_triplets(triplets: Sequence[Triplet], gallery: Sequence[str], source: Path) -> None:
    """Raises `BenchmarkError` for repeated ids or targets, images outside the gallery, a reference that is a target.

    >>> check_triplets([Triplet("q", "a", ("is red",), ("b",), None)], ["a", "b"], Path("cap.json"))
    """
    if not triplets or not gallery:
        raise BenchmarkError(f"{source}: {'the gallery is empty' if triplets else 'holds no query'}.")
    listed = {
        "query ids": [t.id for t in triplets],
        **{f"targets of {t.id}": t.targets for t in triplets if t.targets[1:]},
    }
    for what, ids in listed.items():
        if twice := _repeated(ids):
            raise BenchmarkError(f"{source}: {len(twice)} {what} appear more than once, the first is {twice[0]!r}.")
    known = set(gallery)
    roles = {"reference": lambda t: (t.reference,), "target": lambda t: t.targets, "subset member": lambda t: t.subset}
    for role, images in roles.items():
        if outside := [(t.id, i) for t in triplets for i in images(t) if i not in known]:
            query, image = outside[0]
            raise BenchmarkError(
                f"{source}: {len(outside)} {role}s are not in the split's gallery of {len(gallery)} images, "
                f"the first is {_short(image)} of query {query!r}."
            )
    if same := [t.id for t in triplets if t.reference in t.targets]:
        raise BenchmarkError(f"{source}: {len(same)} queries have their own reference as a target, as {same[0]!r}.")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
