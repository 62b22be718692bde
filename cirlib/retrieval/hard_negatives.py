"""Hard negatives: the gallery images that score highest for a query and are not what it asks for."""

import operator
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from cirlib.retrieval.kernels import newest_kernels

with newest_kernels():
    import faiss

IndexKind = Literal["flat", "ivf", "hnsw"]
SamplingStrategy = Literal["top", "random"]
Features = NDArray[np.floating] | torch.Tensor
Positives = NDArray[np.integer] | torch.Tensor | Sequence[int] | Sequence[Iterable[int]]
Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

MAX_QUERIES_AT_ONCE = 1024
GALLERY_BLOCK = 8192  # of one matrix product, 32 MB of scores; faiss' own 1,024 takes twice the time on CPUs
MAX_CANDIDATES_AT_ONCE = 2**21  # queries × depth of one search: some 150 MB
MAX_DEPTH_ON_GPU = 2048  # faiss finds no more than that many neighbours on a GPU
LARGEST_NORM = 2.0**63  # the inner product of two such vectors still fits float32
DEEPER = 4  # how many times deeper the next search looks when filters left too few


class MinedNegatives(NamedTuple):
    """Negatives of N queries, best first; where fewer than K remain, the row ends in padding."""

    indices: Rows  # (N, K) gallery rows, -1 as padding
    scores: Floats  # (N, K) inner products with the query, -inf as padding


def mine_hard_negatives(
    queries: Features,
    gallery: Features,
    positives: Positives,
    *,
    num_negatives: int = 3,
    range_min: int = 0,
    range_max: int | None = None,
    max_score: float | None = None,
    min_score: float | None = None,
    absolute_margin: float | None = None,
    relative_margin: float | None = None,
    sampling_strategy: SamplingStrategy = "top",
    index: IndexKind = "flat",
    nlist: int | None = None,
    nprobe: int | None = None,
    seed: int = 0,
    rows: Rows | None = None,
    progress: bool = True,
) -> MinedNegatives:
    """Mine hard negatives with FAISS, by the rules of sentence-transformers' function of the same name.

    For each query the ``range_max + P`` best gallery rows are looked at, P being the most positives any
    query has. Out go, in this order: positives, rows within the margins, rows above ``max_score``, rows
    below ``min_score``. Of what remains, at most ``range_max`` rows, the first ``range_min`` are skipped
    and ``num_negatives`` are taken. Margins are measured from the query's lowest-scoring positive, as in
    NV-Retriever (Moreira et al. 2024), whose best setting is ``relative_margin=0.05``.

    Scores are inner products of the features as given: pass unit vectors for cosine similarity.

    Args:
        queries: (N, D) array or tensor of any float type; computed in float32.
        gallery: (M, D) likewise.
        positives: per query the gallery rows that are never negatives (the target, and for composed
            queries the reference): N rows, N lists of rows, or (N, P) padded with -1.
        num_negatives: K, at least 1.
        range_min: how many of the hardest remaining rows to skip, at least 0.
        range_max: how deep to look, at least ``range_min + num_negatives``. None: sentence-transformers'
            default, ``range_min + P + num_negatives``, or with margins or ``max_score``
            ``range_min + P + 10 * num_negatives``; but queries left with fewer than ``num_negatives`` are
            looked up 4 times deeper, and again, until they have enough or the gallery ends. That is slow
            where most queries rank their positives low: a number bounds it.
        max_score: a negative scores at most this.
        min_score: a negative scores at least this.
        absolute_margin: a negative scores at most ``positive - absolute_margin``.
        relative_margin: a negative scores at most ``positive - |positive| * relative_margin``.
        sampling_strategy: "top" takes the hardest, "random" draws evenly from what remains; each query's
            draw depends on ``seed`` and its row alone.
        index: "flat" is exact; "ivf" and "hnsw" are approximate and pay off from some 100,000 images on.
        nlist: lists of "ivf"; None: some 4 √M, no fewer than 39 images a list.
        nprobe: lists that "ivf" searches, at most ``nlist``; None: an eighth of them, at least 8.
        seed: of the random draw and of the k-means of "ivf".
        rows: the queries to mine for, where several processes share them out: what each finds is what one process
            finds for them, up to the rounding of scores, and the rows of the others are padding. None: all.
        progress: a bar over batches of queries.

    Returns:
        MinedNegatives: indices (N, K) int64 and scores (N, K) float32, sorted by falling score; -1 and -inf
        where too few remain.

    Raises:
        ValueError: an unknown option, a number out of range, shapes that do not fit, features that are not
            finite, a positive that is not a row of the gallery, or a margin where a query has no positive.
    """
    rules = _Rules(
        num_negatives=num_negatives,
        range_min=range_min,
        range_max=range_max,
        max_score=max_score,
        min_score=min_score,
        absolute_margin=absolute_margin,
        relative_margin=relative_margin,
        sampling_strategy=sampling_strategy,
        seed=seed,
    )
    check_choice("index", index, get_args(IndexKind))
    check_choice("sampling_strategy", sampling_strategy, get_args(SamplingStrategy))
    rules.check_ranges()
    asked = as_matrix("queries", queries)  # (N, D)
    searched = as_matrix("gallery", gallery)  # (M, D)
    check_fit(asked, searched)
    padded = _as_padded(positives, len(asked), len(searched))  # (N, P)
    ceilings = _score_ceilings(asked, searched, padded, rules)  # (N,)
    chosen = np.arange(len(asked)) if rows is None else _query_rows(rows, len(asked))  # (n,)
    neighbours = Neighbours(searched, index, seed, nlist, nprobe)
    return _Miner(asked, padded, ceilings, neighbours, rules, progress).mine(chosen)


