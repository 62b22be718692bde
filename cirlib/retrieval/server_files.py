"""Result files in the exact formats of the CIRR and CIRCO test servers, checked before they are written."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from cirlib.benchmarks import cirr
from cirlib.benchmarks.base import Benchmark, BenchmarkError, Triplet, check_choice
from cirlib.study.files import write_bytes

CIRR_LENGTHS = {"recall": 50, "recall_subset": 3}
CIRCO_LENGTH = 50


def write_cirr(
    path: str | Path,
    ranked: Mapping[str, Sequence[str]],
    metric: Literal["recall", "recall_subset"],
    benchmark: Benchmark,
) -> None:
    """CIRR: `{"version": "rc2", "metric": metric, pairid: [name, …], …}`.

    Args:
        path: the file; replaced if it exists, its folder made if it does not.
        ranked: query id (pairid) → image ids, best first: exactly 50 of the gallery for "recall", exactly
            3 of the query's subset for "recall_subset"; never the query's reference.
        metric: "recall" or "recall_subset".
        benchmark: the split that was ranked, `load_benchmark("cirr", …)`, complete.

    Raises:
        BenchmarkError: a query is missing or unknown, or a list is not as above; names the first offender.
            Nothing is written then.
    """
    check_choice(metric, CIRR_LENGTHS, "metric")
    _check_queries(ranked, benchmark, "cirr")
    for triplet in benchmark.triplets:
        names = ranked[triplet.id]
        if triplet.reference in names:
            raise BenchmarkError(
                f"Query {triplet.id!r}: the list holds the query's own reference {triplet.reference!r}, "
                "which the server does not rank."
            )
        allowed = triplet.subset if metric == "recall_subset" else benchmark.gallery_index
        what = "the query's subset" if metric == "recall_subset" else "the gallery"
        _check_list(triplet, names, CIRR_LENGTHS[metric], allowed, what)
    lists = {triplet.id: list(ranked[triplet.id]) for triplet in benchmark.triplets}
    _write(Path(path), {"version": cirr.VERSION, "metric": metric, **lists})


def write_circo(path: str | Path, ranked: Mapping[str, Sequence[str]], benchmark: Benchmark) -> None:
    """CIRCO: `{query id: [image number, …], …}`.

    Args:
        path: as for `write_cirr`.
        ranked: query id → exactly 50 image ids of the gallery, best first; the reference may be among them.
        benchmark: the split that was ranked, `load_benchmark("circo", …)`, complete.

    Raises:
        BenchmarkError: as `write_cirr`.
    """
    _check_queries(ranked, benchmark, "circo")
    for triplet in benchmark.triplets:
        _check_list(triplet, ranked[triplet.id], CIRCO_LENGTH, benchmark.gallery_index, "the gallery")
    _write(Path(path), {t.id: [int(image) for image in ranked[t.id]] for t in benchmark.triplets})


def _check_queries(ranked: Mapping[str, Sequence[str]], benchmark: Benchmark, name: str) -> None:
    if benchmark.name != name:
        raise BenchmarkError(f"The benchmark is {benchmark.name!r}: expected {name!r}.")
    if not benchmark.complete:
        raise BenchmarkError(
            f"{name} {benchmark.split} is incomplete: the server wants every query ranked in all the gallery."
        )
    ids = [triplet.id for triplet in benchmark.triplets]
    if absent := [query for query in ids if query not in ranked]:
        raise BenchmarkError(f"{len(absent)} of {len(ids)} queries have no list, the first is {absent[0]!r}.")
    known = set(ids)
    if unknown := [query for query in ranked if query not in known]:
        raise BenchmarkError(
            f"{len(unknown)} lists are of no query of {name} {benchmark.split}, the first is {unknown[0]!r}."
        )


def _check_list(triplet: Triplet, images: Sequence[str], length: int, allowed: Collection[str], what: str) -> None:
    where = f"Query {triplet.id!r}"
    if len(images) != length:
        raise BenchmarkError(f"{where}: {len(images)} images, expected exactly {length}.")
    if outside := [image for image in images if image not in allowed]:
        raise BenchmarkError(f"{where}: {outside[0]!r} is not in {what}.")
    if len(set(images)) < length:
        repeated = next(image for i, image in enumerate(images) if image in images[:i])
        raise BenchmarkError(f"{where}: {repeated!r} appears more than once.")


def _write(path: Path, content: Mapping[str, Any]) -> None:
    write_bytes(json.dumps(content).encode(), path)
