"""Hard negatives: the gallery images that score highest for a query and are not what it asks for."""

from numbers import Integral
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from cirlib.benchmarks.base import check_choice
from cirlib.retrieval.neighbours import Floats, IndexKind, Neighbours, Rows
from cirlib.retrieval.ranks import Array, RowLists, check_shapes, checked_norms, padded_rows
from cirlib.study.progress import progress as bar

MAX_QUERIES_AT_ONCE, MAX_CANDIDATES_AT_ONCE = 1024, 2**21  # queries, and queries × depth of one search: some 150 MB
MOST_COPIES, SAME = 16, 1e-3  # of one image, and the distance of two unit vectors that are told to be one
MARGIN = 0.05  # of the study's margin-filtered negatives: the cosine by which a query's target leads
DEEPER = 4  # how many times deeper the next search looks when filters left too few


class MinedNegatives(NamedTuple):
    """Negatives of N queries, best first; where fewer than K remain, the row ends in padding."""

    indices: Rows  # (N, K) gallery rows, -1 as padding
    scores: Floats  # (N, K) inner products with the query, -inf as padding


def mine_hard_negatives(
    queries: Array,
    gallery: Array,
    positives: RowLists,
    *,
    excluded: RowLists | None = None,
    num_negatives: int = 3,
    range_min: int = 0,
    range_max: int | None = None,
    max_score: float | None = None,
    min_score: float | None = None,
    absolute_margin: float | None = None,
    relative_margin: float | None = None,
    sampling_strategy: Literal["top", "random"] = "top",
    index: IndexKind = "flat",
    nlist: int | None = None,
    nprobe: int | None = None,
    seed: int = 0,
    rows: Rows | None = None,
    progress: bool = True,
) -> MinedNegatives:
    """Mine hard negatives with FAISS, by the rules of sentence-transformers' function of the same name.

    For each query the ``range_max + P`` best gallery rows are looked at, P being the most positives any query has. Out
    go positives, rows within the margins, above ``max_score`` or below ``min_score``. Of what remains, at most
    ``range_max`` rows, the first ``range_min`` are skipped and ``num_negatives`` taken. Scores are inner products in
    float32 of the features as given: pass unit vectors for cosines.

    Args:
        queries, gallery: (N, D) and (M, D), or (M, T, D): an image given as tokens counts once, by its best token.
        positives: N rows, N lists of rows, or (N, P) padded with -1, that are never a query's negatives: its target,
            and for composed queries its reference.
        excluded: given like positives, rows that are no negatives either, but from which no margin is taken.
        range_max: how deep to look. None: sentence-transformers' default, ``range_min + P + num_negatives``, with
            margins or ``max_score`` ``range_min + P + 10 * num_negatives``; then 4 times deeper, and again, for queries
            left with too few. That is slow where most queries rank their positives low: a number bounds it.
        absolute_margin, relative_margin: a negative scores at most ``positive - absolute_margin``, and at most
            ``positive - |positive| * relative_margin``, of the query's lowest-scoring positive, as in NV-Retriever
            (Moreira et al. 2024), whose best setting is ``relative_margin=0.05``.
        sampling_strategy: "top" takes the hardest, "random" draws evenly from what remains; each query's draw depends
            on ``seed`` and its row alone.
        index: "flat" is exact; "ivf" and "hnsw" are approximate and pay off from some 100,000 images on.
        nlist, nprobe: lists that "ivf" makes (None: some 4 √M) and searches (None: an eighth of them, at least 8).
        seed: of the random draw and of the k-means of "ivf".
        rows: the queries to mine for, where several processes share them out; the others' rows are padding. None: all.

    >>> queries, gallery = np.array([[1.0, 0.0]]), np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])
    >>> mine_hard_negatives(queries, gallery, positives=[0], num_negatives=2, progress=False).indices.tolist()
    [[2, 1]]
    """
    check_choice(sampling_strategy, ("top", "random"), "sampling_strategy")
    _check_whole("num_negatives", num_negatives, 1)
    _check_whole("range_min", range_min, 0)
    _check_whole("range_max", range_min + num_negatives if range_max is None else range_max, range_min + num_negatives)
    _check_whole("seed", seed, 0)
    limits = {"max_score": max_score, "absolute_margin": absolute_margin, "relative_margin": relative_margin}
    for name, value in (limits | {"min_score": min_score}).items():
        if value is not None and not np.isfinite(value):
            raise ValueError(f"{name} must be a finite number, got {value}")
    check_shapes(queries, gallery)
    asked, searched = _as_floats(queries, "queries"), _as_floats(gallery, "gallery")
    padded = padded_rows(positives, len(asked), len(searched), "positives")  # (N, P)
    ceilings = _score_ceilings(asked, searched, padded, *limits.values())  # (N,)
    floor, draws = np.float32(-np.inf if min_score is None else min_score), sampling_strategy == "random"
    neighbours = Neighbours(searched, index, seed, nlist, nprobe)
    left_out = np.concatenate([padded, padded_rows(excluded, len(asked), len(searched), "excluded")], axis=1)  # (N, P)
    miner = _Miner(asked, left_out, ceilings, floor, neighbours, num_negatives, range_min, seed if draws else None)
    factor = 1 if all(value is None for value in limits.values()) else 10  # the best may be dropped
    first = range_max or range_min + num_negatives * factor + left_out.shape[1]
    chosen = np.arange(len(asked)) if rows is None else np.asarray(rows, np.int64)  # (n,)
    return miner.mine(chosen, first, goes_deeper=range_max is None, progress=progress)


