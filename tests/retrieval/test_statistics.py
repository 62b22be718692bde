"""Intervals and tests: against scipy, every sign pattern, and how often they are right in many trials."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cirlib.retrieval.ranks import Ranks
from cirlib.retrieval.recall_and_precision import recall_at_k
from cirlib.retrieval.statistics import against_chance, bootstrap_ci, clopper_pearson, holm, paired_test


def test_the_interval_of_many_queries_is_nearly_scipys_percentile_one():
    data = (np.random.default_rng(0).random(400) < 0.3).astype(float)
    expected = stats.bootstrap((data,), np.mean, method="percentile", rng=1).confidence_interval
    assert bootstrap_ci(data) == pytest.approx(tuple(expected), abs=0.06 * (expected.high - expected.low))


def slow_interval(clusters: list[list[np.ndarray]], resamples: int) -> tuple[float, float]:
    """The bootstrap-t interval of the mean of groups' means, a resample after the other; per group its clusters."""

    def mean_and_error(groups: list[list[np.ndarray]]) -> tuple[float, float]:
        means = [np.concatenate(group).mean() for group in groups]
        rest = [[(own - mean).sum() for own in group] for group, mean in zip(groups, means, strict=True)]
        variances = [np.square(r).sum() / sum(map(len, g)) ** 2 for r, g in zip(rest, groups, strict=True)]
        return np.mean(means), np.sqrt(sum(variances)) / len(groups)

    rng, (mean, error) = np.random.default_rng(5), mean_and_error(clusters)
    ratios = []
    for _ in range(resamples):
        again = [[group[n] for n in rng.integers(len(group), size=len(group))] for group in clusters]
        its_mean, its_error = mean_and_error(again)
        ratios.append((its_mean - mean) / its_error)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return mean - high * error, mean - low * error


@pytest.mark.parametrize("kind", ["recall", "reciprocal"])
def test_the_interval_agrees_with_a_slow_one(kind: str):
    rng = np.random.default_rng(0)
    groups = [rng.integers(1, 9, size=count) for count in (12, 30)]  # sizes of clusters
    made = [[rng.random(n) if kind != "recall" else rng.random(n) < rng.random() for n in sizes] for sizes in groups]
    values = np.concatenate([np.concatenate(group) for group in made]).astype(float)
    names = np.repeat(["few", "many"], [sizes.sum() for sizes in groups])
    families = np.concatenate([np.repeat(np.arange(len(sizes)), sizes) for sizes in groups])
    expected = slow_interval(made, 4000)
    found = bootstrap_ci(values, groups=names.tolist(), clusters=families)
    assert found == pytest.approx(expected, abs=0.04 * (expected[1] - expected[0]))
    shuffled = rng.permutation(len(values))
    again = bootstrap_ci(values[shuffled], groups=names[shuffled], clusters=families[shuffled])
    assert again == pytest.approx(expected, abs=0.04 * (expected[1] - expected[0]))


GARMENTS = np.full(40, 25)  # sizes of image families
FASHIONIQ_DRESS = np.repeat(
    [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 17, 18, 19, 21, 23, 24],
    [262, 127, 77, 58, 37, 30, 13, 14, 11, 2, 4, 6, 4, 1, 2, 2, 1, 1, 1, 1, 1],
)


@pytest.mark.parametrize(
    ("sizes", "share", "trials"),
    [(GARMENTS[:16], 0.3, 1000), (GARMENTS, 0.05, 1000), (GARMENTS, 0.3, 1000), (FASHIONIQ_DRESS, 0.2, 600)],
)
def test_intervals_over_families_cover_as_they_say_and_those_over_queries_do_not(sizes, share, trials):
    rng, families = np.random.default_rng(0), np.repeat(np.arange(len(sizes)), sizes)
    covered = []
    for trial in range(trials):  # beta-binomial: the correlation within a family is 1 / (1 + 9) = 0.1
        found = rng.random(len(families)) < rng.beta(9 * share, 9 * (1 - share), len(sizes))[families]
        seed = trial % 2  # the same draws again and again are fast
        both = [bootstrap_ci(found, resamples=1000, seed=seed, clusters=names) for names in (families, None)]
        covered.append([low <= share <= high for low, high in both])
    by_family, by_query = np.mean(covered, axis=0)
    assert by_family >= 0.93
    assert by_query < 0.92


@pytest.mark.parametrize(("sizes", "shares"), [((100,), (0.4,)), ((400,), (0.1,)), ((40, 80, 160), (0.2, 0.5, 0.8))])
def test_the_interval_covers_the_mean_of_categories_as_often_as_it_says(sizes, shares):
    rng, groups, chance = np.random.default_rng(0), np.repeat(np.arange(len(sizes)), sizes), np.repeat(shares, sizes)
    drawn = [rng.random(len(chance)) < chance for _ in range(600)]
    trials = [bootstrap_ci(hits, resamples=1000, seed=seed, groups=groups) for seed, hits in enumerate(drawn)]
    coverage = np.mean([low <= np.mean(shares) <= high for low, high in trials])
    assert 0.92 <= coverage <= 0.975  # ± 3 standard errors, less what a percentile interval is known to lose


