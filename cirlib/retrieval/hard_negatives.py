"""Hard negatives: the gallery images that score highest for a query and are not what it asks for."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass
from tqdm.auto import trange

from cirlib.benchmarks.base import check_choice
from cirlib.retrieval.neighbours import Floats, IndexKind, Neighbours, Rows
from cirlib.retrieval.ranks import checked_norms
from cirlib.retrieval.row_lists import RowLists, padded_rows

Features = NDArray[np.floating] | torch.Tensor
Score = Annotated[float, Field(allow_inf_nan=False)] | None

MAX_QUERIES_AT_ONCE = 1024
MAX_CANDIDATES_AT_ONCE = 2**21  # queries × depth of one search: some 150 MB
DEEPER = 4  # how many times deeper the next search looks when filters left too few


class MinedNegatives(NamedTuple):
    """Negatives of N queries, best first; where fewer than K remain, the row ends in padding."""

    indices: Rows  # (N, K) gallery rows, -1 as padding
    scores: Floats  # (N, K) inner products with the query, -inf as padding


def mine_hard_negatives(
    queries: Features,
    gallery: Features,
    positives: RowLists,
    *,
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
    go, in this order: positives, rows within the margins, rows above ``max_score``, rows below ``min_score``. Of what
    remains, at most ``range_max`` rows, the first ``range_min`` are skipped and ``num_negatives`` taken. Margins are
    measured from the query's lowest-scoring positive, as in NV-Retriever (Moreira et al. 2024), whose best setting is
    ``relative_margin=0.05``. Scores are inner products of the features as given: pass unit vectors for cosines.

    Args:
        queries: (N, D) of any float type; computed in float32.
        gallery: (M, D) likewise, or (M, T, D): an image given as tokens counts once, by its best token.
        positives: per query the gallery rows that are never negatives (the target, and for composed queries the
            reference): N rows, N lists of rows, or (N, P) padded with -1.
        num_negatives: K, at least 1.
        range_min: how many of the hardest remaining rows to skip.
        range_max: how deep to look, at least ``range_min + num_negatives``. None: sentence-transformers' default,
            ``range_min + P + num_negatives``, or with margins or ``max_score`` ``range_min + P + 10 * num_negatives``;
            then queries left with too few are looked up 4 times deeper, and again, until they have enough or the
            gallery ends. That is slow where most queries rank their positives low: a number bounds it.
        max_score, min_score: what a negative scores at most, and at least.
        absolute_margin, relative_margin: a negative scores at most ``positive - absolute_margin``, and at most
            ``positive - |positive| * relative_margin``.
        sampling_strategy: "top" takes the hardest, "random" draws evenly from what remains; each query's draw depends
            on ``seed`` and its row alone.
        index: "flat" is exact; "ivf" and "hnsw" are approximate and pay off from some 100,000 images on.
        nlist, nprobe: lists that "ivf" makes (None: some 4 √M) and searches (None: an eighth of them, at least 8).
        seed: of the random draw and of the k-means of "ivf".
        rows: the queries to mine for, where several processes share them out; the others' rows are padding. None: all.
        progress: a bar over batches of queries.

    Returns:
        MinedNegatives: indices (N, K) and scores (N, K), sorted by falling score; -1 and -inf where too few remain.

    Raises:
        ValueError: an unknown option, a number out of range, shapes that do not fit, features that are not finite, a
            positive that is not a row of the gallery, or a margin where a query has no positive.

    >>> queries, gallery = np.array([[1.0, 0.0]]), np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])
    >>> mine_hard_negatives(queries, gallery, positives=[0], num_negatives=2, progress=False).indices.tolist()
    [[2, 1]]
    """
    check_choice(sampling_strategy, ("top", "random"), "sampling_strategy")
    rules = _Rules(
        num_negatives=num_negatives, range_min=range_min, range_max=range_max, max_score=max_score,
        min_score=min_score, absolute_margin=absolute_margin, relative_margin=relative_margin,
        random=sampling_strategy == "random", seed=seed,
    )  # fmt: skip
    asked, searched = _as_floats("queries", queries, (2,)), _as_floats("gallery", gallery, (2, 3))
    if asked.shape[1] != searched.shape[-1] or not searched.size:
        raise ValueError(f"expected queries and a gallery of one width, got {asked.shape} and {searched.shape}")
    padded = padded_rows(positives, len(asked), len(searched), "positives")  # (N, P)
    ceilings = _score_ceilings(asked, searched, padded, rules)  # (N,)
    chosen = np.arange(len(asked)) if rows is None else np.asarray(rows, np.int64)  # (n,)
    if len(chosen) and not 0 <= chosen.min() <= chosen.max() < len(asked):
        raise ValueError(f"rows must be queries from 0 to {len(asked) - 1}, got {chosen.tolist()[:5]}")
    neighbours = Neighbours(searched, index, seed, nlist, nprobe)
    return _Miner(asked, padded, ceilings, neighbours, rules, progress).mine(chosen)


