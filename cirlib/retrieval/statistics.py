"""Whether a number, or a difference between two methods, could be chance: intervals and tests over queries.

Queries that share images are not independent: with ``clusters`` (:func:`cirlib.benchmarks.families.families`) they are
drawn, and their signs flipped, together.
"""

from collections.abc import Hashable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr, bdtrc, betaincinv

Numbers = NDArray[Any]
Groups = Sequence[Hashable] | Numbers | None
Bounds = tuple[float, float] | None
VALUES_AT_ONCE = 2**22  # bounds the memory of resampling


class PairedTest(NamedTuple):
    """A difference of means over the same queries (first minus second) and its two-sided p-value."""

    difference: float
    p_value: float


def bootstrap_ci(
    values: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    groups: Groups = None,
    clusters: Groups = None,
    bounds: Bounds = None,
) -> tuple[float, float]:
    """Bootstrap-t interval of the mean over queries (Efron & Tibshirani, 1993, chapter 12.5), drawn by clusters.

    Each resample's error is divided by its own cluster-robust standard error, for which the percentile interval is too
    narrow where clusters are few (Cameron, Gelbach & Miller, 2008). Where too few clusters differ to estimate that
    error (all hit, none hit, one cluster), the interval is Clopper and Pearson's with the number of clusters as n.

    Args:
        values: (N,) one number a query, such as recall@k.
        groups: (N,) each query's category. Then the interval is of the mean of the categories' means, and clusters are
            drawn within their category.
        clusters: (N,) what each query hangs together by within its group; None: nothing, every query is drawn alone.
        bounds: the least and greatest possible value, (-1, 1) for differences of recall; None is (0, 1) for values
            within it, else the range of the values.

    >>> low, high = bootstrap_ci([0, 1] * 50)
    >>> low < 0.5 < high
    True
    """
    found = _values(values, "values")
    ends = (found.min(), found.max())
    bottom, top = bounds or ((0.0, 1.0) if ends[0] >= 0 and ends[1] <= 1 else ends)
    if ends[0] < bottom or ends[1] > top:
        raise ValueError(f"values from {ends[0]:g} to {ends[1]:g} are not within the bounds {bottom:g} to {top:g}")
    parts = _clustered(found, groups, clusters)
    drawn = [_resampled(*part, resamples, seed) for part in parts]
    # resamples are independent of each other: rolled, so that no two groups have the same one in a row
    error, variance = (np.mean([np.roll(one[i], n) for n, one in enumerate(drawn)], axis=0) for i in (0, 1))  # (R,)
    mean, own = (float(np.mean(numbers)) for numbers in ([s.sum() / n.sum() for s, n in parts], [d[2] for d in drawn]))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(error == 0, 0.0, error / np.sqrt(variance))  # (R,), of the errors to their standard errors
    low, high = np.quantile(ratio, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    if own > 0 and np.isfinite([low, high]).all():
        scale = np.sqrt(own)
        return float(max(bottom, mean - max(high, 0) * scale)), float(min(top, mean - min(low, 0) * scale))
    n, width = sum(len(sizes) for _, sizes in parts), top - bottom
    if not found.any():  # no hit, or no difference: what others may have is a share that n clusters do not show
        unseen = clopper_pearson(0, n, level=level)[1]
        return bottom * unseen, top * unseen
    exact = clopper_pearson(min(n, n * (mean - bottom) / width), n, level=level) if width else (0.0, 0.0)
    return bottom + width * exact[0], bottom + width * exact[1]


def paired_test(
    a: ArrayLike,
    b: ArrayLike,
    *,
    resamples: int = 10_000,
    seed: int = 0,
    groups: Groups = None,
    clusters: Groups = None,
) -> PairedTest:
    """Two-sided paired randomisation test of mean(a) - mean(b) over the same queries.

    Under the null hypothesis the two values of all queries of a cluster could be swapped; so signs of the differences
    are drawn at random, a cluster at a time, and p = (as extreme as observed + 1) / (resamples + 1) (Phipson & Smyth,
    2010).

    Args:
        a, b: (N,) each, query by query. groups, clusters: as in :func:`bootstrap_ci`.

    >>> paired_test([1] * 20, [0] * 20).p_value < 0.001
    True
    """
    first, second = _values(a, "a"), _values(b, "b")  # (N,), (N,)
    if len(first) != len(second):
        raise ValueError(f"a has {len(first)} values, b has {len(second)}")
    parts = _clustered(first - second, groups, clusters)
    change = np.concatenate([sums / sizes.sum() / len(parts) for sums, sizes in parts])  # adds up to the difference
    totals = _sign_flipped(change, resamples, np.random.default_rng(seed))  # (R,)
    extreme = np.abs(totals) >= abs(change.sum()) - 1e-12 * np.abs(change).sum()  # (R,)
    return PairedTest(float(change.sum()), float((extreme.sum() + 1) / (resamples + 1)))


def holm(p_values: Sequence[float] | Numbers) -> list[float]:
    """P-values corrected for testing them all, in the order given (Holm, 1979).

    >>> holm([0.01, 0.25])
    [0.02, 0.25]
    """
    p = np.asarray(p_values, dtype=np.float64)  # (K,)
    order = np.argsort(p, kind="stable")  # (K,)
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return corrected.tolist()


class AgainstChance(NamedTuple):
    """A share of hits beside what guessing gives, all in [0, 1]."""

    verdict: str  # "below chance", "above chance", or "cannot tell"
    hits: float
    queries: int
    ci_low: float  # of the share of hits
    ci_high: float
    chance: float
    p_value: float

    def __str__(self) -> str:
        share, low, high, chance = (f"{100 * x:.2f}" for x in (self.hits / self.queries, *self[3:6]))
        counts = f"{self.hits:g} of {self.queries:,} queries hit, {share} % [{low}, {high}]; guessing gives {chance} %"
        return f"{self.verdict}: {counts}"


def clopper_pearson(hits: float, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Exact interval of a share (Clopper & Pearson, 1934), of ``hits`` in [0, n]; never without width.

    >>> [round(end, 3) for end in clopper_pearson(0, 10)]
    [0.0, 0.308]
    """
    low = betaincinv(hits, n - hits + 1, (1 - level) / 2) if hits > 0 else 0.0
    high = betaincinv(hits + 1, n - hits, (1 + level) / 2) if hits < n else 1.0
    return float(low), float(high)


def against_chance(hits: float, chance: ArrayLike, n: int, *, level: float = 0.95) -> AgainstChance:
    """Whether ``hits`` of ``n`` queries are below or above guessing, by a two-sided exact binomial test.

    "cannot tell" is said wherever the exact interval of the share contains chance: with few queries even no hit at all
    is not below it. Where chance differs by query its mean is used, which errs towards "cannot tell" (Hoeffding, 1956).

    Args:
        hits: expected hits in [0, n]; a part of a hit, from ties, counts towards chance.
        chance: in (0, 1), one number or (n,) one a query, such as
            :func:`~cirlib.retrieval.recall_and_precision.chance_recall`.

    >>> against_chance(1, 0.0034, 1000).verdict
    'cannot tell'
    >>> print(against_chance(2, 0.0034, 10_000))
    below chance: 2 of 10,000 queries hit, 0.02 % [0.00, 0.07]; guessing gives 0.34 %
    """
    rate = float(np.mean(np.asarray(chance, dtype=np.float64)))
    if not (n >= 1 and 0 <= hits <= n and 0 < rate < 1):
        raise ValueError(f"hits must be 0 to n and chance between 0 and 1, got hits={hits}, n={n}, chance={rate}")
    fewest, most = np.ceil(hits), np.floor(hits)  # of whole hits: the test that finds less
    below, above = bdtr(fewest, n, rate), bdtrc(most - 1, n, rate) if most > 0 else 1.0
    low, high = clopper_pearson(most, n, level=level)[0], clopper_pearson(fewest, n, level=level)[1]
    verdict = "below chance" if high < rate else "above chance" if low > rate else "cannot tell"
    return AgainstChance(verdict, hits, n, low, high, rate, float(min(1.0, 2 * min(below, above))))


def _resampled(sums: Numbers, sizes: Numbers, resamples: int, seed: int) -> tuple[Numbers, Numbers, float]:
    """Of G clusters drawn anew: each resample's error of the mean and its variance, (R,) both; the sample's variance.

    The mean is a ratio of two sums; its variance is that of the clusters' sums less mean × size (linearised). A
    resample of clusters that do not differ has variance 0.
    """
    pairs, counts = np.unique(sums + 1j * sizes, return_counts=True)  # (U,) different clusters
    alike = len(sums) >= 64 * len(pairs)
    total, size = (pairs.real, pairs.imag) if alike else (sums, sizes)  # (G or U,)
    off = total - sums.sum() / sizes.sum() * size
    off[np.abs(off) < 1e-12 * size] = 0
    columns = np.stack([off, size, off**2, off * size, size**2], 1).astype(np.float32)
    drawn = [
        _counts(rows, seed, number, tuple(counts) if alike else len(sums)) @ columns
        for number, rows in enumerate(_pieces(resamples, len(off)))
    ]
    rest, drawn_size, squares, cross, square_size = np.concatenate(drawn).astype(float).T  # (R,) each
    error = rest / drawn_size
    variance = squares - 2 * error * cross + error**2 * square_size
    variance[variance < 1e-4 * squares] = 0  # rounding
    own = (off**2) @ (counts if alike else np.ones(len(off)))
    return error, variance / drawn_size**2, float(own / sizes.sum() ** 2)


@lru_cache(maxsize=8)  # of at most 16 MB: the same for all metrics and methods on the same queries
def _counts(rows: int, seed: int, number: int, of: int | tuple[int, ...]) -> NDArray[np.float32]:
    """How often each of ``of`` clusters, or of clusters of several kinds, comes in each of R resamples, (R, G or U)."""
    if isinstance(of, int):
        rng = np.random.default_rng([seed, number, of])
        drawn = rng.integers(of, size=(rows, of)) + of * np.arange(rows)[:, None]
        return np.bincount(drawn.ravel(), minlength=rows * of).reshape(rows, of).astype(np.float32)
    size = sum(of)
    rng = np.random.default_rng([seed, number, size, len(of)])
    return rng.multinomial(size, np.array(of) / size, size=rows).astype(np.float32)


def _sign_flipped(change: Numbers, resamples: int, rng: np.random.Generator) -> Numbers:
    """Totals (R,) of change (N,) under random signs, drawn as counts for each distinct size."""
    sizes, counts = np.unique(np.abs(change[change != 0]), return_counts=True)  # (U,), (U,)
    pieces = _pieces(resamples, len(sizes))
    return np.concatenate([(2 * rng.binomial(counts, 0.5, size=(n, len(sizes))) - counts) @ sizes for n in pieces])


def _pieces(total: int, width: int) -> Iterator[int]:
    """Sizes that add up to total, each small enough for rows of this width."""
    step = max(1, VALUES_AT_ONCE // max(1, width))
    return (min(step, total - start) for start in range(0, total, step))


def _clustered(values: Numbers, groups: Groups, clusters: Groups) -> list[tuple[Numbers, Numbers]]:
    """Sums and sizes, (G,) each, of the clusters of each group, the groups in order of first appearance."""
    size, parts = len(values), []
    group, cluster = _numbered(groups, np.zeros(size, int), "groups"), _numbered(clusters, np.arange(size), "clusters")
    for one in range(group.max() + 1):
        inside = group == one
        names = np.unique(cluster[inside], return_inverse=True)[1]
        parts.append((np.bincount(names, values[inside]), np.bincount(names).astype(float)))
    return parts


def _numbered(names: Groups, default: Numbers, what: str) -> Numbers:
    """Equal names as equal numbers, (N,), in order of first appearance."""
    if names is None:
        return default
    if len(names) != len(default):
        raise ValueError(f"{len(names)} {what} for {len(default)} values")
    known: dict[Hashable, int] = {}
    return np.array([known.setdefault(name, len(known)) for name in names])


def _values(values: ArrayLike, name: str) -> Numbers:
    """One finite float64 number a query, (N,)."""
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1 or not len(found) or not np.isfinite(found).all():
        raise ValueError(f"{name} must be one finite number a query, and of at least one, got shape {found.shape}")
    return found