def test_the_interval_is_repeatable_and_takes_what_recall_gives():
    recall = recall_at_k(Ranks(torch.arange(200), torch.zeros(200, dtype=torch.long)), 50)
    assert bootstrap_ci(recall) == bootstrap_ci(recall.tolist()) == bootstrap_ci(recall.numpy())
    smooth = 1 / np.arange(1, 201)
    assert bootstrap_ci(smooth) == bootstrap_ci(smooth) != bootstrap_ci(smooth, seed=1)


@pytest.mark.parametrize("hits", [[0] * 40, [1] * 40, [0.25] * 40, [0, 0, 1] + [0] * 37])
def test_where_clusters_do_not_differ_enough_the_interval_is_the_exact_one(hits):
    families, share = np.repeat(np.arange(8), 5), np.mean(hits)
    for clusters, n in ((None, 40), (families, 8)):
        low, high = bootstrap_ci(hits, clusters=clusters)
        assert (low, high) == clopper_pearson(share * n, n)
        assert 0 <= low <= share <= high <= 1 and high - low > 0.05
    low, high = bootstrap_ci(hits, groups=["dress", "shirt"] * 20)
    assert high - low > 0.05
    low, high = bootstrap_ci([0.5, 0, 1], clusters=[1, 1, 1])  # one cluster says nearly nothing
    assert high - low > 0.95


def test_the_interval_of_differences_knows_how_far_they_reach():
    unseen = clopper_pearson(0, 30)[1]  # at most this share of the clusters differs at all
    assert bootstrap_ci(np.zeros(30), bounds=(-1, 1)) == pytest.approx((-unseen, unseen))
    low, high = bootstrap_ci([-1, 0, 1, 1] * 25)
    assert -1 < low < 0.25 < high < 1
    assert bootstrap_ci([3, 3]) == (3, 3)
    with pytest.raises(ValueError, match="values from -1 to 0 are not within the bounds 0 to 1"):
        bootstrap_ci([0, -1], bounds=(0, 1))
    with pytest.raises(ValueError, match="1 clusters for 2 values"):
        bootstrap_ci([0, 1], clusters=["a"])


@pytest.mark.parametrize("values", [[], [[0.0, 1.0]], [0.0, float("nan")]])
def test_values_without_an_interval_are_refused(values):
    with pytest.raises(ValueError, match="values must be one finite number a query"):
        bootstrap_ci(values)


def exact_p_value(change: np.ndarray) -> float:
    """Share of all 2^N sign patterns that are as extreme as the one observed."""
    totals = [np.dot(signs, change) for signs in itertools.product((1, -1), repeat=len(change))]
    return float(np.mean(np.abs(totals) >= abs(change.sum()) - 1e-12))


@pytest.mark.parametrize("kind", ["recall", "reciprocal"])
def test_the_paired_test_agrees_with_every_sign_pattern(kind: str):
    rng = np.random.default_rng(3)
    a = (rng.random(12) < 0.8).astype(float) if kind == "recall" else 1 / rng.integers(1, 9, 12)
    b = (rng.random(12) < 0.3).astype(float) if kind == "recall" else 1 / rng.integers(1, 30, 12)
    found = paired_test(a, b)
    assert found.difference == pytest.approx(a.mean() - b.mean())
    assert found.p_value == pytest.approx(exact_p_value(a - b), abs=0.015)
    swapped = paired_test(b, a)
    assert (swapped.difference, swapped.p_value) == (-found.difference, found.p_value)


def test_the_paired_test_weighs_categories_alike():
    groups = ["dress"] * 4 + ["shirt"] * 8
    a, b = np.array([1, 1, 1, 0] + [0, 1] * 4, float), np.array([0, 0, 0, 0] + [0, 0] * 4, float)
    found = paired_test(a, b, groups=groups)
    assert found.difference == pytest.approx((3 / 4 + 4 / 8) / 2)
    assert found.p_value == pytest.approx(exact_p_value((a - b) / np.repeat([8, 16], [4, 8])), abs=0.01)


@pytest.mark.parametrize("kind", ["recall", "reciprocal"])
def test_the_paired_test_errs_no_more_often_than_it_says(kind: str):
    rng = np.random.default_rng(0)
    p_values = []
    for trial in range(800):
        shared, a, b = rng.random(150), rng.random(150), rng.random(150)
        scores = [np.where(shared < 0.6, shared, own) for own in (a, b)]  # correlated, of equal means
        left, right = [own < 0.3 for own in scores] if kind == "recall" else scores
        p_values.append(paired_test(left, right, resamples=499, seed=trial).p_value)
    rejected = np.mean(np.array(p_values)[:, None] <= [0.05, 0.3], axis=0)  # standard errors 0.008, 0.016
    assert (rejected <= [0.074, 0.35]).all()
    assert (rejected >= ([0.026, 0.25] if kind == "reciprocal" else [0.01, 0.15])).all()  # 0/1: coarse steps


