"""Anybody's rankings of a benchmark: ranked ids or embeddings, read from a file, checked, in the benchmark's order.

``python -m cirlib.evaluation --help`` says what such a file holds.
"""

import csv
import json
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from safetensors import safe_open
from torch import Tensor

from cirlib.benchmarks import Benchmark, Triplet
from cirlib.retrieval.ranks import FeatureError, Ranks, check_shapes, checked_norms
from cirlib.study.errors import StudyError
from cirlib.study.files import read_text

DEPTH = 50  # images a list must have, for recall@50 and map@50
SUFFIXES = (".json", ".trec", ".run", ".parquet", ".npz", ".safetensors")
TREC = ["query", "Q0", "image", "rank", "score", "tag"]
NAMES = ("queries", "gallery", "query_ids", "gallery_ids")
Lists = list[list[str]]  # per query its image ids, best first

_numbers_are_ids = ConfigDict(coerce_numbers_to_str=True)  # as CIRCO's are
_IDS = TypeAdapter(list[str], config=_numbers_are_ids)
_RUN = TypeAdapter(dict[str, list[str]], config=_numbers_are_ids)


class RunError(StudyError, ValueError):
    """A run is not as it must be: one sentence that names the first offender."""


class Embeddings(NamedTuple):
    """Features in the benchmark's order, to be scored by their dot product."""

    queries: Tensor  # (N, D)
    gallery: Tensor  # (M, D) or (M, T, D)


def read_run(run: str | Path | Mapping[str, Any], benchmark: Benchmark, *, removed: bool) -> Embeddings | Lists:
    """A run, checked and row for row the benchmark's queries (and gallery); else a :class:`RunError`.

    Args:
        run: a file, or its content: query id → image ids, or the arrays by name.
        removed: whether the reference is struck out of each list.

    >>> hats = make_scored("sum", "hat", [0], size=3).benchmark  # one query, from hat-0 to hat-1
    >>> read_run({"hat-query-0": ["hat-2", "hat-0", "hat-1"]}, hats, removed=True)
    [['hat-2', 'hat-1']]
    """
    try:
        content = run if isinstance(run, Mapping) else _read(Path(run))
        if isinstance(content, Mapping) and not {"queries", "gallery"}.isdisjoint(content):
            return _embeddings(content, benchmark)
        return _lists(content, benchmark, removed)
    except (RunError, FeatureError) as error:
        raise RunError(f"{'the run' if isinstance(run, Mapping) else run}: {error}") from None


def list_ranks(lists: Lists, targets: Sequence[str], sizes: Sequence[int]) -> Ranks:
    """Each target's rank in its list; one that is not there counts as the last of so many images.

    >>> list_ranks([["hat-2", "hat-1"], ["hat-2"]], ["hat-1", "hat-0"], [9, 9]).above.tolist()
    [1, 8]
    """
    rows = zip(lists, targets, sizes, strict=True)
    above = [images.index(target) if target in images else size - 1 for images, target, size in rows]
    return Ranks(torch.tensor(above), torch.zeros(len(above), dtype=torch.long))


def _read(path: Path) -> Any:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise RunError(f"expected a file that ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}.")
    if not path.is_file():
        raise RunError("no such file.")
    try:
        if suffix == ".json":
            return json.loads(read_text(path), object_pairs_hook=_unique_keys)
        if suffix in (".trec", ".run", ".parquet"):
            return _ranked_lists(path)
        if suffix == ".npz":
            zipfile.ZipFile(path).close()  # else numpy takes it for a pickle
            with np.load(path) as archive:
                return dict(archive)
        with safe_open(path, framework="pt") as file:
            ids = {name: json.loads(text) for name, text in (file.metadata() or {}).items() if name in NAMES[2:]}
            return {name: file.get_tensor(name) for name in file.keys()} | ids  # noqa: SIM118
    except Exception as error:  # a damaged file makes its reader raise nearly anything, MemoryError included
        reason = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
        if "allow_pickle" in reason:  # numpy's advice would run code that the file brings
            reason = "it holds Python objects, as columns of pandas are: save ids as numpy.array(ids, dtype=str)"
        raise RunError(f"not a readable {suffix} file ({reason}).") from None


