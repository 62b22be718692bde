"""Gallery rows that belong to each query (targets, exclusions, subsets, positives), in any form that users have."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

RowLists = Tensor | NDArray[np.integer] | Sequence[int] | Sequence[Iterable[int]]


def padded_rows(rows: RowLists, num_queries: int, num_gallery: int, name: str) -> NDArray[np.int64]:
    """Gallery rows a query as one table (N, P), sorted, without repeats, padded with -1 at the end.

    Args:
        rows: N rows, N lists of rows, or (N, P) of which -1 counts as none. name: for messages.

    Raises:
        ValueError: not N entries, no whole numbers, or a row outside the gallery.

    >>> padded_rows([[4, 2, 2], [3]], num_queries=2, num_gallery=5, name="positives").tolist()
    [[2, 4], [3, -1]]
    """
    plain = rows.tolist() if isinstance(rows, Tensor | np.ndarray) else rows
    if not isinstance(plain, Sequence):
        raise ValueError(f"{name} must be a list or an array, an entry a query, got {type(rows).__name__}")
    if len(plain) != num_queries:
        raise ValueError(f"{name} must be given for all {num_queries} queries, got {len(plain)}")
    lists = [sorted(_row_set(own, query, name)) for query, own in enumerate(plain)]
    for query, own in enumerate(lists):
        if own and not 0 <= own[0] <= own[-1] < num_gallery:
            row = own[0] if own[0] < 0 else own[-1]
            raise ValueError(f"query {query}: {name} {row} is not a row of the gallery (0 … {num_gallery - 1})")
    padded = np.full((num_queries, max(map(len, lists), default=0)), -1, np.int64)  # (N, P)
    for query, own in enumerate(lists):
        padded[query, : len(own)] = own
    return padded


def _row_set(rows: int | Iterable[int], query: int, name: str) -> set[int]:
    """The rows given for one query, less the padding."""
    try:
        items = list(rows) if isinstance(rows, Iterable) else [rows]
        if any(isinstance(row, bool | np.bool_) for row in items):
            raise TypeError
        return {operator.index(row) for row in items} - {-1}
    except TypeError:
        raise ValueError(f"query {query}: {name} must be whole numbers (gallery rows), got {rows!r}") from None