def copies(gallery: Array, rows: Rows) -> Rows:
    """Which images are those in ``rows`` (n,) under another id, by features that differ by rounding alone: (n, C).

    Of each at most `MOST_COPIES`, padded with -1. ``gallery``: (M, D) or (M, T, D).

    >>> copies(np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]]), np.array([0, 1]))
    array([[ 2],
           [-1]])
    """
    flat = torch.from_numpy(_as_floats(gallery, "gallery")).flatten(1)
    flat = torch.nn.functional.normalize(flat, dim=1).numpy()  # (M, T·D)
    generator, wanted = np.random.default_rng(0), min(len(flat), MOST_COPIES)
    axes = np.linalg.qr(generator.standard_normal((flat.shape[1], min(8, flat.shape[1]))))[0]
    shadows = flat @ axes.astype(np.float32)  # (M, 8), no two further apart than the features
    near = cKDTree(shadows).query(shadows[rows], range(1, wanted + 1), distance_upper_bound=SAME)[1]  # (n, C)
    found = np.full(near.shape, -1)
    for own, column in zip(found.T, near.T, strict=True):
        (at,) = np.nonzero((column < len(flat)) & (column != rows))
        at = at[np.linalg.norm(flat[column[at]] - flat[rows[at]], axis=1) <= SAME]
        own[at] = column[at]
    return found[:, (found >= 0).any(axis=0)]


def fill_at_random(indices: Rows, own: Rows, size: int, seed: int) -> None:
    """Puts other rows of a gallery of ``size``, each once, where the mined ``indices`` (N, K) are padding; in place.

    ``own`` (N, P) are rows that a query never gets. A gallery with fewer than K others gives a ValueError.

    >>> fill_at_random(indices := np.array([[2, -1]]), np.array([[0, 1]]), size=4, seed=0)
    >>> indices.tolist()
    [[2, 3]]
    """
    for query in np.flatnonzero((indices < 0).any(axis=1)):
        lacking = indices[query] < 0  # (K,)
        others = np.setdiff1d(np.arange(size), [*indices[query], *own[query]])
        generator = np.random.default_rng((seed, query))
        indices[query, lacking] = generator.choice(others, lacking.sum(), replace=False)


