"""Effects of switches, recovered from made-up runs whose effects are known."""

import numpy as np
import pytest

from cirlib.analysis.dpo.effects import effects, recall_interval
from cirlib.analysis.dpo.grid import SWITCHES, factorial_runs
from cirlib.analysis.dpo.preferences import IN_BATCH
from cirlib.study.parameters import DPO

TRUE = {"sum": 0.3, "qformer": 0.1, "dpo hinge": 0.02, "info_nce_in_batch": 0.15, "random": -0.05, "both_towers": 0.1}
# in-batch runs have no random negatives, which a quarter of the runs they are held against have
EXPECTED = TRUE | {"info_nce_in_batch": 0.15 + 0.05 / 4}
QUERIES = {"hat": 400, "shoe": 200}
EVEN = {category: np.arange(0.5, count) / count for category, count in QUERIES.items()}  # difficulties
RUNS = factorial_runs(DPO(grid="full"))


def record(labels: dict, difficulty: dict[str, np.ndarray], noise: float = 0.0) -> dict:
    """A run that answers a query when 0.2 and what its levels are worth, give or take, are above its difficulty."""
    worth = 0.2 + sum(TRUE.get(labels[name], 0) for name in SWITCHES) + noise
    above = {category: np.where(worth > hard, 0, 500).tolist() for category, hard in difficulty.items()}
    return {**labels, "above": above, "tied": {category: [0] * len(hard) for category, hard in difficulty.items()}}


def test_known_effects_are_found():
    table = effects([record(labels, EVEN) for labels, _ in RUNS]).set_index("level")
    for level, row in table.iterrows():
        assert row["difference"] == pytest.approx(EXPECTED.get(level, 0), abs=0.005), level
        assert row["ci_low"] <= row["difference"] <= row["ci_high"]
        assert row["q25"] <= row["q75"]
    assert set(table["against"]) == {next(iter(levels)) for levels in SWITCHES.values()}
    assert table.loc["random", "settings"] == 3 * 4 * 4  # fusions, objectives that read them, what trains
    assert table.loc["dpo hinge", "settings"] == 3 * 4
    assert table.loc["sum", "settings"] == 17 * 4


def test_intervals_cover_the_truth_as_often_as_they_say():
    projections = [labels for labels, params in RUNS if "projection" in params.trains and params.repetition < 2]
    projections = [labels for labels in projections if labels["objective"] in ("dpo sigmoid", IN_BATCH)]
    inside = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        hits = {category: rng.random(count) for category, count in QUERIES.items()}  # queries shared by all runs
        table = effects([record(labels, hits, 0.02 * rng.normal()) for labels in projections]).set_index("level")
        for level in ("sum", "qformer", "random", IN_BATCH):
            inside.append(table.loc[level, "ci_low"] <= EXPECTED[level] <= table.loc[level, "ci_high"])
    assert 0.88 < np.mean(inside) <= 1


def test_the_interval_of_one_run_is_that_of_a_mean_over_categories():
    low, high = recall_interval(record(RUNS[0][0], EVEN))
    half = 1.96 * np.sqrt(0.2 * 0.8 * (1 / 400 + 1 / 200) / 4)
    assert [low, high] == pytest.approx([0.2 - half, 0.2 + half], abs=0.005)


def test_every_category_counts_the_same():
    labels, runs = {name: next(iter(levels)) for name, levels in SWITCHES.items()}, []
    for fusion, hat, shoe in (("text_only", 500, 500), ("sum", 500, 0)):
        above = {"hat": [hat] * 30, "shoe": [shoe] * 10}
        runs.append({**labels, "fusion": fusion, "above": above, "tied": {"hat": [0] * 30, "shoe": [0] * 10}})
    table = effects(runs)
    assert table[["factor", "level"]].values.tolist() == [["fusion", "sum"]]
    assert table["difference"].item() == pytest.approx(0.5)
