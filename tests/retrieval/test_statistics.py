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


@pytest.mark.parametrize("values", ["recall", "reciprocal"])
def test_the_interval_agrees_with_scipy(values: str):
    rng = np.random.default_rng(0)
    data = (rng.random(400) < 0.3).astype(float) if values == "recall" else 1 / rng.integers(1, 500, 400)
    expected = stats.bootstrap((data,), np.mean, method="percentile", rng=1).confidence_interval
    assert bootstrap_ci(data) == pytest.approx(tuple(expected), abs=0.06 * (expected.high - expected.low))


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
    assert bootstrap_ci([0.5]) == (0.5, 0.5)


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