def test_the_paired_test_flips_clusters_as_one():
    families = np.repeat(np.arange(10), [1, 2, 3, 4, 5] * 2)
    rng = np.random.default_rng(1)
    a, b = rng.random(30), rng.random(30) * 0.8
    totals = np.bincount(families, a - b) / 30
    order = rng.permutation(30)
    found = paired_test(a[order], b[order], clusters=families[order])
    assert found.difference == pytest.approx((a - b).mean())
    assert found.p_value == pytest.approx(exact_p_value(totals), abs=0.015)


def test_the_paired_test_over_families_errs_no_more_often_than_it_says_and_that_over_queries_does():
    rng, families, p_values = np.random.default_rng(0), np.repeat(np.arange(40), 10), []
    for trial in range(600):
        a, b = (rng.random(400) < rng.beta(2.7, 6.3, 40)[families] for _ in range(2))
        p_values.append([paired_test(a, b, resamples=499, seed=trial, clusters=c).p_value for c in (families, None)])
    by_family, by_query = np.mean(np.array(p_values) <= 0.05, axis=0)
    assert by_family <= 0.075
    assert by_query > 0.1


def test_the_paired_test_at_its_ends():
    same = paired_test([1, 0, 1], [1, 0, 1])
    assert (same.difference, same.p_value) == (0, 1)
    assert paired_test(np.ones(100), np.zeros(100)).p_value == 1 / 10_001
    with pytest.raises(ValueError, match="a has 2 values, b has 3"):
        paired_test([0, 1], [0, 1, 1])
    with pytest.raises(ValueError, match="1 groups for 2 values"):
        paired_test([0, 1], [0, 1], groups=["a"])


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1, 1]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values: list[float]):
    level, corrected = 0.05, holm(p_values)
    for place, index in enumerate(np.argsort(p_values, kind="stable")):
        if p_values[index] * (len(p_values) - place) > level:
            break
        assert corrected[index] <= level
    else:
        return
    assert corrected[index] > level


@pytest.mark.parametrize(("hits", "n", "chance"), [(0, 10, 0.1), (3, 7, 0.2), (7, 7, 0.9), (2, 10_000, 0.0034)])
def test_against_chance_agrees_with_scipy(hits: int, n: int, chance: float):
    ours = against_chance(hits, chance, n, level=0.9)
    assert clopper_pearson(hits, n, level=0.9) == pytest.approx(
        tuple(stats.binomtest(hits, n).proportion_ci(0.9, method="exact"))
    )
    tails = [stats.binomtest(hits, n, chance, alternative).pvalue for alternative in ("less", "greater")]
    assert ours[3:] == pytest.approx((*clopper_pearson(hits, n, level=0.9), chance, min(1, 2 * min(tails))))
    assert (ours.verdict == "cannot tell") == (ours.p_value > 0.1)


def test_what_queries_cannot_show_is_not_said():
    assert against_chance(1, 0.0034, 1000).verdict == "cannot tell"  # one hit where 3.4 are expected
    assert against_chance(0, 0.0034, 1000).verdict == "cannot tell"
    assert against_chance(0, 0.0034, 1100).verdict == "below chance"
    assert against_chance(60, 0.0034, 10_000).verdict == "above chance"
    assert against_chance(10 * 0.34, 0.0034, 1000).verdict == "cannot tell"  # ties: 3.4 hits expected
    for near, off in ((3.5, 3), (17.5, 18)):  # half a hit counts as the whole one that is nearer to chance
        assert against_chance(near, 0.01, 1000).verdict == "cannot tell" != against_chance(off, 0.01, 1000).verdict
    assert against_chance(5, [0.25, 0.75] * 8, 16) == against_chance(5, 0.5, 16)
    assert str(against_chance(0, 0.01, 1000)).startswith("below chance: 0 of 1,000 queries hit, 0.00 % [0.00, 0.37]")


def test_chance_errs_no_more_often_than_it_says():
    rng, chances = np.random.default_rng(0), np.repeat([0.002, 0.03], 500)
    verdicts = [against_chance((rng.random(1000) < chances).sum(), chances, 1000).verdict for _ in range(2000)]
    assert np.mean([verdict != "cannot tell" for verdict in verdicts]) <= 0.05
    aim = [against_chance((rng.random(1000) < chances / 8).sum(), chances, 1000).verdict for _ in range(200)]
    assert aim.count("below chance") > 190


@pytest.mark.parametrize(("hits", "chance", "n"), [(-1, 0.1, 5), (6, 0.1, 5), (0, 0.1, 0), (1, 0.0, 5), (1, 1.0, 5)])
def test_hits_and_chance_out_of_range_are_refused(hits, chance, n):
    with pytest.raises(ValueError, match="hits must be 0 to n and chance between 0 and 1"):
        against_chance(hits, chance, n)