class _Miner(NamedTuple):
    """Searches for all queries at a first depth, then ever deeper for those left with too few."""

    queries: Floats  # (N, D)
    positives: Rows  # (N, P), and what is excluded
    ceilings: Floats  # (N,), the highest scores that a negative may have
    floor: np.float32  # the lowest
    neighbours: Neighbours
    num_negatives: int
    range_min: int
    seed: int | None  # of random draws; None: the top is taken

    def mine(self, pending: Rows, range_max: int, goes_deeper: bool, progress: bool) -> MinedNegatives:
        """The negatives of the queries ``pending`` (n,); padding for the rest."""
        shape, size = (len(self.queries), self.num_negatives), self.neighbours.size
        mined = MinedNegatives(np.full(shape, -1, np.int64), np.full(shape, -np.inf, np.float32))  # (N, K) both
        while len(pending):
            depth = min(range_max + self.positives.shape[1], size)
            step = max(1, min(MAX_QUERIES_AT_ONCE, MAX_CANDIDATES_AT_ONCE // (depth * self.neighbours.num_tokens)))
            starts = bar(range(0, len(pending), step), "mining", disable=not progress)
            short = [self._mine_batch(pending[start : start + step], depth, range_max, mined) for start in starts]
            if not goes_deeper or depth == size:
                break
            pending, range_max = np.concatenate(short), range_max * DEEPER  # (fewer,)
        return mined

    def _mine_batch(self, batch: Rows, depth: int, range_max: int, mined: MinedNegatives) -> Rows:
        """Write the negatives of the queries ``batch`` (B,) into ``mined``; return those that a deeper search helps."""
        scores, rows = self.neighbours.search(self.queries[batch], depth)  # (B, W) both
        positives = self.positives[batch]  # (B, P)
        offset = np.arange(len(batch))[:, None] * (2 + max(rows.max(), positives.max(initial=-1)))  # (B, 1)
        kept = (rows >= 0) & ~np.isin(offset + rows, offset + positives)  # (B, W)
        kept &= (scores <= self.ceilings[batch, None]) & (scores >= self.floor)  # (B, W)
        kept &= kept.cumsum(axis=1) <= range_max  # (B, W)
        taken = self._choose(kept, batch)  # (B, W)
        query, column = np.nonzero(taken)  # (taken,) both
        slot = taken.cumsum(axis=1)[query, column] - 1  # (taken,)
        mined.indices[batch], mined.scores[batch] = -1, -np.inf
        mined.indices[batch[query], slot] = rows[query, column]
        mined.scores[batch[query], slot] = scores[query, column]
        few = kept.sum(axis=1) < self.range_min + self.num_negatives  # (B,)
        lowest = scores[:, -1]  # (B,)
        return batch[few & ((lowest >= self.floor) | np.isneginf(lowest))]

    def _choose(self, kept: NDArray[np.bool_], batch: Rows) -> NDArray[np.bool_]:
        """Which negatives (B, W) of the queries ``batch`` (B,) are taken."""
        counts = kept.cumsum(axis=1)  # (B, W)
        taken = kept & (counts > self.range_min)  # (B, W)
        if self.seed is None:
            return taken & (counts <= self.range_min + self.num_negatives)  # (B, W)
        for query, options in zip(batch, taken, strict=True):
            columns = np.flatnonzero(options)  # (options,)
            if len(columns) > self.num_negatives:
                options[:] = False
                generator = np.random.default_rng((self.seed, query))
                options[generator.choice(columns, self.num_negatives, replace=False)] = True
        return taken


def _check_whole(name: str, number: object, least: int) -> None:
    if not isinstance(number, Integral) or number < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {number}")


def _score_ceilings(
    queries: Floats, gallery: Floats, positives: Rows, max_score: float | None, absolute: float | None,
    relative: float | None,
) -> Floats:  # fmt: skip
    """The highest score (N,) a negative may have: by ``max_score`` and by the margins."""
    ceilings = np.full(len(queries), np.inf if max_score is None else max_score, np.float32)  # (N,)
    if absolute is None and relative is None:
        return ceilings
    lowest = np.full(len(queries), np.inf, np.float32)  # (N,), of the positives
    for column in positives.T:  # (N,)
        scores = np.einsum("nd,n...d->n...", queries, gallery[column])  # (N,) or (N, T)
        scores = scores.reshape(len(queries), -1).max(1)  # (N,), of the best token
        lowest = np.minimum(lowest, np.where(column < 0, np.float32(np.inf), scores))  # (N,)
    if np.isinf(lowest).any():
        raise ValueError(f"a margin needs a positive for every query, query {np.isinf(lowest).argmax()} has none")
    if absolute is not None:
        ceilings = np.minimum(ceilings, lowest - absolute)  # (N,)
    if relative is not None:
        ceilings = np.minimum(ceilings, lowest - np.abs(lowest) * relative)  # (N,)
    return ceilings


def _as_floats(features: Array, name: str) -> Floats:
    """Features in float32, on the CPU, none too large for it."""
    if isinstance(features, torch.Tensor):
        features = features.detach().to("cpu", torch.float32).numpy()
    found = np.ascontiguousarray(features, np.float32)
    checked_norms(torch.from_numpy(found), name)
    return found