def _ranked_lists(path: Path) -> dict[str, list[str]]:
    """The lists of a table with a row an image found: a TREC run file, or parquet; the higher score comes first."""
    if path.suffix.lower() == ".parquet":
        table = pd.read_parquet(path)
    else:
        form = {"sep": r"\s+", "header": None, "dtype": str, "quoting": csv.QUOTE_NONE, "encoding": "utf-8-sig"}
        table = pd.read_csv(path, **form, na_filter=False)  # an id may be NA
        if len(table.columns) not in (5, 6):
            raise RunError(f"{len(table.columns)} columns, expected six: {' '.join(TREC)}")
        table.columns = TREC[: len(table.columns)]
    by = "score" if "score" in table else "rank"
    if lacking := {"query", "image", by} - {*table}:
        raise RunError(f"no column {min(lacking)!r}: query, image, and score or rank are needed")
    numbers = pd.to_numeric(table[by], errors="coerce")
    wrong = table[numbers.isna() | table["query"].isna() | table["image"].isna()]
    for _, (query, image, number) in wrong[["query", "image", by]][:1].iterrows():
        raise RunError(f"query {query!r}, image {image!r}, {by} {number!r}: expected two ids and a number")
    order = table.assign(**{by: numbers}).sort_values(by, ascending=by == "rank", kind="stable")
    return order.groupby("query", sort=False)["image"].agg(list).to_dict()


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _check_unique([key for key, _ in pairs], "query")
    return dict(pairs)


def _embeddings(content: Mapping[str, Any], benchmark: Benchmark) -> Embeddings:
    if lacking := next((name for name in NAMES[:2] if name not in content), None):
        raise RunError(f"no array {lacking!r}, expected queries (N, D) and gallery (M, D) or (M, T, D).")
    if unknown := next((name for name in content if name not in NAMES), None):
        raise RunError(f"array {unknown!r} is not known, allowed are {', '.join(NAMES)}.")
    check_shapes(content["queries"], content["gallery"])
    wanted = [triplet.id for triplet in benchmark.triplets]
    queries = _in_order(content["queries"], content.get("query_ids"), wanted, "query")
    return Embeddings(queries, _in_order(content["gallery"], content.get("gallery_ids"), benchmark.gallery, "gallery"))


def _in_order(features: Tensor | np.ndarray, ids: Any, wanted: Sequence[str], side: str) -> Tensor:
    """Features (rows, …), on the CPU, in the order of the wanted ids."""
    plain = ids.tolist() if isinstance(ids, np.ndarray | Tensor) else ids
    names = list(wanted) if ids is None else _validated(_IDS, plain, f"{side}_ids")
    if len(features) != len(names):
        ours = "the benchmark has" if ids is None else "there are ids for"
        raise RunError(f"{side}: {len(features)} rows, {ours} {len(names)}.")
    found = torch.as_tensor(features).detach().cpu()
    checked_norms(found, side)
    if names == list(wanted):
        return found
    _check_same(names, wanted, f"{side} id")
    row = {image: i for i, image in enumerate(names)}
    return found[[row[image] for image in wanted]]


def _lists(content: Any, benchmark: Benchmark, removed: bool) -> Lists:
    if isinstance(content, Mapping) and benchmark.name == "cirr":  # a server's file is a run too
        content = {query: images for query, images in content.items() if query not in ("version", "metric")}
    lists = _validated(_RUN, content, "expected an object from query id to a list of image ids")
    _check_same(list(lists), [triplet.id for triplet in benchmark.triplets], "query")
    return [_checked_list(lists[triplet.id], triplet, benchmark, removed) for triplet in benchmark.triplets]


def _checked_list(images: list[str], triplet: Triplet, benchmark: Benchmark, removed: bool) -> list[str]:
    query = f"query {triplet.id!r}"
    _check_unique(images, f"{query}: image")
    if (unknown := next((image for image in images if image not in benchmark.gallery_index), None)) is not None:
        raise RunError(f"{query} has image {unknown!r}, which is not in the gallery.")
    ranked = [image for image in images if not (removed and image == triplet.reference)]
    least = min(DEPTH, len(benchmark.gallery) - removed)
    if len(ranked) < least:
        beside = " beside its reference (which is removed; it counts with reference 'kept')" if removed else ""
        raise RunError(f"{query} has {len(ranked)} images{beside}, expected at least {least}.")
    return ranked


def _validated(form: TypeAdapter, content: Any, what: str) -> Any:
    try:
        return form.validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{part!r}: " for part in first["loc"])
        raise RunError(f"{what}: {where}{first['msg']}, found {str(first['input'])[:60]!r}.") from None


def _check_unique(names: Sequence[str], what: str) -> None:
    if (repeated := next((name for name, count in Counter(names).items() if count > 1), None)) is not None:
        raise RunError(f"{what} {repeated!r} appears more than once.")


def _check_same(found: Sequence[str], wanted: Sequence[str], what: str) -> None:
    _check_unique(found, what)
    known, there = set(wanted), set(found)
    if (unknown := next((one for one in found if one not in known), None)) is not None:
        raise RunError(f"{what} {unknown!r} is not in the benchmark.")
    if absent := [one for one in wanted if one not in there]:
        raise RunError(f"{what} {absent[0]!r} is missing, the first of {len(absent)}.")
