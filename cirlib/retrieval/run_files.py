"""Anybody's rankings of a benchmark: ranked ids or embeddings, read from a file, checked, in the benchmark's order.

run.json           {query id: [image id, …], …}, best first; CIRR's keys "version" and "metric" may be there
run.npz            arrays queries (N, D) and gallery (M, D) or (M, T, D); perhaps query_ids (N,), gallery_ids (M,)
run.safetensors    the same tensors; perhaps query_ids and gallery_ids, whole numbers as tensors, texts in the metadata
                   as JSON lists

A query's id is what its benchmark calls it: "dress-val-0" (the first of FashionIQ's cap.dress.val.json), CIRR's pairid,
CIRCO's id. Without ids, rows stand in the benchmark's order: the captions file's, and the split file's for the gallery.
Scores are plain dot products: give vectors of unit length where a cosine is meant.

Every error is one sentence that names the first offender.
"""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from cirlib.benchmarks import Benchmark, Triplet
from cirlib.retrieval.measures import SUBSET_KS
from cirlib.retrieval.ranks import LARGEST_NORM, Ranks
from cirlib.study.errors import StudyError

DEPTH = 50  # images a list must have, for recall@50 and map@50
ROWS_AT_ONCE = 16_384
Lists = list[list[str]]  # per query its image ids, best first


class RunError(StudyError, ValueError):
    """A run is not as it must be. Says what and where."""


@dataclass(frozen=True)
class Embeddings:
    """Features in the benchmark's order, to be scored by their dot product."""

    queries: Tensor  # (N, D)
    gallery: Tensor  # (M, D) or (M, T, D)


NAMES = ("queries", "gallery", "query_ids", "gallery_ids")


def read_run(run: str | Path | Mapping[str, Any], benchmark: Benchmark, *, removed: bool) -> Embeddings | Lists:
    """A run, checked and row for row the benchmark's queries (and gallery).

    Args:
        run: a file as above, or its content: query id → image ids, or the arrays by name.
        removed: whether the reference is struck out of each list.

    Raises:
        RunError: no such file; not JSON, .npz or .safetensors; ids that are repeated, unknown or missing; a list
            too short; arrays of wrong shape, of another name or with NaN.
    """
    if not isinstance(run, str | Path | Mapping):
        raise RunError(f"the run: expected a file or its content, found {type(run).__name__}.")
    where, content = ("the run", run) if isinstance(run, Mapping) else (str(run), _read(Path(run)))
    if isinstance(content, Mapping) and not {"queries", "gallery"}.isdisjoint(content):
        return _embeddings(content, benchmark, where)
    return _lists(content, benchmark, removed, where)


# ------------------------------------------------------------------ files
def _read(path: Path) -> Any:
    readers: dict[str, Callable[[Path], Any]] = {
        ".json": _read_json,
        ".npz": _read_npz,
        ".safetensors": _read_safetensors,
    }
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise RunError(f"{path}: expected a file that ends in {', '.join(readers)}.")
    if not path.is_file():
        raise RunError(f"No file {path}: expected ranked ids or embeddings.")
    try:
        return readers[suffix](path)
    except RunError as error:
        raise RunError(f"{path}: {error}") from None
    except Exception as error:  # a damaged file makes its reader raise nearly anything, MemoryError included
        reason = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
        raise RunError(f"{path}: not a readable {suffix} file ({reason}).") from None


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique_keys)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise RunError(f"query {_first_repeated([key for key, _ in pairs])!r} appears more than once.")
    return found


def _read_npz(path: Path) -> dict[str, Any]:
    if not zipfile.is_zipfile(path):
        raise ValueError("not an archive")
    with np.load(path) as archive:
        return _with_both({name: archive[name] for name in archive.files})


