"""Gallery rows that belong to each query (targets, exclusions, subsets, positives), in any form that users have."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

RowLists = Tensor | NDArray[np.integer] | Sequence[int] | Sequence[Iterable[int]]


def padded_rows(rows: RowLists | None, num_queries: int, num_gallery: int, name: str) -> NDArray[np.int64]:
    """Gallery rows a query as one table (N, P), sorted, without repeats, padded with -1 at the end.

    Args:
        rows: N rows, N lists of rows, or (N, P) of which -1 counts as none; None: no rows. name: for messages.

    >>> padded_rows([[4, 2, 2], [3]], num_queries=2, num_gallery=5, name="positives").tolist()
    [[2, 4], [3, -1]]
    """
    entries = [[]] * num_queries if rows is None else _plain(rows)
    if len(entries) != num_queries:
        raise ValueError(f"{name} must be given for all {num_queries} queries, got {len(entries)}")
    lists: list[list[int]] = []
    for query, own in enumerate(map(_plain, entries)):
        found = [_plain(row) for row in (own if isinstance(own, Iterable) else [own])]
        if not all(type(row) is int and -1 <= row < num_gallery for row in found):
            raise ValueError(f"query {query}: {name} must be rows of the gallery (0 … {num_gallery - 1}), got {own!r}")
        lists.append(sorted({*found} - {-1}))
    padded = np.full((num_queries, max(map(len, lists), default=0)), -1, np.int64)  # (N, P)
    for query, own in enumerate(lists):
        padded[query, : len(own)] = own
    return padded


def _plain(rows: Any) -> Any:
    return rows.tolist() if isinstance(rows, Tensor | np.ndarray | np.generic) else rows
