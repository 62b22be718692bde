"""Effects of switches, recovered from made-up runs whose effects are known."""

import numpy as np
import pytest

from cirlib.analysis.dpo.effects import effects, recall_interval
from cirlib.analysis.dpo.grid import SWITCHES, factorial_runs
from cirlib.study.parameters import DPO

QUERIES = {"hat": 400, "shoe": 200}
EVEN = {category: np.arange(0.5, count) / count for category, count in QUERIES.items()}  # difficulties
START = {"text_only": 0.2, "sum": 0.5, "qformer": 0.4}
WORTH = {"dpo hinge": 0.02, "info_nce_in_batch": 0.15, "both_towers": 0.05}


def worth(labels: dict) -> float:
    """A run's recall: towers lose on top-k negatives and gain on random ones, which projections do not care for."""
    tower = "tower" in labels["trains"]
    turned = 0.0 if not tower else {"top": -0.1, "random": 0.1}.get(labels["negatives"], 0.0)
    return START[labels["fusion"]] + turned + sum(WORTH.get(labels[name], 0) for name in SWITCHES)


def ranks(recall: float, difficulty: dict[str, np.ndarray]) -> dict:
    """Who answers the queries that are easier than ``recall``; every two queries are a family."""
    above = {category: np.where(recall > hard, 0, 500).tolist() for category, hard in difficulty.items()}
    tied = {category: [0] * len(hard) for category, hard in difficulty.items()}
    families = {category: [str(n // 2) for n in range(len(hard))] for category, hard in difficulty.items()}
    return {"above": above, "tied": tied, "families": families}


def table_of(grid: str, difficulty: dict[str, np.ndarray], noise=lambda labels: 0.0):
    runs = [labels for labels, _ in factorial_runs(DPO(grid=grid))]
    starts = {fusion: ranks(recall, difficulty) for fusion, recall in START.items()}
    records = [labels | ranks(worth(labels) + noise(labels), difficulty) for labels in runs]
    return effects(records, starts).set_index(["factor", "level", "fusion", "within", "against"])


@pytest.mark.parametrize("grid", ["small", "full"])
def test_known_effects_are_found_where_they_are_and_with_their_sign(grid):
    table = table_of(grid, EVEN)
    for fusion in START:
        top, random = "dpo sigmoid on top", "dpo sigmoid on random"
        expected = {
            ("change", "query_tower", fusion, "top", "own start"): -0.1,
            ("change", "query_tower", fusion, "random", "own start"): 0.1,
            ("change", "query_projection", fusion, "top", "own start"): 0,
            ("trains", "query_projection", fusion, "top", "query_tower"): 0.1,
            ("trains", "query_projection", fusion, "random", "query_tower"): -0.1,
            ("negatives", "random", fusion, "query_tower", "top"): 0.2,
            ("negatives", "random", fusion, "query_projection", "top"): 0,
            ("objective", "dpo hinge", fusion, "query_projection", top): 0.02,
            ("objective", "info_nce_in_batch", fusion, "query_projection", random): 0.15,
            ("objective", "recall_in_batch", fusion, "query_projection", top): 0,
            ("objective", "info_nce_mined", fusion, "query_tower", top): 0,
            ("objective", "info_nce_in_batch", fusion, "query_tower", top): 0.25,  # which hurt DPO
            ("objective", "info_nce_in_batch", fusion, "query_tower", random): 0.05,  # which helped it
        }
        for place, value in expected.items():
            of_tower = "query_tower" in place[1:4] or place[0] == "trains"
            not_run = fusion != "text_only" or not of_tower if place[0] == "objective" else fusion == "sum" and of_tower
            if grid == "small" and not_run:
                assert place not in table.index
                continue
            row = table.loc[place]
            assert row["difference"] == pytest.approx(value, abs=0.005), place
            assert row["ci_low"] <= row["difference"] <= row["ci_high"]
    kinds = ("top", "random") if grid == "small" else SWITCHES["negatives"]
    first = {next(iter(levels)) for levels in SWITCHES.values()} - {"text_only", "dpo sigmoid"}
    against = set(table.index.get_level_values("against"))
    assert against == {"own start", *first, *(f"dpo sigmoid on {kind}" for kind in kinds)}
    assert table.loc[("objective", "info_nce_mined", "text_only", "query_tower", top), "settings"] == 1
    assert (("objective", "info_nce_mined", "text_only", "query_tower", random) in table.index) == (grid == "full")


def test_intervals_cover_the_truth_as_often_as_they_say():
    """Over queries that come in correlated pairs and over runs that differ when repeated."""
    places = {
        ("change", "query_tower", "qformer", "top", "own start"): -0.1,
        ("negatives", "random", "text_only", "query_tower", "top"): 0.2,
        ("trains", "query_projection", "qformer", "random", "query_tower"): -0.1,
        ("objective", "info_nce_in_batch", "text_only", "query_tower", "dpo sigmoid on top"): 0.25,
    }
    inside = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        drawn = {category: np.repeat(rng.random(count // 2), 2) for category, count in QUERIES.items()}
        table = table_of("small", drawn, lambda labels, rng=rng: 0.03 * rng.normal())
        inside += [
            table.loc[place, "ci_low"] <= value <= table.loc[place, "ci_high"] for place, value in places.items()
        ]
    assert 0.92 < np.mean(inside) < 1


def test_without_repetitions_the_interval_is_that_over_clusters_of_queries():
    labels = {name: next(iter(levels)) for name, levels in SWITCHES.items()}
    rng = np.random.default_rng(0)
    hits = np.repeat(rng.random(200) < 0.5, 2)  # both queries of a family alike
    one = {"above": {"hat": np.where(hits, 0, 500).tolist()}, "tied": {"hat": [0] * 400}}
    none = {"above": {"hat": [500] * 400}, "families": {"hat": [str(n // 2) for n in range(400)]}}
    row = effects([labels | one], {"text_only": one | none}).iloc[0]
    assert row["difference"] == pytest.approx(hits.mean())
    half = 1.97 * np.sqrt(hits.mean() * (1 - hits.mean()) / 200)  # 200 draws, not 400
    assert row["ci_high"] - row["difference"] == pytest.approx(half, rel=0.02)
    assert row["runs"] == 1


def test_the_interval_of_one_run_is_that_of_a_mean_over_categories():
    run = ranks(0.2, EVEN)
    alone = {category: list(range(count)) for category, count in QUERIES.items()}
    low, high = recall_interval(run, alone)
    half = 1.96 * np.sqrt(0.2 * 0.8 * (1 / 400 + 1 / 200) / 4)
    assert [low, high] == pytest.approx([0.2 - half, 0.2 + half], abs=0.005)


def test_every_category_counts_the_same():
    labels = {name: next(iter(levels)) for name, levels in SWITCHES.items()}
    run = {"above": {"hat": [500] * 30, "shoe": [0] * 10}, "tied": {"hat": [0] * 30, "shoe": [0] * 10}}
    start = run | {
        "above": {"hat": [500] * 30, "shoe": [500] * 10},
        "families": {"hat": ["a"] * 30, "shoe": ["b"] * 10},
    }
    table = effects([labels | run], {"text_only": start})
    assert table[["factor", "level"]].values.tolist() == [["change", "query_tower"]]
    assert table["difference"].item() == pytest.approx(0.5)
