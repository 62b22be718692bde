"""Queries as picture rows: drawn at random, the worst, the middling, and those that another method had missed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cirlib.benchmarks import Triplet
from cirlib.figures import RetrievalRow
from cirlib.retrieval.scoring import Scored
from cirlib.study.errors import ParameterError

ROWS = 6  # of a picture grid
Query = tuple[Scored, int]  # a category's scores, and a row of its benchmark


def select_method(scored: Sequence[Scored], method: str) -> list[Scored]:
    """The categories of one method.

    Raises:
        ParameterError: the study has no such method.
    """
    found = [one for one in scored if one.method == method]
    if not found:
        allowed = ", ".join(dict.fromkeys(one.method for one in scored))
        raise ParameterError(f"parameter 'method': no method {method!r} in this study, allowed: {allowed}")
    return found


def picture_row(one: Scored, row: int, title: str | None = None) -> RetrievalRow:
    """Reference, edit, the best five and where the target came, of one query; its category as title."""
    benchmark, triplet = one.benchmark, one.benchmark.triplets[row]
    return RetrievalRow(
        reference=benchmark.path(triplet.reference),
        text=edit_text(triplet),
        results=[benchmark.path(image) for image in one.top[row]],
        correct=[image in triplet.targets for image in one.top[row]],
        target=benchmark.path(triplet.targets[0]),
        rank=one.target_ranks[row],
        title=title or one.category,
    )


def edit_text(triplet: Triplet) -> str:
    """Both captions in one line."""
    return " and ".join(dict.fromkeys(triplet.captions))


def example_rows(scored: Sequence[Scored], count: int, seed: int = 0) -> list[RetrievalRow]:
    """Queries drawn at random (not picked), spread over the categories, as picture rows."""
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        one = scored[index % len(scored)]
        rows.append(picture_row(one, int(rng.integers(len(one.benchmark.triplets)))))
    return rows


def worst_rows(scored: Sequence[Scored], count: int) -> list[RetrievalRow]:
    """The queries whose targets came last."""
    return [picture_row(*query) for query in _by_place(scored)[::-1][:count]]


def median_rows(scored: Sequence[Scored], count: int) -> list[RetrievalRow]:
    """The queries around the middle one in order of rank: half of all do better."""
    ordered = _by_place(scored)
    first = max(0, (len(ordered) - count) // 2)
    return [picture_row(*query) for query in ordered[first : first + count]]


def fixed_queries(scored: Sequence[Scored], missed: Sequence[Scored], k: int = 10) -> list[Query]:
    """What ``scored`` has among its first ``k`` and ``missed`` has not, the furthest moved first."""
    found = [
        (other.target_ranks[row] - one.target_ranks[row], one, row)
        for one, other in zip(scored, missed, strict=True)
        for row in range(len(one.benchmark.triplets))
        if one.target_ranks[row] <= k < other.target_ranks[row]
    ]
    found.sort(key=lambda item: -item[0])
    return [(one, row) for _, one, row in found]


def fixed_rows(scored: Sequence[Scored], missed: Sequence[Scored], count: int, k: int = 10) -> list[RetrievalRow]:
    """The first of :func:`fixed_queries`, with the rank that ``missed`` gave as title."""
    before = {one.category: one.target_ranks for one in missed}
    return [
        picture_row(one, row, f"{one.category}: rank {before[one.category][row]:,} before")
        for one, row in fixed_queries(scored, missed, k)[:count]
    ]


def _by_place(scored: Sequence[Scored]) -> list[Query]:
    """Every query, the best-ranked target first; of equals the earlier."""
    queries = [(one, row) for one in scored for row in range(len(one.benchmark.triplets))]
    places = {one.category: one.target_ranks for one in scored}
    return sorted(queries, key=lambda query: places[query[0].category][query[1]])
