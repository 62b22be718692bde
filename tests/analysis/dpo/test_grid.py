"""Which runs the grids hold, those of the recipe included."""

from collections import Counter

import pytest

from cirlib.analysis.dpo.grid import (
    IN_BATCH,
    MISTAKES,
    SWITCHES,
    at_grid_size,
    factorial_runs,
    mistake_runs,
    recipe_runs,
    sweep_runs,
)
from cirlib.study.parameters import DPO


def levels_of(grid: str) -> Counter:
    return Counter(tuple(labels[name] for name in SWITCHES) for labels, _ in factorial_runs(DPO(grid=grid)))


def test_the_full_factorial_has_every_setting_but_in_batch_once():
    settings = levels_of("full")
    assert len(settings) == 3 * (4 * 4 + 2) * 4
    assert {count for levels, count in settings.items() if "projection" in levels[3]} == {3}
    assert {count for levels, count in settings.items() if "projection" not in levels[3]} == {1, 2}
    assert all((levels[1] in IN_BATCH) == (levels[2] == "in-batch") for levels in settings)


def test_the_small_one_repeats_all_it_runs_and_asks_what_learns_and_from_which_negatives_for_every_fusion():
    settings = levels_of("small")
    assert set(settings.values()) == {2}
    for fusion in SWITCHES["fusion"]:
        own = {levels[1:] for levels in settings if levels[0] == fusion}
        for trains in ("query_projection", "both_projections", *["query_tower"] * (fusion != "sum")):
            assert {("dpo sigmoid", "top", trains), ("dpo sigmoid", "random", trains)} <= own
    asked = {(objective, fusion, trains) for fusion, objective, _, trains in settings if objective != "dpo sigmoid"}
    assert asked == {(name, "text_only", "query_tower") for name in ("info_nce_mined", *IN_BATCH)}


def test_mistakes_are_repeated_each_beside_a_run_without_one_that_the_switches_have_too():
    for grid, count in (("small", 2), ("full", 3), ("none", 0)):
        params = DPO(grid=grid)
        runs = mistake_runs(params)
        made = {"small": list(MISTAKES)[:2], "full": MISTAKES, "none": []}[grid]
        assert Counter(name for name, _, _ in runs) == dict.fromkeys(made, count)
        sound = [one for name, corruption, one in runs if name.startswith("none")]
        assert all(one in [other for _, other in factorial_runs(params)] for one in sound[:2])
    (beta,) = {one.beta for name, _, one in mistake_runs(DPO(grid="full", beta=0.2)) if name.startswith("training: lr")}
    assert beta == 20


@pytest.mark.parametrize("grid", ["small", "full"])
def test_the_papers_setting_is_in_every_grid_and_the_parameters_say_what_the_labels_do(grid):
    runs = factorial_runs(DPO(grid=grid))
    assert any(params == at_grid_size(DPO(grid=grid)) for _, params in runs)
    for labels, params in runs:
        objective = f"dpo {params.loss_type}" if params.objective == "dpo" else params.objective
        assert (labels["fusion"], labels["objective"], labels["trains"]) == (params.fusion, objective, params.trains)
        if labels["negatives"] == "remined":
            assert (params.sampling, params.mine_every) == ("top", 1)
        elif labels["negatives"] != "in-batch":
            assert (params.sampling, params.mine_every) == (labels["negatives"], 0)


def test_the_sweep_crosses_scale_index_and_sampling():
    runs = sweep_runs(DPO(grid="full"))
    seen = {(labels["index_label"], labels["sampling_label"], params.beta) for labels, params in runs}
    assert len(seen) == len(runs) == 4 * 4 * 3
    assert all(params.index == "flat" for labels, params in runs if labels["sampling_label"] == "random")
    assert {(params.nlist, params.nprobe) for _, params in runs if params.index == "ivf"} == {(16, 1), (16, 4)}


@pytest.mark.parametrize("grid", ["small", "full"])
@pytest.mark.parametrize(
    "own",
    [
        {"index": "ivf", "nlist": 8, "nprobe": 2},
        {"fusion": "qformer", "start": "finetuned"},
        {"range_min": 90, "num_negatives": 10},
        {"mine_every": 1, "sampling": "margin", "objective": "info_nce_in_batch", "num_negatives": 60, "epochs": 9},
    ],
)
def test_whatever_a_study_may_ask_for_its_grid_can_be_run_at_the_grids_size(grid, own):
    params = DPO(grid=grid, grid_edits=20, **own)
    for labels, one in sweep_runs(params) + factorial_runs(params):
        assert labels.get("fusion", one.fusion) == one.fusion
        assert (one.start, one.edits, one.epochs, one.batch_size, one.num_negatives) == ("pretrained", 20, 2, 8, 3)
    assert all(one.num_negatives <= 50 and one.start == "finetuned" for _, one in recipe_runs(params))
