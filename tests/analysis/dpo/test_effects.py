"""Effects of switches, recovered from made-up runs whose effects are known."""

from __future__ import annotations

import numpy as np
import pytest

from cirlib.analysis.dpo.effects import effects, recall_interval
from cirlib.analysis.dpo.grid import IN_BATCH, PROJECTIONS, SWITCHES, factorial_runs
from cirlib.study.parameters import DPO

TRUE = {"sum": 0.3, "qformer": 0.1, "dpo hinge": 0.02, "info_nce_in_batch": 0.15, "random": -0.05, "both_towers": 0.1}
# in-batch runs have no random negatives, which a quarter of the runs they are held against have
EXPECTED = TRUE | {"info_nce_in_batch": 0.15 + 0.05 / 4}
QUERIES = {"hat": 400, "shoe": 200}


def record(labels: dict, rng: np.random.Generator, noise: float = 0.0) -> dict:
    """A run whose recall@10 is 0.2 plus what its levels are worth, plus noise of its own."""
    chance = 0.2 + sum(TRUE.get(labels[name], 0) for name in SWITCHES) + noise * rng.normal()
    above = {}
    for category, count in QUERIES.items():
        hits = round(np.clip(chance, 0, 1) * count)
        above[category] = np.where(rng.permutation(count) < hits, 0, 500).tolist()
    return {**labels, "above": above, "tied": {category: [0] * count for category, count in QUERIES.items()}}


@pytest.fixture(scope="module")
def runs():
    return factorial_runs(DPO(grid="full"))


def test_known_effects_are_found(runs):
    rng = np.random.default_rng(0)
    table = effects([record(labels, rng) for labels, _ in runs]).set_index("level")
    for level, row in table.iterrows():
        assert row["difference"] == pytest.approx(EXPECTED.get(level, 0), abs=0.005), level
        assert row["ci_low"] < row["difference"] < row["ci_high"]
        assert row["q25"] <= row["q75"]
    assert set(table["against"]) == {next(iter(levels)) for levels in SWITCHES.values()}


def test_the_interval_widens_with_the_noise_of_repeated_runs(runs):
    widths = []
    for noise in (0.0, 0.05):
        table = effects([record(labels, np.random.default_rng(i), noise) for i, (labels, _) in enumerate(runs)])
        widths.append((table["ci_high"] - table["ci_low"]).mean())
    assert widths[1] > 1.2 * widths[0]


def test_intervals_cover_the_truth_as_often_as_they_say(runs):
    projections = [labels for labels, params in runs if params.trains in PROJECTIONS and params.repetition < 2]
    projections = [labels for labels in projections if labels["objective"] in ("dpo sigmoid", IN_BATCH)]
    inside = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        hits = {category: rng.random(count) for category, count in QUERIES.items()}  # queries shared by all runs
        table = effects([drawn(labels, hits, rng) for labels in projections]).set_index("level")
        for level in ("sum", "qformer", "random", IN_BATCH):
            row = table.loc[level]
            inside.append(row["ci_low"] <= EXPECTED[level] <= row["ci_high"])
    assert 0.88 < np.mean(inside) <= 1


def drawn(labels: dict, difficulty: dict, rng: np.random.Generator) -> dict:
    """A run that answers a query when its worth, give or take, is above the query's difficulty."""
    worth = 0.2 + sum(TRUE.get(labels[name], 0) for name in SWITCHES) + 0.02 * rng.normal()
    above = {category: np.where(worth > hard, 0, 500).tolist() for category, hard in difficulty.items()}
    return {**labels, "above": above, "tied": {category: [0] * len(hard) for category, hard in difficulty.items()}}


def test_the_interval_of_one_run_is_that_of_a_mean_over_categories(runs):
    low, high = recall_interval(record(runs[0][0], np.random.default_rng(0)))
    half = 1.96 * np.sqrt(0.2 * 0.8 * (1 / 400 + 1 / 200) / 4)
    assert [low, high] == pytest.approx([0.2 - half, 0.2 + half], abs=0.005)


def test_every_category_counts_the_same():
    labels = dict.fromkeys(SWITCHES, "")
    labels |= {name: next(iter(levels)) for name, levels in SWITCHES.items()}
    runs = []
    for fusion, hat, shoe in (("text_only", 500, 500), ("sum", 500, 0)):
        above = {"hat": [hat] * 30, "shoe": [shoe] * 10}
        runs.append({**labels, "fusion": fusion, "above": above, "tied": {"hat": [0] * 30, "shoe": [0] * 10}})
    table = effects(runs)
    assert table[["factor", "level"]].values.tolist() == [["fusion", "sum"]]
    assert table["difference"].item() == pytest.approx(0.5)


def test_negatives_are_compared_only_where_they_are_read(runs):
    rng = np.random.default_rng(0)
    table = effects([record(labels, rng) for labels, _ in runs]).set_index("level")
    assert table.loc["random", "settings"] == 3 * 4 * 4  # fusions, objectives that read them, what trains
    assert table.loc["dpo hinge", "settings"] == 3 * 4
    assert table.loc["sum", "settings"] == 17 * 4
