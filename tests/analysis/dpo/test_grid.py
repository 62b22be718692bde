"""Which runs the grids hold, those of the recipe included."""

from collections import Counter

import pytest

from cirlib.analysis.dpo.grid import (
    SWITCHES,
    at_grid_size,
    factorial_runs,
    recipe_runs,
    sweep_runs,
)
from cirlib.analysis.dpo.preferences import IN_BATCH
from cirlib.study.parameters import DPO


def levels_of(grid: str) -> Counter:
    return Counter(tuple(labels[name] for name in SWITCHES) for labels, _ in factorial_runs(DPO(grid=grid)))


def test_the_full_factorial_has_every_setting_but_in_batch_once():
    settings = levels_of("full")
    assert len(settings) == 3 * (4 * 4 + 1) * 4
    assert {count for levels, count in settings.items() if "projection" in levels[3]} == {3}
    assert {count for levels, count in settings.items() if "projection" not in levels[3]} == {1, 2}
    assert all((levels[1] == IN_BATCH) == (levels[2] == "in-batch") for levels in settings)


def test_the_default_has_all_projections_and_a_tower_for_every_fusion():
    settings = levels_of("default")
    assert sum("projection" in levels[3] for levels in settings) == 102
    assert {levels[0] for levels in settings if levels[3] == "query_tower"} == {"text_only", "sum", "qformer"}


def test_the_small_one_moves_one_switch_at_a_time():
    paper, settings = [next(iter(levels)) for levels in SWITCHES.values()], levels_of("small")
    assert set(settings.values()) == {1}
    assert all(sum(a not in (b, "in-batch") for a, b in zip(one, paper, strict=True)) <= 1 for one in settings)
    for position, levels in enumerate(SWITCHES.values()):
        assert set(levels) <= {one[position] for one in settings}


@pytest.mark.parametrize("grid", ["small", "default", "full"])
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


@pytest.mark.parametrize("grid", ["small", "default", "full"])
@pytest.mark.parametrize(
    "own",
    [
        {"index": "ivf", "nlist": 8, "nprobe": 2},
        {"fusion": "qformer", "start": "finetuned"},
        {"range_min": 90, "num_negatives": 10},
        {"mine_every": 1, "sampling": "semi_hard", "objective": "info_nce_in_batch", "num_negatives": 60, "epochs": 9},
    ],
)
def test_whatever_a_study_may_ask_for_its_grid_can_be_run_at_the_grids_size(grid, own):
    params = DPO(grid=grid, grid_edits=20, **own)
    for labels, one in sweep_runs(params) + factorial_runs(params):
        assert labels.get("fusion", one.fusion) == one.fusion
        assert (one.start, one.edits, one.epochs, one.batch_size, one.num_negatives) == ("pretrained", 20, 2, 32, 3)
    assert all(one.num_negatives <= 50 and one.start == "finetuned" for _, one in recipe_runs(params))