@dataclass(frozen=True)
class _Rules:
    """Which candidates count as negatives, and which of those are taken."""

    num_negatives: int
    range_min: int
    range_max: int | None
    max_score: float | None
    min_score: float | None
    absolute_margin: float | None
    relative_margin: float | None
    sampling_strategy: str
    seed: int

    @property
    def has_margin(self) -> bool:
        return self.absolute_margin is not None or self.relative_margin is not None

    def check_ranges(self) -> None:
        for name in ("num_negatives", "range_min", "range_max", "seed"):
            value = getattr(self, name)
            if not (isinstance(value, int | np.integer) or (name == "range_max" and value is None)):
                raise ValueError(f"{name} must be a whole number, got {value!r}")
        for name in ("max_score", "min_score", "absolute_margin", "relative_margin"):
            value = getattr(self, name)
            if value is not None and value != value:
                raise ValueError(f"{name} must be a number, got {value}")
        if self.num_negatives < 1:
            raise ValueError(f"num_negatives must be at least 1, got {self.num_negatives}")
        if self.range_min < 0:
            raise ValueError(f"range_min must be at least 0, got {self.range_min}")
        if self.range_max is not None and self.range_max < self.range_min + self.num_negatives:
            raise ValueError(
                f"range_max must be at least range_min + num_negatives = "
                f"{self.range_min + self.num_negatives}, got {self.range_max}"
            )

    def first_range_max(self, most_positives: int) -> int:
        """The depth of the first search, counted in negatives."""
        if self.range_max is not None:
            return self.range_max
        drops_the_best = self.has_margin or self.max_score is not None
        return self.range_min + self.num_negatives * (10 if drops_the_best else 1) + most_positives


def check_choice(name: str, given: str, allowed: tuple[str, ...]) -> None:
    """Refuses, naming the option, what is not allowed."""
    if given not in allowed:
        raise ValueError(f"{name} must be one of {list(allowed)}, got {given!r}")


class Neighbours:
    """A FAISS index over the gallery, on a GPU where faiss has one."""

    def __init__(
        self, gallery: Floats, kind: str, seed: int, nlist: int | None = None, nprobe: int | None = None
    ) -> None:
        _check_lists(kind, nlist, nprobe, len(gallery))
        self.size, self.nprobe = len(gallery), nprobe
        self.cpu_index = _build_index(gallery, kind, seed, nlist)
        self.gpu_index = None if kind == "hnsw" else _to_gpu(self.cpu_index)

    def search(self, queries: Floats, depth: int) -> tuple[Floats, Rows]:
        """Scores and gallery rows (B, depth), best first; -inf and -1 where the index finds no more."""
        use_gpu = self.gpu_index is not None and depth <= MAX_DEPTH_ON_GPU
        index = self.gpu_index if use_gpu else self.cpu_index
        effort = _effort(self.cpu_index, depth, self.nprobe)
        with _wide_blocks():
            scores, rows = index.search(queries, depth, params=effort)  # (B, depth) both
        scores[rows < 0] = -np.inf  # (B, depth)
        return scores, rows


