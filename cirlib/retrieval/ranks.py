"""Where each query's target ranks in the gallery, and which images rank first.

N queries, M gallery images, T tokens of an image, D width. Scores are :func:`~cirlib.retrieval.similarity.similarity`:
plain dot products, nothing is normalised here. Ranks are counted in float64, never sorted; scores that differ by less
than its rounding tie. So copies of an image always tie, and block sizes never change a rank.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cirlib.retrieval.similarity import own_similarity, similarity
from cirlib.study.errors import StudyError

Array = Tensor | NDArray[Any]
RowLists = Tensor | NDArray[np.integer] | Sequence[int] | Sequence[Iterable[int]]

BLOCK_VECTORS = 1024  # scored at a time, so that the scores stay in the cache
VALUES_AT_ONCE = 2**22  # of chosen images in float64: 32 MB
LARGEST_NORM = 2.0**63  # the dot product of two such vectors still fits float32


class FeatureError(StudyError, ValueError):
    """Features cannot be scored."""


@dataclass(frozen=True)
class Ranks:
    """How many other gallery images score above each query's target, and how many the same as it.

    The target's rank, from 1, is one of above + 1 … above + tied + 1, all as likely; metrics take the mean over them.
    """

    above: Tensor  # (N,) int64 on the CPU
    tied: Tensor  # (N,)


@torch.no_grad()
def target_ranks(
    queries: Array, gallery: Array, targets: RowLists, *, exclude: RowLists | None = None, chunk_size: int = 256
) -> Ranks:
    """Count, for each query, the gallery images that score above and the same as its target.

    "The same" means equal up to the rounding of float64, about 1e-13 of the norms' product.

    Args:
        queries: (N, D) floats; their device does the work (the CPU where it has no float64).
        gallery: (M, D), or (M, T, D) token sets of which the best counts. May be memory-mapped: it is read once, block
            by block, and the memory beyond it is O(N·D).
        targets: (N,) the gallery row that each query wants.
        exclude: rows left out of a query's ranking, such as its reference: (N,), (N, E) padded with -1, or N lists.
        chunk_size: queries scored at a time; changes speed and memory, never the result.

    Raises:
        FeatureError: shapes that do not fit; NaN, infinite or overflowing features.

    >>> ranks = target_ranks(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.9, 0.0], [0.5, 0.1], [0.5, 0.2]]), [1])
    >>> ranks.above.tolist(), ranks.tied.tolist()
    ([1], [1])
    """
    search = _Search(queries, gallery, targets, exclude)
    above, tied = torch.zeros_like(search.targets), torch.zeros_like(search.targets)  # (N,) both
    for start, images in _blocks(gallery, search.device):
        norms = checked_norms(images, "gallery", range(start, start + len(images)))  # (B,)
        images = images.double()
        for first in range(0, len(above), chunk_size):
            some = slice(first, first + chunk_size)
            scores = similarity(search.queries[some], images)  # (n, B)
            _hide(scores, search.hidden[some] - start)
            over, same = search.compare(scores, norms, some)  # (n, B) both
            above[some] += over.sum(1)
            tied[some] += same.sum(1)
    return Ranks(above.cpu(), tied.cpu())


@torch.no_grad()
def subset_ranks(queries: Array, gallery: Array, targets: RowLists, subsets: RowLists) -> Ranks:
    """As :func:`target_ranks`, within a few images only: for CIRR's subset recall (Liu et al., ICCV 2021).

    Args:
        subsets: the gallery rows of each query's subset, (N, S) padded with -1 or N lists; each holds its target.

    >>> subset_ranks(torch.ones(1, 1), torch.arange(5.0)[:, None], [2], [[0, 2, 4]]).above.tolist()
    [1]
    """
    search = _Search(queries, gallery, targets, None)
    members = torch.from_numpy(padded_rows(subsets, len(search.targets), len(gallery), "subset member"))
    members = members.to(search.device)  # (N, S)
    if len(absent := (members != search.targets[:, None]).all(1).nonzero()):
        query = int(absent[0])
        raise ValueError(f"query {query}: its subset lacks its target {int(search.targets[query])}")
    above, tied = search.compare(*search.scores_of(members.clamp(min=0)))  # (N, S) both
    counted = (members >= 0) & (members != search.targets[:, None])  # (N, S)
    return Ranks((above & counted).sum(1).cpu(), (tied & counted).sum(1).cpu())


@torch.no_grad()
def top_rows(queries: Tensor, gallery: Array, exclude: RowLists | None, k: int) -> list[list[int]]:
    """The k best gallery rows of each query, exactly, best first.

    Args:
        exclude: (N,) the row left out of each query's list. k: how many; all that are left where those are fewer.

    >>> top_rows(torch.ones(1, 1), torch.tensor([[3.0], [5.0], [4.0]]), exclude=[1], k=2)
    [[2, 0]]
    """
    k = min(k, len(gallery) - (exclude is not None))
    hidden = torch.from_numpy(padded_rows(exclude, len(queries), len(gallery), "excluded")).to(queries.device)  # (N, E)
    queries = queries.float()  # (N, D)
    values = queries.new_empty(len(queries), 0)  # (N, ≤ k), the best so far
    rows = hidden.new_empty(len(queries), 0)  # (N, ≤ k)
    for start, images in _blocks(gallery, queries.device):
        scores = similarity(queries, images.float())  # (N, B)
        _hide(scores, hidden - start)
        best = scores.topk(min(k, len(images)))  # (N, ≤ k)
        values, rows = torch.cat([values, best.values], 1), torch.cat([rows, best.indices + start], 1)
        values, order = values.topk(min(k, values.shape[1]))
        rows = rows.gather(1, order)
    return rows.tolist()


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


class _Search:
    """The checked inputs, on the device that does the work, and each target's own score."""

    def __init__(self, queries: Array, gallery: Array, targets: RowLists, exclude: RowLists | None) -> None:
        check_shapes(queries, gallery)
        found = torch.as_tensor(np.ascontiguousarray(queries) if isinstance(queries, np.ndarray) else queries)
        self.device = torch.device("cpu") if found.device.type == "mps" else found.device  # which has no float64
        self.gallery = gallery
        self.query_norms = checked_norms(found.to(self.device), "query")  # (N,)
        self.queries = found.to(self.device).double()  # (N, D)
        rows = padded_rows(targets, len(queries), len(gallery), "target")  # (N, 1)
        if rows.shape[1] != 1 or (rows < 0).any():
            raise ValueError("targets must be one gallery row a query")
        left_out = padded_rows(exclude, len(rows), len(gallery), "excluded")  # (N, E)
        if (clash := (left_out == rows).any(1)).any():
            query = int(clash.argmax())
            raise ValueError(f"query {query}: its target {rows[query, 0]} is excluded")
        self.targets = torch.from_numpy(rows[:, 0]).to(self.device)  # (N,)
        self.hidden = torch.from_numpy(np.concatenate([rows, left_out], 1)).to(self.device)  # (N, 1 + E), -1 for none
        self.target_scores, self.target_norms = self.scores_of(self.targets[:, None])  # (N, 1) both

    def scores_of(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and norms (N, S) of S gallery rows of each query, (N, S)."""
        step = max(1, VALUES_AT_ONCE // (rows.shape[1] * int(np.prod(self.gallery.shape[1:]))))
        scores, norms = [], []
        for query, own in zip(self.queries.split(step), rows.split(step), strict=True):
            images = _take(self.gallery, own.flatten().cpu().numpy(), self.device)  # (n * S, D) or (n * S, T, D)
            norms.append(checked_norms(images, "gallery", own.flatten()).view(own.shape))
            scores.append(own_similarity(query, images.double().unflatten(0, own.shape)))
        return torch.cat(scores), torch.cat(norms)

    def compare(self, scores: Tensor, norms: Tensor, some: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Which scores (n, B) lie above, and which equal, the targets' of some queries; norms (B,) or (n, B)."""
        reach = self.target_norms[some] + norms  # (n, B)
        rounding = reach.mul_(self.queries.shape[1] * 2.0**-52 * self.query_norms[some, None])  # (n, B)
        gap = scores.sub_(self.target_scores[some])  # (n, B)
        return gap > rounding, gap.abs() <= rounding


def check_shapes(queries: Array, gallery: Array) -> None:
    """Refuses what are no floats (N, D) and (M, D) or (M, T, D).

    >>> check_shapes(torch.ones(2, 8), torch.ones(0, 8))
    Traceback (most recent call last):
    cirlib.retrieval.ranks.FeatureError: expected at least one image, got (2, 8) and (0, 8)
    """
    for name, features in (("queries", queries), ("gallery", gallery)):
        if "float" not in (kind := str(getattr(features, "dtype", type(features).__name__))):
            raise FeatureError(f"{name} must be an array or a tensor of floating-point numbers, got {kind}")
    shapes = f"got {tuple(queries.shape)} and {tuple(gallery.shape)}"
    if queries.ndim != 2 or gallery.ndim not in (2, 3) or queries.shape[1] != gallery.shape[-1]:
        raise FeatureError(f"expected queries (N, D) and gallery (M, D) or (M, T, D), {shapes}")
    if 0 in gallery.shape:
        raise FeatureError(f"expected at least one image, {shapes}")


def checked_norms(vectors: Tensor, side: str, rows: Sequence[int] | Tensor | None = None) -> Tensor:
    """Float64 norms (B,) of vectors (B, D), or of the longest token of (B, T, D).

    Refuses one that is NaN, infinite or larger than float32 scores allow; names it by ``rows`` (B,), or its place.

    >>> checked_norms(torch.tensor([[3.0, 4.0]]), "query").tolist()
    [5.0]
    """
    parts = vectors.split(1024)  # torch makes a float64 copy
    norms = torch.cat([torch.linalg.vector_norm(part, dim=-1, dtype=torch.float64) for part in parts])  # (B,) or (B, T)
    norms = norms.amax(1) if norms.ndim == 2 else norms  # (B,), NaN where any token has one
    if len(bad := (~(norms <= LARGEST_NORM)).nonzero()):
        row = int(bad[0] if rows is None else rows[int(bad[0])])
        raise FeatureError(
            f"{side} row {row} has NaN, infinite or too large values: its norm is {norms[bad[0]].item()}"
        )
    return norms


def _blocks(gallery: Array, device: torch.device) -> Iterator[tuple[int, Tensor]]:
    """The gallery in pieces, (B, D) or (B, T, D) as they are stored, and the row that each begins with."""
    step = max(1, BLOCK_VECTORS // int(np.prod(gallery.shape[1:-1])))
    for start in range(0, len(gallery), step):
        yield start, _take(gallery, slice(start, start + step), device)


def _take(gallery: Array, rows: NDArray[np.int64] | slice, device: torch.device) -> Tensor:
    taken = gallery[rows]
    return (taken if isinstance(taken, Tensor) else torch.from_numpy(np.array(taken))).to(device)


def _hide(scores: Tensor, columns: Tensor) -> None:
    """Put the columns (n, E) that lie in scores (n, B) below everything."""
    query, at = ((columns >= 0) & (columns < scores.shape[1])).nonzero(as_tuple=True)
    scores[query, columns[query, at]] = -torch.inf
