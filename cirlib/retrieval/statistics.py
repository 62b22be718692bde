"""Whether a number, or a difference between two methods, could be chance: intervals and tests over queries."""

from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr, bdtrc, betaincinv

Numbers = NDArray[Any]
Groups = Sequence[Hashable] | Numbers | None
VALUES_AT_ONCE = 2**22  # bounds the memory of resampling


class PairedTest(NamedTuple):
    """A difference of means over the same queries (first minus second) and its two-sided p-value."""

    difference: float
    p_value: float


def bootstrap_ci(
    values: ArrayLike, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0, groups: Groups = None
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over queries (Efron & Tibshirani, 1993, chapter 13).

    Args:
        values: (N,) one number a query, such as recall@k. Where all are the same, the interval has no width.
        groups: (N,) each query's category. Then the interval is of the mean of the categories' means, and queries are
            drawn within their category.

    >>> low, high = bootstrap_ci([0, 1] * 50)
    >>> low < 0.5 < high
    True
    """
    rng = np.random.default_rng(seed)
    parts = _by_group(_values(values, "values"), groups)
    means = np.mean([_resampled_means(part, resamples, rng) for part in parts], axis=0)  # (R,)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_test(
    a: ArrayLike, b: ArrayLike, *, resamples: int = 10_000, seed: int = 0, groups: Groups = None
) -> PairedTest:
    """Two-sided paired randomisation test of mean(a) - mean(b) over the same queries.

    Under the null hypothesis a query's two values could be swapped; so signs of the differences are drawn at random,
    and p = (as extreme as observed + 1) / (resamples + 1) (Phipson & Smyth, 2010).

    Args:
        a, b: (N,) each, query by query. groups: as in :func:`bootstrap_ci`.

    >>> paired_test([1] * 20, [0] * 20).p_value < 0.001
    True
    """
    first, second = _values(a, "a"), _values(b, "b")  # (N,), (N,)
    if len(first) != len(second):
        raise ValueError(f"a has {len(first)} values, b has {len(second)}")
    parts = _by_group(first - second, groups)
    change = np.concatenate([part / len(part) / len(parts) for part in parts])  # (N,), adds up to the difference
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


def _resampled_means(values: Numbers, resamples: int, rng: np.random.Generator) -> Numbers:
    """Means (R,) of resamples of values (N,); few distinct values are drawn as counts, exactly as well."""
    distinct, counts = np.unique(values, return_counts=True)  # (U,), (U,)
    size = len(values)
    if 8 * len(distinct) <= size:
        pieces = _pieces(resamples, len(distinct))
        return np.concatenate([rng.multinomial(size, counts / size, size=n) @ distinct / size for n in pieces])
    return np.concatenate([values[rng.integers(size, size=(n, size))].mean(1) for n in _pieces(resamples, size)])


def _sign_flipped(change: Numbers, resamples: int, rng: np.random.Generator) -> Numbers:
    """Totals (R,) of change (N,) under random signs, drawn as counts for each distinct size."""
    sizes, counts = np.unique(np.abs(change[change != 0]), return_counts=True)  # (U,), (U,)
    pieces = _pieces(resamples, len(sizes))
    return np.concatenate([(2 * rng.binomial(counts, 0.5, size=(n, len(sizes))) - counts) @ sizes for n in pieces])


def _pieces(total: int, width: int) -> Iterator[int]:
    """Sizes that add up to total, each small enough for rows of this width."""
    step = max(1, VALUES_AT_ONCE // max(1, width))
    return (min(step, total - start) for start in range(0, total, step))


def _by_group(values: Numbers, groups: Groups) -> list[Numbers]:
    """Values (N,) split by group, the groups in order of first appearance."""
    names = [None] * len(values) if groups is None else list(groups)
    if len(names) != len(values):
        raise ValueError(f"{len(names)} groups for {len(values)} values")
    return [values[[name == one for name in names]] for one in dict.fromkeys(names)]


def _values(values: ArrayLike, name: str) -> Numbers:
    """One finite float64 number a query, (N,)."""
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1 or not len(found) or not np.isfinite(found).all():
        raise ValueError(f"{name} must be one finite number a query, and of at least one, got shape {found.shape}")
    return found
