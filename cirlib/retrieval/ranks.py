"""How well a retrieval ranked: counted ranks, recall, precision, intervals and paired tests.

N queries, M gallery images, T tokens of an image, D width. The score of a pair is the plain dot product
(nothing is normalised here); a gallery image that is a set of tokens scores by its best token.

Ranks are counted, never sorted. A float32 matrix product settles every pair whose order cannot be a matter
of rounding; the few close calls are decided again in float64. So two copies of one image always tie, and
the ranks depend neither on block sizes nor on the device nor on the library behind the matrix product
(which may well round the last columns of a matrix differently from the others).
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Numbers = NDArray[Any]
Array = Tensor | Numbers
Rows = Array | Sequence[int] | Sequence[Sequence[int]]

BLOCK_VECTORS = 1024  # gallery vectors scored at a time, so that the scores stay in the cache
LARGEST_NORM = 2.0**63  # the dot product of two such vectors still fits float32
VALUES_AT_ONCE = 2**22  # bounds the temporaries of float64 scoring and of resampling


@dataclass(frozen=True)
class Ranks:
    """Per query, how many other gallery images score above the target, and how many the same as it.

    Both are (N,) int64 on the CPU and leave out the target itself and whatever was excluded. The target's
    rank, from 1, is one of above + 1 … above + tied + 1, all as likely; metrics take the mean over them.
    """

    above: Tensor  # (N,)
    tied: Tensor  # (N,)

    def __len__(self) -> int:
        return len(self.above)


@dataclass(frozen=True)
class PairedTest:
    """A difference of means over the same queries (first minus second) and its two-sided p-value."""

    difference: float
    p_value: float


# ---------------------------------------------------------------------------------------------- ranks


@torch.no_grad()
def target_ranks(
    queries: Array, gallery: Array, targets: Rows, *, exclude: Rows | None = None, chunk_size: int = 1024
) -> Ranks:
    """Count, for each query, the gallery images that score above and the same as its target.

    "The same" means equal up to the rounding of float64, about 1e-13 of the norms' product.

    Args:
        queries: (N, D), any floating dtype; their device, which must know float64, does the work.
        gallery: (M, D), or (M, T, D) for token sets. May be memory-mapped: it is read once, block by block,
            and beyond it the memory is O(chunk_size + N·D), never more than chunk_size × M.
        targets: (N,) the gallery row each query wants, 0 … M - 1.
        exclude: gallery rows left out of each query's ranking (say, its reference image): (N,) or (N, E)
            with -1 for none, or N lists of rows.
        chunk_size: queries scored at a time; changes speed and memory, never the result.

    Raises:
        ValueError: shapes that do not fit; NaN, infinite or overflowing features; a target or an excluded
            row outside the gallery; a target that is excluded. The message names the row.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    search = _Search(queries, gallery, targets, exclude)
    with _full_precision(search.device):
        search.count(chunk_size)
    return Ranks(search.above.cpu(), search.tied.cpu())


@torch.no_grad()
def subset_ranks(queries: Array, gallery: Array, targets: Rows, subsets: Rows, *, exclude: Rows | None = None) -> Ranks:
    """Rank each target within a few images only, for CIRR's subset recall (Liu et al., ICCV 2021).

    Args:
        queries, gallery, targets, exclude: as in :func:`target_ranks`.
        subsets: (N, S) gallery rows, -1 where a subset is shorter; each holds its target.

    Raises:
        ValueError: as :func:`target_ranks`, and for a subset without its target or with a row twice.
    """
    search = _Search(queries, gallery, targets, exclude)
    members = _integers(subsets, "subsets").to(search.device)  # (N, S)
    _check_subsets(members, search.targets, search.gallery_size)
    scores, norms = search.scores_of(members.clamp(min=0))  # (N, S), (N, S)
    above, tied = search.compare(scores, norms, slice(None))  # (N, S), (N, S)
    query, row = search.hidden  # (P,), (P,): the target and the excluded of each query
    pair = torch.arange(len(members), device=search.device)[:, None] * search.gallery_size + members  # (N, S)
    counted = (members >= 0) & ~torch.isin(pair, query * search.gallery_size + row)  # (N, S)
    return Ranks((above & counted).sum(1).cpu(), (tied & counted).sum(1).cpu())