def _read_safetensors(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        content = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        notes = file.metadata() or {}
    return _with_both(content | {name: json.loads(notes[name]) for name in NAMES[2:] if name in notes})


def _with_both(content: dict[str, Any]) -> dict[str, Any]:
    for name in ("queries", "gallery"):
        if name not in content:
            raise RunError(f"no array {name!r}, expected queries (N, D) and gallery (M, D) or (M, T, D).")
    if unknown := next((name for name in content if name not in NAMES), None):
        raise RunError(f"array {unknown!r} is not known, allowed are {', '.join(NAMES)}.")
    return content


# ------------------------------------------------------------------ embeddings
def _embeddings(content: Mapping[str, Any], benchmark: Benchmark, where: str) -> Embeddings:
    try:
        _with_both(dict(content))
        wanted = [triplet.id for triplet in benchmark.triplets]
        queries = _in_order(content["queries"], content.get("query_ids"), wanted, "queries", (2,))
        gallery = _in_order(content["gallery"], content.get("gallery_ids"), benchmark.gallery, "gallery", (2, 3))
    except RunError as error:
        raise RunError(f"{where}: {error}") from None
    if queries.shape[1] != gallery.shape[-1]:
        raise RunError(f"{where}: queries are {queries.shape[1]} wide and gallery {gallery.shape[-1]}, expected alike.")
    return Embeddings(queries, gallery)


def _in_order(features: Any, ids: Any, wanted: Sequence[str], name: str, dimensions: Sequence[int]) -> Tensor:
    """Features (rows, …) in the order of the wanted ids."""
    found = _tensor(features, name, dimensions)
    names = list(wanted) if ids is None else _texts(ids, name)
    if len(found) != len(names):
        ours = "the benchmark has" if ids is None else "there are ids for"
        raise RunError(f"{name} has {len(found)} rows, {ours} {len(names)}.")
    _check_finite(found, names, name)
    if ids is None or names == list(wanted):
        return found
    _check_same(names, wanted, "query" if name == "queries" else "gallery image")
    row = {image: i for i, image in enumerate(names)}
    return found[torch.tensor([row[image] for image in wanted])]


def _tensor(features: Any, name: str, dimensions: Sequence[int]) -> Tensor:
    if isinstance(features, np.ndarray) and features.dtype.kind == "f":
        features = features.astype(features.dtype.newbyteorder("="), copy=False)
    try:
        found = torch.as_tensor(features)
        found = found.half() if found.is_floating_point() and found.dtype.itemsize == 1 else found  # has no isfinite
    except (TypeError, ValueError, RuntimeError):
        raise RunError(f"{name} is no array of numbers.") from None
    if not found.is_floating_point():
        raise RunError(f"{name} must be floating-point numbers, found {str(found.dtype).removeprefix('torch.')}.")
    if found.ndim not in dimensions or 0 in found.shape:
        shapes = " or ".join({2: "(rows, D)", 3: "(rows, T, D)"}[n] for n in dimensions)
        raise RunError(f"{name} has the shape {tuple(found.shape)}, expected {shapes}.")
    return found.detach().cpu()


def _texts(ids: Any, name: str) -> list[str]:
    """Ids as text; whole numbers, as CIRCO's are, count as such."""
    plain = ids.tolist() if isinstance(ids, np.ndarray | Tensor) else ids
    if not isinstance(plain, list | tuple):
        raise RunError(f"{name}: expected a list of ids, found {str(plain)[:60]!r}.")
    for image in plain:
        if not isinstance(image, str | int) or isinstance(image, bool):
            raise RunError(f"{name}: expected an id (text), found {str(image)[:60]}.")
    return [str(image) for image in plain]


def _check_finite(features: Tensor, names: Sequence[str], name: str) -> None:
    for start in range(0, len(features), ROWS_AT_ONCE):
        block = features[start : start + ROWS_AT_ONCE]
        norms = torch.linalg.vector_norm(block, dim=-1, dtype=torch.float64)  # (rows,) or (rows, T)
        bad = ~(norms <= LARGEST_NORM).reshape(len(block), -1).all(1)  # (rows,)
        if bad.any():
            row = start + int(bad.nonzero()[0])
            raise RunError(f"{name}, row {row} ({names[row]!r}), has NaN, infinite or too large values.")


def _check_same(found: Sequence[str], wanted: Sequence[str], what: str) -> None:
    """Both have the same ids, each once."""
    known, there = set(wanted), set(found)
    if len(there) < len(found):
        raise RunError(f"{what} {_first_repeated(found)!r} appears more than once.")
    if unknown := next((one for one in found if one not in known), None):
        raise RunError(f"{what} {unknown!r} is not in the benchmark.")
    absent = [one for one in wanted if one not in there]
    if absent:
        raise RunError(f"{what} {absent[0]!r} is missing, the first of {len(absent)}.")


def _first_repeated(names: Sequence[str]) -> str:
    return next(name for name, count in Counter(names).items() if count > 1)


# ------------------------------------------------------------------ ranked ids
def _lists(content: Any, benchmark: Benchmark, removed: bool, where: str) -> Lists:
    if not isinstance(content, Mapping):
        raise RunError(
            f"{where}: expected an object from query id to a list of image ids, found {str(content)[:60]!r}."
        )
    header = ("version", "metric") if benchmark.name == "cirr" else ()
    runs = {str(query): images for query, images in content.items() if query not in header}
    if len(runs) < sum(query not in header for query in content):
        raise RunError(f"{where}: query {_first_repeated(list(map(str, content)))!r} appears more than once.")
    try:
        _check_same(list(runs), [triplet.id for triplet in benchmark.triplets], "query")
        return [_list(runs[triplet.id], triplet, benchmark, removed) for triplet in benchmark.triplets]
    except RunError as error:
        raise RunError(f"{where}: {error}") from None


def _list(images: Any, triplet: Triplet, benchmark: Benchmark, removed: bool) -> list[str]:
    """One query's images, checked, without the reference where it is removed."""
    query = f"query {triplet.id!r}"
    names = _texts(images, query)
    if len(set(names)) < len(names):
        raise RunError(f"{query} has image {_first_repeated(names)!r} more than once.")
    if unknown := next((name for name in names if name not in benchmark.gallery_index), None):
        raise RunError(f"{query} has image {unknown!r}, which is not in the gallery.")
    ranked = [name for name in names if not (removed and name == triplet.reference)]
    least = min(DEPTH, len(benchmark.gallery) - removed)
    if len(ranked) < least:
        beside = " beside its reference (which is removed; it counts with reference 'kept')" if removed else ""
        raise RunError(f"{query} has {len(ranked)} images{beside}, expected at least {least}.")
    return ranked


def list_ranks(lists: Lists, benchmark: Benchmark) -> Ranks:
    """Each target's rank in its list; one that is in no list counts as the last of the gallery."""
    last = len(benchmark.gallery) - 1
    found = [_place(images, t.targets[0], last) for images, t in zip(lists, benchmark.triplets, strict=True)]
    return Ranks(torch.tensor(found), torch.zeros(len(found), dtype=torch.long))


def list_subset_ranks(lists: Lists, benchmark: Benchmark) -> Ranks:
    """Each target's rank among its CIRR subset, as far as recall_subset needs it.

    Members that are not among the first 50 may stand behind those, in their order.

    Raises:
        RunError: a list does not tell: it holds neither the target nor three other members of the subset.
    """
    found = []
    for images, triplet in zip(lists, benchmark.triplets, strict=True):
        members = [image for image in images if image in triplet.subset]
        if triplet.targets[0] not in members and len(members) < min(max(SUBSET_KS), len(triplet.subset) - 1):
            raise RunError(
                f"query {triplet.id!r} has neither its target nor three others of its subset: for recall_subset give "
                "longer lists, or put the subset's members, in their order, behind the first 50."
            )
        found.append(_place(members, triplet.targets[0], len(members)))
    return Ranks(torch.tensor(found), torch.zeros(len(found), dtype=torch.long))


def _place(images: Sequence[str], target: str, otherwise: int) -> int:
    return images.index(target) if target in images else otherwise
