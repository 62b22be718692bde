"""Recall and average precision of rankings; ties count by expectation, so that a collapsed model scores chance."""

from collections.abc import Collection, Hashable, Sequence

import numpy as np
import torch
from torch import Tensor

from cirlib.retrieval.ranks import Ranks


def recall_at_k(ranks: Ranks, k: int) -> Tensor:
    """Probability (N,), float64, that the target is among the first k when ties fall at random.

    That is clip((k - above) / (tied + 1), 0, 1); where every image scores the same it is :func:`chance_recall`.

    >>> recall_at_k(Ranks(torch.tensor([0, 9, 10]), torch.tensor([0, 1, 0])), 10).tolist()
    [1.0, 0.5, 0.0]
    """
    _check_k(k)
    return ((k - ranks.above).double() / (ranks.tied + 1)).clamp(0, 1)


def chance_recall(k: int, gallery_size: int) -> float:
    """Recall at k of a ranking that knows nothing: k / gallery_size, at most 1.

    >>> chance_recall(10, 40)
    0.25
    """
    return min(1.0, k / gallery_size)


def median_rank(ranks: Ranks) -> float:
    """Median over queries of the target's expected rank, above + 1 + tied / 2; the best is 1.

    >>> median_rank(Ranks(torch.tensor([0, 4, 9]), torch.tensor([0, 0, 0])))
    5.0
    """
    return float(np.median((ranks.above + 1 + ranks.tied / 2).double().numpy()))


def average_precision_at_k(
    retrieved: Sequence[Sequence[Hashable]] | Tensor | np.ndarray, relevant: Sequence[Collection[Hashable]], k: int
) -> Tensor:
    """Average precision of the first k retrieved, (N,) float64, as CIRCO defines it (Baldrati et al., 2023).

    AP@k = 1 / min(k, R) · Σ_i precision@i · [item i is relevant], R the number of relevant items.

    Args:
        retrieved: per query at least k ids or gallery rows, best first. relevant: per query those wanted, one or more.

    >>> average_precision_at_k([["a", "b", "c"]], [{"a", "c"}], 3).item()  # (1 + 2/3) / 2
    0.8333333333333333
    """
    _check_k(k)
    values = []
    for query, (row, wanted) in enumerate(zip(_plain(retrieved), map(_plain, relevant), strict=True)):
        first = {item: place for place, item in enumerate(row[:k])}
        if len(first) < k or not wanted:
            raise ValueError(f"query {query} needs {k} different retrieved items and a relevant one")
        above = np.array([first.get(item, k) for item in set(wanted)])  # (R,), k where not among the first
        values.append(_expected_precision(above, np.zeros_like(above), k))
    return torch.tensor(values, dtype=torch.float64)


def average_precision_of_ranks(ranks: Ranks, query: Sequence[int] | np.ndarray, k: int) -> Tensor:
    """The same average precision, (N,) float64, from the rank of every relevant item; ties count by expectation.

    Of n images with the same score after ``above`` others, r of them relevant, each of the n places holds a relevant
    one with probability r / n, and then (r - 1) / (n - 1) of those before it in the tie are relevant too (McSherry &
    Najork, 2008). A model that gives every image the same score gets :func:`chance_average_precision`.

    Args:
        ranks: of P pairs of query and relevant item, from :func:`~cirlib.retrieval.ranks.target_ranks`.
        query: (P,) the query of each pair, 0 … N - 1, each query at least once.

    >>> average_precision_of_ranks(Ranks(torch.tensor([0, 2]), torch.tensor([0, 0])), [0, 0], 3).item()
    0.8333333333333333
    """
    _check_k(k)
    owner = np.asarray(query)  # (P,)
    if (counts := np.bincount(owner)).min() == 0:
        raise ValueError(f"query {int(counts.argmin())} has no relevant items")
    above, tied = ranks.above.numpy(), ranks.tied.numpy()  # (P,), (P,)
    values = [_expected_precision(above[owner == n], tied[owner == n], k) for n in range(len(counts))]
    return torch.tensor(values, dtype=torch.float64)


def chance_average_precision(k: int, relevant: int, gallery_size: int) -> float:
    """Expected average precision at k of a ranking that knows nothing, of ``relevant`` items in the gallery.

    >>> chance_average_precision(1, relevant=2, gallery_size=8)
    0.25
    """
    return _expected_precision(np.zeros(relevant, int), np.full(relevant, gallery_size - 1), k)


def _expected_precision(above: np.ndarray, tied: np.ndarray, k: int) -> float:
    """Of one query's relevant items, (R,) each."""
    total = 0.0
    for first in np.unique(above):  # a tie after the other
        mine = above == first
        size, relevant, before = tied[mine][0] + 1, mine.sum(), (above < first).sum()
        places = np.arange(min(size, max(0, k - first)))  # in the tie
        hits = before + 1 + places * (relevant - 1) / max(1, size - 1)
        total += (relevant / size * hits / (first + places + 1)).sum()
    return float(total / min(k, len(above)))


def _plain(items: Tensor | np.ndarray | Collection) -> list:
    """Python values: the elements of a tensor are equal to nothing but themselves as keys."""
    return items.tolist() if isinstance(items, Tensor | np.ndarray) else list(items)


def _check_k(k: int) -> None:
    if not k >= 1:
        raise ValueError(f"k must be at least 1, got {k}")