@dataclass(frozen=True)
class _Rules:
    """Which candidates count as negatives, and which of those are taken; refuses numbers out of range."""

    num_negatives: PositiveInt
    range_min: NonNegativeInt
    range_max: int | None
    max_score: Score
    min_score: Score
    absolute_margin: Score
    relative_margin: Score
    random: bool
    seed: NonNegativeInt

    def __post_init__(self) -> None:
        least = self.range_min + self.num_negatives
        if self.range_max is not None and self.range_max < least:
            raise ValueError(f"range_max must be at least range_min + num_negatives = {least}, got {self.range_max}")

    @property
    def has_margin(self) -> bool:
        return self.absolute_margin is not None or self.relative_margin is not None


class _Miner(NamedTuple):
    """Searches for all queries at a first depth, then ever deeper for those left with too few."""

    queries: Floats  # (N, D)
    positives: Rows  # (N, P)
    ceilings: Floats  # (N,)
    neighbours: Neighbours
    rules: _Rules
    progress: bool

    def mine(self, pending: Rows) -> MinedNegatives:
        """The negatives of the queries ``pending`` (n,); padding for the rest."""
        shape, rules = (len(self.queries), self.rules.num_negatives), self.rules
        mined = MinedNegatives(np.full(shape, -1, np.int64), np.full(shape, -np.inf, np.float32))  # (N, K) both
        most_positives, size = self.positives.shape[1], self.neighbours.size
        drops_the_best = rules.has_margin or rules.max_score is not None
        range_max = rules.range_max or rules.range_min + shape[1] * (10 if drops_the_best else 1) + most_positives
        while len(pending):
            depth = min(range_max + most_positives, size)
            step = max(1, min(MAX_QUERIES_AT_ONCE, MAX_CANDIDATES_AT_ONCE // (depth * self.neighbours.num_tokens)))
            short = [
                self._mine_batch(pending[start : start + step], depth, range_max, mined)
                for start in trange(0, len(pending), step, desc=f"Mining in the top {depth}", disable=not self.progress)
            ]
            if rules.range_max is not None or depth == size:
                break
            pending, range_max = np.concatenate(short), range_max * DEEPER  # (fewer,)
        return mined

    def _mine_batch(self, batch: Rows, depth: int, range_max: int, mined: MinedNegatives) -> Rows:
        """Write the negatives of the queries ``batch`` (B,) into ``mined``; return the rows of those left short."""
        scores, rows = self.neighbours.search(self.queries[batch], depth)  # (B, W) both
        kept = _keep(scores, rows, self.positives[batch], self.ceilings[batch], self.rules)  # (B, W)
        kept &= kept.cumsum(axis=1) <= range_max  # (B, W)
        taken = _choose(kept, batch, self.rules)  # (B, W)
        query, column = np.nonzero(taken)  # (taken,) both
        slot = taken.cumsum(axis=1)[query, column] - 1  # (taken,)
        mined.indices[batch], mined.scores[batch] = -1, -np.inf
        mined.indices[batch[query], slot] = rows[query, column]
        mined.scores[batch[query], slot] = scores[query, column]
        return batch[_too_few(scores, kept, self.rules)]


def _keep(scores: Floats, rows: Rows, positives: Rows, ceilings: Floats, rules: _Rules) -> NDArray[np.bool_]:
    """Which candidates (B, W) are negatives, given positives (B, P) and the highest scores (B,) allowed."""
    stride = 2 + max(rows.max(), positives.max(initial=-1))  # rows run from -1
    query = np.arange(len(rows))[:, None] * stride  # (B, 1)
    kept = (rows >= 0) & ~np.isin(query + rows, query + positives)  # (B, W)
    kept &= scores <= ceilings[:, None]  # (B, W)
    if rules.min_score is not None:
        kept &= scores >= np.float32(rules.min_score)  # (B, W)
    return kept


def _too_few(scores: Floats, kept: NDArray[np.bool_], rules: _Rules) -> NDArray[np.bool_]:
    """Which queries (B,) lack negatives that a deeper search might find."""
    few = kept.sum(axis=1) < rules.range_min + rules.num_negatives  # (B,)
    if rules.min_score is None:
        return few
    lowest = scores[:, -1]  # (B,)
    return few & ((lowest >= np.float32(rules.min_score)) | np.isneginf(lowest))  # (B,)


def _choose(kept: NDArray[np.bool_], batch: Rows, rules: _Rules) -> NDArray[np.bool_]:
    """Which negatives (B, W) of the queries ``batch`` (B,) are taken."""
    counts = kept.cumsum(axis=1)  # (B, W)
    taken = kept & (counts > rules.range_min)  # (B, W)
    if not rules.random:
        return taken & (counts <= rules.range_min + rules.num_negatives)  # (B, W)
    for query, options in zip(batch, taken, strict=True):
        columns = np.flatnonzero(options)  # (options,)
        if len(columns) > rules.num_negatives:
            options[:] = False
            generator = np.random.default_rng((rules.seed, query))
            options[generator.choice(columns, rules.num_negatives, replace=False)] = True
    return taken


def _score_ceilings(queries: Floats, gallery: Floats, positives: Rows, rules: _Rules) -> Floats:
    """The highest score (N,) a negative may have: by ``max_score`` and by the margins."""
    max_score = np.inf if rules.max_score is None else rules.max_score
    ceilings = np.full(len(queries), max_score, np.float32)  # (N,)
    if not rules.has_margin:
        return ceilings
    lowest = _lowest_positive_scores(queries, gallery, positives)  # (N,)
    if rules.absolute_margin is not None:
        ceilings = np.minimum(ceilings, lowest - rules.absolute_margin)  # (N,)
    if rules.relative_margin is not None:
        ceilings = np.minimum(ceilings, lowest - np.abs(lowest) * rules.relative_margin)  # (N,)
    return ceilings


def _lowest_positive_scores(queries: Floats, gallery: Floats, positives: Rows) -> Floats:
    lowest = np.full(len(queries), np.inf, np.float32)  # (N,)
    for column in positives.T:  # (N,)
        scores = np.einsum("nd,n...d->n...", queries, gallery[column])  # (N,) or (N, T)
        scores = scores.reshape(len(queries), -1).max(1)  # (N,), of the best token
        lowest = np.minimum(lowest, np.where(column < 0, np.inf, scores))  # (N,)
    if np.isinf(lowest).any():
        query = int(np.isinf(lowest).argmax())
        raise ValueError(f"a margin needs a positive for every query, query {query} has none")
    return lowest.astype(np.float32)


def _as_floats(name: str, features: Features, dimensions: tuple[int, ...]) -> Floats:
    """Features (rows, D) or (rows, T, D) in float32, checked."""
    if isinstance(features, torch.Tensor):
        features = features.detach().to("cpu", torch.float32).numpy()
    if np.iscomplexobj(features) or np.ndim(features) not in dimensions:
        kind = f"{np.asarray(features).dtype} {np.shape(features)}"
        raise ValueError(f"{name} must be a matrix of real numbers, a row an item, got {kind}")
    found = np.ascontiguousarray(features, dtype=np.float32)
    checked_norms(torch.from_numpy(found), name)
    return found