class _Search:
    """The checked inputs of one search, each target's own score in float64, and the counts so far."""

    def __init__(self, queries: Array, gallery: Array, targets: Rows, exclude: Rows | None) -> None:
        _check_shapes(queries, gallery)
        self.queries = torch.as_tensor(np.ascontiguousarray(queries) if isinstance(queries, np.ndarray) else queries)
        self.gallery = gallery  # (M, D) or (M, T, D), perhaps on disk
        self.device = self.queries.device
        self.gallery_size, self.width = gallery.shape[0], gallery.shape[-1]
        self.tokens = gallery.shape[1] if gallery.ndim == 3 else 1
        self.query_norms = _norms(self.queries, "query")  # (N,)
        self.targets = _checked_targets(targets, len(self.queries), self.gallery_size).to(self.device)
        self.hidden = _hidden_pairs(self.targets, exclude, self.gallery_size)  # (P,), (P,)
        scores, norms = self.scores_of(self.targets[:, None])  # (N, 1), (N, 1)
        self.target_scores, self.target_norms = scores[:, 0], norms[:, 0]  # (N,), (N,)
        self.above = torch.zeros_like(self.targets)  # (N,)
        self.tied = torch.zeros_like(self.targets)  # (N,)

    def scores_of(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and norms in float64, (N, S) each, of S gallery rows chosen for each query, (N, S)."""
        size = rows.shape[1]
        step = max(1, VALUES_AT_ONCE // (size * self.tokens * self.width))
        scores, norms = [], []
        for query, own in zip(self.queries.split(step), rows.split(step), strict=True):
            images = _take(self.gallery, own.flatten(), self.device)  # (n * S, T, D)
            norms.append(_norms(images, "gallery", own.flatten()).view(-1, size))
            images = images.double().unflatten(0, (-1, size))  # (n, S, T, D)
            scores.append(torch.einsum("nd,nstd->nst", query.double(), images).amax(2))
        return torch.cat(scores), torch.cat(norms)

    def count(self, chunk_size: int) -> None:
        """Compare every gallery image with every query's target, block by block."""
        coarse = self.queries.float()  # (N, D)
        step = max(1, BLOCK_VECTORS // self.tokens)
        for start in range(0, self.gallery_size, step):
            rows = torch.arange(start, min(start + step, self.gallery_size))  # (B,)
            images = _take(self.gallery, slice(start, start + step), self.device)  # (B, T, D)
            norms = _norms(images, "gallery", rows)  # (B,)
            vectors = images.transpose(0, 1).flatten(0, 1).float()  # (T * B, D)
            for first, query in zip(range(0, len(coarse), chunk_size), coarse.split(chunk_size), strict=True):
                scores = (query @ vectors.T).unflatten(1, (self.tokens, -1))  # (n, T, B)
                scores = scores.amax(1) if self.tokens > 1 else scores[:, 0]  # (n, B)
                self._hide(scores, first, start)
                self._count_block(scores, images, norms, first)

    def _hide(self, scores: Tensor, first: int, start: int) -> None:
        """Put what is not counted, the target and the excluded images, below everything."""
        row, column = self.hidden  # (P,), (P,), in order of column
        ends = torch.searchsorted(column, column.new_tensor([start, start + scores.shape[1]])).tolist()
        row, column = row[ends[0] : ends[1]] - first, column[ends[0] : ends[1]] - start
        here = (row >= 0) & (row < len(scores))
        scores[row[here], column[here]] = -torch.inf

    def _count_block(self, scores: Tensor, images: Tensor, norms: Tensor, first: int) -> None:
        """Count float32 scores (n, B) that rounding cannot have moved past the target; settle the rest."""
        some = slice(first, first + len(scores))
        slack = self._slack(self.query_norms[some], norms.max())  # (n,)
        low = (self.target_scores[some] - slack).float()[:, None]  # (n, 1)
        high = (self.target_scores[some] + slack).float()[:, None]  # (n, 1)
        flags = torch.empty_like(scores)  # 0.0 or 1.0: several times quicker to write and add than bool
        above = torch.gt(scores, high, out=flags).sum(1)  # (n,)
        near = torch.ge(scores, low, out=flags).sum(1) > above  # (n,)
        self.above[some] += above.long()
        if near.any():
            close = near.nonzero()[:, 0]  # (R,)
            doubtful = (scores[close] >= low[close]) & (scores[close] <= high[close])  # (R, B)
            self._settle(close + first, doubtful, images, norms)

    def _slack(self, query_norms: Tensor, largest: Tensor) -> Tensor:
        """How far off a float32 dot product can be, whatever its order of summation; and underflow."""
        rounding = (self.width + 8) * 2.0**-24 * query_norms * largest
        return rounding + self.width * torch.finfo(torch.float32).tiny * (1 + query_norms + largest)

    def _settle(self, rows: Tensor, doubtful: Tensor, images: Tensor, norms: Tensor) -> None:
        """Decide the doubtful pairs (R, B) of queries rows (R,) in float64."""
        columns = doubtful.any(0).nonzero()[:, 0]  # (C,)
        vectors = images[columns].flatten(0, 1).double()  # (C * T, D)
        scores = (self.queries[rows].double() @ vectors.T).unflatten(1, (-1, self.tokens)).amax(2)  # (R, C)
        above, tied = self.compare(scores, norms[columns], rows)  # (R, C), (R, C)
        self.above[rows] += (above & doubtful[:, columns]).sum(1)
        self.tied[rows] += (tied & doubtful[:, columns]).sum(1)

    def compare(self, scores: Tensor, norms: Tensor, rows: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Which float64 scores (R, C) lie above, and which equal, the targets' of queries rows (R,)."""
        reach = norms + self.target_norms[rows, None]  # (R, C)
        rounding = self.width * 2.0**-52 * self.query_norms[rows, None] * reach  # (R, C)
        gap = scores - self.target_scores[rows, None]  # (R, C)
        return gap > rounding, gap.abs() <= rounding


def _take(gallery: Array, rows: Tensor | slice, device: torch.device) -> Tensor:
    """Gallery images (B, T, D) as they are stored; an image that is one vector has one token."""
    if isinstance(gallery, Tensor):
        taken = gallery[rows.to(gallery.device) if isinstance(rows, Tensor) else rows].to(device)
    else:
        taken = torch.from_numpy(np.array(gallery[rows.cpu().numpy() if isinstance(rows, Tensor) else rows]))
    return taken.to(device) if taken.ndim == 3 else taken.to(device)[:, None]


def _norms(vectors: Tensor, side: str, rows: Tensor | None = None) -> Tensor:
    """Float64 norms (B,) of vectors (B, D), or of the longest token of (B, T, D); refuses bad values."""
    norms: Tensor = torch.linalg.vector_norm(vectors, dim=-1, dtype=torch.float64)  # (B,) or (B, T)
    norms = norms.amax(1) if norms.ndim == 2 else norms  # (B,), NaN where any token has one
    bad = ~(norms <= LARGEST_NORM)
    if bad.any():
        first = int(bad.nonzero()[0])
        row = first if rows is None else int(rows[first])
        raise ValueError(
            f"{side} row {row} has NaN, infinite or too large values: "
            f"its norm is {float(norms[first])}, at most {LARGEST_NORM:.1e} is allowed"
        )
    return norms


def _check_shapes(queries: Tensor, gallery: Array) -> None:
    for name, features in (("queries", queries), ("gallery", gallery)):
        if not isinstance(features, Tensor | np.ndarray):
            raise ValueError(f"{name} must be an array or a tensor, got {type(features).__name__}")
        if not (features.is_floating_point() if isinstance(features, Tensor) else features.dtype.kind == "f"):
            raise ValueError(f"{name} must be floating-point numbers, got {features.dtype}")
    shapes = f"queries {tuple(queries.shape)}, gallery {tuple(gallery.shape)}"
    if queries.ndim != 2 or gallery.ndim not in (2, 3) or queries.shape[1] != gallery.shape[-1]:
        raise ValueError(f"expected queries (N, D) and gallery (M, D) or (M, T, D), got {shapes}")
    if 0 in queries.shape or 0 in gallery.shape:
        raise ValueError(f"nothing to rank: {shapes}")


def _integers(rows: object, name: str) -> Tensor:
    """Any array or list of whole numbers as an int64 tensor on its own device."""
    try:
        found = torch.as_tensor(rows)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{name} must be gallery rows (integers), got {str(rows)[:60]}") from None
    if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise ValueError(f"{name} must be gallery rows (integers), got {found.dtype}")
    return found.long()


def _checked_targets(targets: Rows, queries: int, gallery_size: int) -> Tensor:
    rows = _integers(targets, "targets")  # (N,)
    if rows.shape != (queries,):
        raise ValueError(f"expected one target a query, ({queries},), got {tuple(rows.shape)}")
    _check_range(rows, torch.arange(queries), 0, gallery_size, "target")
    return rows


def _check_range(rows: Tensor, query: Tensor, lowest: int, gallery_size: int, name: str) -> None:
    bad = ((rows < lowest) | (rows >= gallery_size)).nonzero()
    if len(bad):
        at = int(bad[0, 0])
        raise ValueError(
            f"query {int(query[at])}: {name} {int(rows[at])} is not a row of the gallery (0 … {gallery_size - 1})"
        )


def _hidden_pairs(targets: Tensor, exclude: Rows | None, gallery_size: int) -> tuple[Tensor, Tensor]:
    """(query, gallery row) of the targets and of everything excluded, in order of gallery row."""
    query, row = _excluded_pairs(exclude, len(targets))  # (E,), (E,)
    _check_range(row, query, -1, gallery_size, "excluded")
    query, row = query[row >= 0].to(targets.device), row[row >= 0].to(targets.device)
    if (clash := (targets[query] == row).nonzero()).numel():
        at = int(clash[0, 0])
        raise ValueError(f"query {int(query[at])}: its target {int(row[at])} is excluded")
    query = torch.cat([torch.arange(len(targets), device=targets.device), query])  # (P,)
    row, order = torch.cat([targets, row]).sort()  # (P,)
    return query[order], row


def _excluded_pairs(exclude: Rows | None, queries: int) -> tuple[Tensor, Tensor]:
    """What exclude lists, as (query, gallery row) pairs; -1 stands for none and is kept."""
    if exclude is None:
        return torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long)
    if not isinstance(exclude, Tensor | np.ndarray | Sequence):
        raise ValueError(f"exclude must be rows or lists of rows, one a query, got {exclude!r}")
    if len(exclude) != queries:
        raise ValueError(f"exclude has {len(exclude)} entries for {queries} queries")
    if isinstance(exclude, Tensor | np.ndarray) or all(isinstance(rows, int | np.integer) for rows in exclude):
        table = _integers(exclude, "exclude").reshape(queries, -1).cpu()  # (N, E)
        return torch.arange(queries).repeat_interleave(table.shape[1]), table.flatten()
    lists = [_row_list(rows, query) for query, rows in enumerate(exclude)]
    flat = _integers(list(chain.from_iterable(lists)) or np.empty(0, np.int64), "exclude")  # (E,)
    return torch.arange(queries).repeat_interleave(torch.tensor([len(rows) for rows in lists])), flat


def _row_list(rows: object, query: int) -> list[int]:
    if isinstance(rows, int | np.integer):
        return [int(rows)]
    if not isinstance(rows, Iterable):
        raise ValueError(f"query {query}: excluded {rows!r} is no row and no list of rows")
    return list(_plain(rows))  # type: ignore[arg-type]


def _check_subsets(members: Tensor, targets: Tensor, gallery_size: int) -> None:
    if members.ndim != 2 or len(members) != len(targets):
        raise ValueError(f"expected subsets ({len(targets)}, S), got {tuple(members.shape)}")
    query = torch.arange(len(members)).repeat_interleave(members.shape[1])
    _check_range(members.flatten(), query, -1, gallery_size, "subset member")
    absent = (members != targets[:, None]).all(1).nonzero()
    if len(absent):
        raise ValueError(f"query {int(absent[0])}: its subset lacks its target {int(targets[absent[0]])}")
    ordered = members.sort(1).values  # (N, S)
    twice = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any(1).nonzero()
    if len(twice):
        raise ValueError(f"query {int(twice[0])}: its subset names a row twice")


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Float32 products without TF32, bfloat16 passes or autocast, whose errors exceed the slack."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


# ---------------------------------------------------------------------------------- metrics of ranks


def recall_at_k(ranks: Ranks, k: int) -> Tensor:
    """Probability (N,), float64, that the target is among the first k when ties fall at random.

    That is clip((k - above) / (tied + 1), 0, 1): 0 or 1 without ties; a model that gives every image the
    same score gets :func:`chance_recall` exactly. Raises ValueError for k below 1.
    """
    _check_k(k)
    return ((k - ranks.above).double() / (ranks.tied + 1)).clamp(0, 1)


def chance_recall(k: int, gallery_size: int) -> float:
    """Recall at k of a ranking that knows nothing: k / gallery_size, at most 1."""
    _check_k(k)
    if gallery_size < 1:
        raise ValueError(f"gallery_size must be at least 1, got {gallery_size}")
    return min(1.0, k / gallery_size)


def median_rank(ranks: Ranks) -> float:
    """Median over queries of the target's expected rank, above + 1 + tied / 2; the best is 1."""
    _check_queries(len(ranks))
    return float(np.median((ranks.above + 1 + ranks.tied / 2).double().numpy()))


def reciprocal_rank(ranks: Ranks) -> Tensor:
    """Expected 1 / rank (N,), float64: the mean of 1/r over r = above + 1 … above + tied + 1."""
    first, last = (ranks.above + 1).double(), (ranks.above + ranks.tied + 1).double()  # (N,), (N,)
    harmonic = torch.digamma(last + 1) - torch.digamma(first)  # 1/first + … + 1/last
    return torch.where(ranks.tied == 0, 1 / first, harmonic / (ranks.tied + 1))


def mean_reciprocal_rank(ranks: Ranks) -> float:
    """Mean over queries of :func:`reciprocal_rank`, 0 … 1; ties count by expectation."""
    _check_queries(len(ranks))
    return float(reciprocal_rank(ranks).mean())


def average_precision_at_k(
    retrieved: Array | Sequence[Sequence[Hashable]], relevant: Sequence[Collection[Hashable]], k: int
) -> Tensor:
    """Average precision of the first k retrieved, (N,) float64, as CIRCO defines it (Baldrati et al., 2023).

    AP@k = 1 / min(k, R) · Σ_i precision@i · [item i is relevant], R the number of relevant items.

    Args:
        retrieved: (N, ≥ k) ids or gallery rows, best first.
        relevant: per query the wanted ids or rows, at least one.
        k: 1 or more.

    Raises:
        ValueError: lengths that differ; a list shorter than k or with an item twice; nothing relevant.
    """
    _check_k(k)
    if len(retrieved) != len(relevant):
        raise ValueError(f"{len(retrieved)} rankings but {len(relevant)} sets of relevant items")
    _check_queries(len(relevant))
    for query, wanted in enumerate(relevant):
        if isinstance(wanted, str):
            raise ValueError(f"relevant must be a list of ids a query, query {query} has the text {wanted!r}")
    pairs = zip(retrieved, relevant, strict=True)
    values = [_average_precision(_plain(row), set(_plain(wanted)), k, n) for n, (row, wanted) in enumerate(pairs)]
    return torch.tensor(values, dtype=torch.float64)


def average_precision_of_ranks(ranks: Ranks, query: Rows, k: int) -> Tensor:
    """The same average precision, (N,) float64, from the rank of every relevant item; ties by expectation.

    Of n images with the same score after ``above`` others, r of them relevant, each of the n places holds a relevant
    one with probability r / n, and then (r - 1) / (n - 1) of those before it in the tie are relevant too (McSherry &
    Najork, 2008). A model that gives every image the same score gets :func:`chance_average_precision`.

    Args:
        ranks: of P pairs of query and relevant item, from :func:`target_ranks`.
        query: (P,) the query of each pair, 0 … N - 1, each query at least once.
        k: 1 or more.

    Raises:
        ValueError: k below 1; ``query`` of another length, or with a query that has no pair.
    """
    _check_k(k)
    owner = _integers(query, "query").cpu().numpy()  # (P,)
    if owner.shape != (len(ranks),):
        raise ValueError(f"expected the query of each of {len(ranks)} ranks, got shape {owner.shape}")
    _check_queries(len(owner))
    if (counts := np.bincount(owner)).min() == 0:
        raise ValueError(f"query {int(counts.argmin())} has no relevant item")
    above, tied = ranks.above.numpy(), ranks.tied.numpy()  # (P,), (P,)
    values = [_expected_precision(above[owner == n], tied[owner == n], k) for n in range(len(counts))]
    return torch.tensor(values, dtype=torch.float64)


def _expected_precision(above: Numbers, tied: Numbers, k: int) -> float:
    total = 0.0
    for first in np.unique(above):  # a tie after the other
        mine = above == first
        size, relevant, before = tied[mine][0] + 1, mine.sum(), (above < first).sum()
        places = np.arange(min(size, max(0, k - first)))  # in the tie
        hits = before + 1 + places * (relevant - 1) / max(1, size - 1)
        total += (relevant / size * hits / (first + places + 1)).sum()
    return float(total / min(k, len(above)))


def chance_average_precision(k: int, relevant: int, gallery_size: int) -> float:
    """Expected average precision at k of a ranking that knows nothing, of ``relevant`` items in the gallery.

    Item i is relevant with probability R / M, and then (i - 1) (R - 1) / (M - 1) of those before it are too.
    """
    _check_k(k)
    if not 1 <= relevant <= gallery_size:
        raise ValueError(f"expected 1 to gallery_size = {gallery_size} relevant items, got {relevant}")
    before = np.arange(min(k, gallery_size))  # (k,)
    hits = 1 + before * (relevant - 1) / max(1, gallery_size - 1)  # (k,)
    return float((relevant / gallery_size * hits / (before + 1)).sum() / min(k, relevant))


def _average_precision(row: list[Hashable], wanted: set[Hashable], k: int, query: int) -> float:
    if len(row) < k:
        raise ValueError(f"query {query} has {len(row)} retrieved items, k is {k}")
    if len(set(row[:k])) < k:
        raise ValueError(f"query {query} has an item twice among its first {k}")
    if not wanted:
        raise ValueError(f"query {query} has no relevant item")
    if -1 in wanted:
        raise ValueError(f"query {query} has -1 among its relevant items: leave the padding out")
    hits = np.array([item in wanted for item in row[:k]])  # (k,)
    precision = np.cumsum(hits) / np.arange(1, k + 1)  # (k,)
    return float((precision * hits).sum() / min(k, len(wanted)))


def _plain(items: object) -> list[Hashable]:
    """Python values: the elements of a tensor are equal to nothing but themselves as set members."""
    plain = items.tolist() if isinstance(items, Tensor | np.ndarray) else list(items)  # type: ignore[call-overload]
    return [item.item() if isinstance(item, Tensor | np.generic) else item for item in plain]


# -------------------------------------------------------------------------------- intervals and tests


def bootstrap_ci(
    values: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    groups: Sequence[Hashable] | Numbers | None = None,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over queries (Efron & Tibshirani, 1993, chapter 13).

    Args:
        values: (N,) one number a query, such as :func:`recall_at_k`.
        level: the interval's nominal coverage, between 0 and 1.
        resamples: bootstrap samples drawn.
        seed: the same seed gives the same interval.
        groups: (N,) each query's category. Then the interval is of the mean of the categories' means, and
            queries are drawn within their category.

    Raises:
        ValueError: no query, values that are not finite, groups of another length, level outside (0, 1).

    Values that are all the same give an interval of no width: the data then show no variation to resample.
    """
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(f"expected 0 < level < 1 and resamples >= 1, got {level} and {resamples}")
    rng = np.random.default_rng(seed)
    parts = _by_group(_values(values, "values"), groups)
    means = np.mean([_resampled_means(part, resamples, rng) for part in parts], axis=0)  # (R,)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_test(
    a: ArrayLike,
    b: ArrayLike,
    *,
    resamples: int = 10_000,
    seed: int = 0,
    groups: Sequence[Hashable] | Numbers | None = None,
) -> PairedTest:
    """Two-sided paired randomisation test of mean(a) - mean(b) over the same queries.

    Under the null hypothesis a query's two values could be swapped; so signs of the differences are drawn at
    random, and p = (as extreme as observed + 1) / (resamples + 1) (Phipson & Smyth, 2010).

    Args:
        a, b: (N,) each, query by query.
        resamples, seed, groups: as in :func:`bootstrap_ci`; with groups the difference is of the means of
            the categories' means.

    Raises:
        ValueError: no query, lengths that differ, values that are not finite.
    """
    first, second = _values(a, "a"), _values(b, "b")  # (N,), (N,)
    if len(first) != len(second):
        raise ValueError(f"a has {len(first)} values, b has {len(second)}")
    _check_resamples(resamples)
    parts = _by_group(first - second, groups)
    change = np.concatenate([part / len(part) / len(parts) for part in parts])  # (N,), adds up to the difference
    totals = _sign_flipped(change, resamples, np.random.default_rng(seed))  # (R,)
    extreme = np.abs(totals) >= abs(change.sum()) - 1e-12 * np.abs(change).sum()  # (R,)
    return PairedTest(float(change.sum()), float((extreme.sum() + 1) / (resamples + 1)))


def holm(p_values: Sequence[float] | Numbers) -> list[float]:
    """P-values corrected for testing them all, in the order given (Holm, 1979).

    Raises:
        ValueError: a value outside 0 … 1, or NaN.
    """
    p = np.asarray(p_values, dtype=np.float64)  # (K,)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"expected a list of p-values between 0 and 1, got {p_values}")
    order = np.argsort(p, kind="stable")  # (K,)
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))  # (K,)
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(stepped, 1)
    return [float(value) for value in corrected]


def _resampled_means(values: Numbers, resamples: int, rng: np.random.Generator) -> Numbers:
    """Means (R,) of resamples of values (N,); few distinct values are drawn as counts, exactly as well."""
    distinct, counts = np.unique(values, return_counts=True)  # (U,), (U,)
    size, few = len(values), 8 * len(distinct) <= len(values)
    means = []
    for rows in _pieces(resamples, len(distinct) if few else size):
        if few:
            means.append(rng.multinomial(size, counts / size, size=rows) @ distinct / size)
        else:
            means.append(values[rng.integers(size, size=(rows, size))].mean(1))
    return np.concatenate(means)


def _sign_flipped(change: Numbers, resamples: int, rng: np.random.Generator) -> Numbers:
    """Totals (R,) of change (N,) under random signs, drawn as counts for each distinct size."""
    sizes, counts = np.unique(np.abs(change[change != 0]), return_counts=True)  # (U,), (U,)
    totals = [
        (2 * rng.binomial(counts, 0.5, size=(rows, len(sizes))) - counts) @ sizes
        for rows in _pieces(resamples, len(sizes))
    ]
    return np.concatenate(totals)


def _pieces(total: int, width: int) -> Iterator[int]:
    """Sizes that add up to total, each small enough for rows of this width."""
    step = max(1, VALUES_AT_ONCE // max(1, width))
    return (min(step, total - start) for start in range(0, total, step))


def _by_group(values: Numbers, groups: Sequence[Hashable] | Numbers | None) -> list[Numbers]:
    """Values (N,) split by group, the groups in order of first appearance."""
    if groups is None:
        return [values]
    if len(groups) != len(values):
        raise ValueError(f"{len(groups)} groups for {len(values)} values")
    names = _plain(groups)
    return [values[[name == one for name in names]] for one in dict.fromkeys(names)]


def _values(values: ArrayLike, name: str) -> Numbers:
    """One finite float64 number a query, (N,)."""
    found = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=np.float64)
    if found.ndim != 1:
        raise ValueError(f"{name} must be one number a query, got shape {found.shape}")
    _check_queries(len(found))
    if not np.isfinite(found).all():
        at = int(np.argmin(np.isfinite(found)))
        raise ValueError(f"{name} of query {at} is {found[at]}")
    return found


def _check_queries(queries: int) -> None:
    if queries < 1:
        raise ValueError("needs at least one query, got none")


def _check_resamples(resamples: int) -> None:
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")


def _check_k(k: int) -> None:
    if not k >= 1:
        raise ValueError(f"k must be at least 1, got {k}")