@contextmanager
def _wide_blocks() -> Iterator[None]:
    """Lets faiss score ``GALLERY_BLOCK`` images at a time: a setting of the whole process, given back afterwards."""
    before = faiss.cvar.distance_compute_blas_database_bs
    faiss.cvar.distance_compute_blas_database_bs = GALLERY_BLOCK
    try:
        yield
    finally:
        faiss.cvar.distance_compute_blas_database_bs = before


def _check_lists(kind: str, nlist: int | None, nprobe: int | None, size: int) -> None:
    for name, value, most in (("nlist", nlist, size), ("nprobe", nprobe, nlist)):
        if value is None:
            continue
        if kind != "ivf":
            raise ValueError(f"{name} goes with index 'ivf' only, got {kind!r}")
        if value < 1 or (most is not None and value > most):
            raise ValueError(f"{name} must be from 1 to {most or 'nlist'}, got {value}")


def _build_index(gallery: Floats, kind: str, seed: int, nlist: int | None) -> faiss.Index:
    if kind == "flat":
        index = faiss.IndexFlatIP(gallery.shape[1])
        index.add(gallery)
        return index
    return _build_ivf(gallery, seed, nlist) if kind == "ivf" else _build_hnsw(gallery)


def _build_ivf(gallery: Floats, seed: int, nlist: int | None) -> faiss.IndexIVFFlat:
    """An inverted file of ``nlist`` lists, or some 4 √M, but no fewer than 39 images a list, as faiss' k-means asks."""
    size, width = gallery.shape
    lists = nlist or max(1, min(int(4 * size**0.5), size // 39))
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed = seed
    index.train(gallery)
    index.add(gallery)
    return index


def _build_hnsw(gallery: Floats) -> faiss.IndexHNSWFlat:
    """A graph of 32 links an image, built by one thread: several would build another one each time."""
    index = faiss.IndexHNSWFlat(gallery.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    threads = faiss.omp_get_max_threads()
    try:
        faiss.omp_set_num_threads(1)
        index.add(gallery)
    finally:
        faiss.omp_set_num_threads(threads)
    return index


def _to_gpu(index: faiss.Index) -> faiss.Index | None:
    """A copy of the index on this process' GPU; None where faiss has no GPU."""
    if not hasattr(faiss, "get_num_gpus") or faiss.get_num_gpus() == 0:
        return None
    own = torch.cuda.current_device() if torch.cuda.is_available() else 0
    return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), own, index)


def _effort(index: faiss.Index, depth: int, nprobe: int | None) -> faiss.SearchParameters | None:
    """How hard an approximate index has to look to find ``depth`` neighbours."""
    if isinstance(index, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(efSearch=max(128, 2 * depth))
    if isinstance(index, faiss.IndexIVF):
        if nprobe is not None:
            return faiss.SearchParametersIVF(nprobe=min(index.nlist, nprobe))
        enough = -(-4 * depth * index.nlist // index.ntotal)  # lists that hold some 4 times the depth
        return faiss.SearchParametersIVF(nprobe=min(index.nlist, max(8, index.nlist // 8, enough)))
    return None


@dataclass(frozen=True)
class _Miner:
    """Searches for all queries at a first depth, then ever deeper for those left with too few."""

    queries: Floats  # (N, D)
    positives: Rows  # (N, P)
    ceilings: Floats  # (N,)
    neighbours: Neighbours
    rules: _Rules
    progress: bool

    def mine(self, pending: Rows) -> MinedNegatives:
        """The negatives of the queries ``pending`` (n,); padding for the rest."""
        shape = (len(self.queries), self.rules.num_negatives)
        mined = MinedNegatives(np.full(shape, -1, np.int64), np.full(shape, -np.inf, np.float32))  # (N, K) both
        most_positives, size = self.positives.shape[1], self.neighbours.size
        range_max = self.rules.first_range_max(most_positives)
        while len(pending):
            depth = min(range_max + most_positives, size)
            progress = tqdm(batches(pending, depth), desc=f"Mining in the top {depth}", unit="batch",
                            disable=not self.progress)  # fmt: skip
            short = [self._mine_batch(batch, depth, range_max, mined) for batch in progress]
            if self.rules.range_max is not None or depth == size:
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


def batches(pending: Rows, depth: int) -> list[Rows]:
    """The pending queries in runs small enough for memory."""
    size = max(1, min(MAX_QUERIES_AT_ONCE, MAX_CANDIDATES_AT_ONCE // depth))
    return [pending[start : start + size] for start in range(0, len(pending), size)]


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
    if rules.sampling_strategy == "top":
        return taken & (counts <= rules.range_min + rules.num_negatives)  # (B, W)
    for query, options in zip(batch, taken, strict=True):
        _sample(options, rules.num_negatives, np.random.default_rng((rules.seed, query)))
    return taken


def _sample(options: NDArray[np.bool_], size: int, generator: np.random.Generator) -> None:
    """Leave ``size`` of the options (W,) on, drawn evenly; all of them where there are no more."""
    columns = np.flatnonzero(options)  # (options,)
    if len(columns) > size:
        options[:] = False
        options[generator.choice(columns, size, replace=False)] = True


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
        scores = np.einsum("nd,nd->n", queries, gallery[column])  # (N,)
        lowest = np.minimum(lowest, np.where(column < 0, np.inf, scores))  # (N,)
    if np.isinf(lowest).any():
        query = int(np.isinf(lowest).argmax())
        raise ValueError(f"a margin needs a positive for every query, query {query} has none")
    return lowest.astype(np.float32)


def as_matrix(name: str, features: Features) -> Floats:
    """Features as a float32 matrix (rows, D); ValueError, naming them ``name``, for another shape or NaN."""
    if isinstance(features, torch.Tensor):
        features = features.detach().to("cpu", torch.float32).numpy()  # any shape
    if np.iscomplexobj(features):
        raise ValueError(f"{name} must be real numbers, got {np.asarray(features).dtype}")
    matrix = np.ascontiguousarray(features, dtype=np.float32)  # (rows, D)
    if matrix.ndim != 2:
        raise ValueError(f"{name} must be a matrix, a row an item, got shape {matrix.shape}")
    norms = np.sqrt(np.einsum("nd,nd->n", matrix, matrix, dtype=np.float64))  # (rows,), NaN where a row has one
    if not (norms <= LARGEST_NORM).all():
        row = int(np.argmin(norms <= LARGEST_NORM))
        raise ValueError(
            f"{name} row {row} has values that are not finite in float32 or too large: its norm is {norms[row]}, "
            f"at most {LARGEST_NORM:.1e} is allowed"
        )
    return matrix


def check_fit(queries: Floats, gallery: Floats) -> None:
    """Refuses an empty gallery, and queries of another width."""
    if len(gallery) == 0:
        raise ValueError("gallery must have at least one row, got none")
    if queries.shape[1] != gallery.shape[1]:
        raise ValueError(f"queries and gallery must be of one width, got {queries.shape[1]} and {gallery.shape[1]}")


def _query_rows(rows: Rows, num_queries: int) -> Rows:
    """Rows (n,) of queries, checked."""
    rows = np.asarray(rows, np.int64)
    if rows.ndim != 1 or (len(rows) and not 0 <= rows.min() <= rows.max() < num_queries):
        raise ValueError(f"rows must be queries from 0 to {num_queries - 1}, got {rows.tolist()[:5]}")
    return rows


def _as_padded(positives: Positives, num_queries: int, num_gallery: int) -> Rows:
    """Positives (N, P) without repeats, padded with -1; P is the most that any query has."""
    if isinstance(positives, torch.Tensor | np.ndarray):
        if positives.dtype in (torch.bool, np.bool_):
            raise ValueError("positives must be gallery rows, got booleans: give the rows where a mask is true")
        positives = positives.tolist()
    if not isinstance(positives, Sequence):
        raise ValueError(f"positives must be a list or an array, an entry a query, got {type(positives).__name__}")
    lists = [sorted(_row_set(row)) for row in positives]
    if len(lists) != num_queries:
        raise ValueError(f"positives must be given for all {num_queries} queries, got {len(lists)}")
    padded = np.full((num_queries, max(map(len, lists), default=0)), -1, np.int64)  # (N, P)
    for query, rows in enumerate(lists):
        if rows and not 0 <= rows[0] <= rows[-1] < num_gallery:
            raise ValueError(f"positives must be gallery rows from 0 to {num_gallery - 1}, query {query} has {rows}")
        padded[query, : len(rows)] = rows
    return padded


def _row_set(rows: int | Iterable[int]) -> set[int]:
    """The rows given for one query, less the padding."""
    try:
        if any(isinstance(row, bool) for row in (rows if isinstance(rows, Iterable) else [rows])):
            raise TypeError
        return {operator.index(row) for row in (rows if isinstance(rows, Iterable) else [rows])} - {-1}
    except TypeError:
        raise ValueError(f"positives must be whole numbers, got {rows!r}") from None
