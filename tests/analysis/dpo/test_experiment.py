"""The sections of the notebook: mistakes, recipe, what is empty without a train part or a Q-Former."""

from __future__ import annotations

import math
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from cirlib.analysis.dpo.embedded_splits import EmbeddedSplit, embed_splits, score_splits
from cirlib.analysis.dpo.experiment import Experiment
from cirlib.analysis.dpo.mistakes import MISTAKES, run_mistakes
from cirlib.analysis.dpo.recipe import START, run_recipe
from cirlib.study.errors import StageError
from cirlib.study.parameters import DPO


def test_every_mistake_has_its_curve(make_context):
    context = make_context(grid="small", grid_edits=8)
    table = run_mistakes(context, context.study.dpo, every=1)
    assert list(dict.fromkeys(table["mistake"])) == [mistake.name for mistake in MISTAKES]
    for _, rows in table.groupby("mistake"):
        assert rows["step"].tolist() == [0, 1, 2]
        assert rows["recall@10"].between(0, 1).all()
    start = table[table["step"] == 0].set_index("mistake")["recall@10"]
    assert start["chosen and rejected swapped"] == start["none: as the paper describes it"]


def test_readings_find_the_target_where_the_mistake_puts_it(make_scored):
    """Query i is image i + 1 exactly: ranked first, last when sorted as a distance, tied with all when saturated."""
    scored = make_scored("m", "hat", [0, 0, 0])
    gallery = torch.eye(101)
    gallery[50:] = gallery[1]  # 51 more that tie with the first target
    e = EmbeddedSplit(scored.benchmark, gallery[1:4], gallery)
    found = {mistake.name: mistake.reading(e, scored) for mistake in MISTAKES}
    assert found["none: as the paper describes it"].above.tolist() == [0, 0, 0]
    assert found["similarity sorted as a distance"].above.tolist() == [99, 99, 99]
    assert found["saturated scores, ties by expectation"].tied.tolist() == [51, 0, 0]
    assert found["saturated scores, ties count as misses"].above.tolist() == [51, 0, 0]
    assert found["gallery ids in another order than the features"].above.sum() > 0


def test_the_recipe_compares_second_trainings_with_the_first(make_context):
    context = make_context(grid="small", grid_edits=3)
    table, tests = run_recipe(context, context.study.dpo)
    assert table["method"].tolist()[0] == START
    assert len(table) == 4
    assert table[["value", "dev/recall@10"]].stack().between(0, 1).all()
    assert len(tests) == 5
    start = context.encoder(DPO(fusion="qformer", start="finetuned"), frozen=True)
    scored = score_splits(embed_splits(start, context.splits.reported, context.evaluation), context.evaluation, "s")
    assert table["value"][0] == pytest.approx(np.mean([one.recall(10).mean() for one in scored]))


def test_one_batch_is_shown_before_training(make_context):
    context = make_context(grid="none")
    batch = Experiment(context.prepared).first_batch(3)
    assert {name: tuple(values.shape) for name, values in batch.items()} == {
        "chosen": (3,), "rejected": (3, 2), "frozen_chosen": (3,), "frozen_rejected": (3, 2), "loss": ()
    }  # fmt: skip
    assert batch["loss"].item() == pytest.approx(math.log(2), abs=1e-3)
    in_batch = make_context(objective="info_nce_in_batch")
    assert Experiment(in_batch.prepared).first_batch() == {}


def test_the_studys_own_run_is_measured_on_dev_on_its_way(make_context):
    experiment = Experiment(make_context(grid="none").prepared)
    steps, trajectory = experiment.steps(), experiment.trajectory()
    assert steps["step"].tolist() == [1, 2, 3, 4]
    assert steps.columns.tolist() == ["step", "loss", "margin", "chosen_reward", "rejected_reward", "accuracy"]
    assert trajectory["step"].tolist() == [0, 1, 2, 3, 4]
    assert [one.category for one in experiment.scored()] == ["hat", "shoe"]


def test_a_section_is_a_table_and_a_picture_or_a_sentence(make_context):
    experiment = Experiment(make_context(grid="none").prepared)
    drawn = []
    experiment.show("x", pd.DataFrame(), draw=lambda *_, **__: pytest.fail("nothing to draw"))
    assert (experiment.pictures / "x.png").is_file()
    assert not (experiment.tables / "x.csv").exists()
    from cirlib import figures

    experiment.show("y", pd.DataFrame({"a": [1.0]}), lambda table, context: drawn.append(context) or figures.note("y"))
    assert "reference removed" in drawn[0]
    assert (experiment.tables / "y.csv").read_text() == "a\n1.0\n"


def test_without_a_train_part_every_section_is_empty(make_context):
    context = make_context(grid="small")
    for file in (context.prepared.stage.images / "captions").glob("cap.*.train.json"):
        file.unlink()
    experiment = Experiment(make_context(grid="small").prepared)
    tables = [getattr(experiment, n)() for n in ("steps", "trajectory", "sweep", "mistakes", "factorial", "effects")]
    assert all(len(table) == 0 for table in [*tables, experiment.negatives(), *experiment.recipe])
    assert experiment.scored() == []
    assert experiment.first_batch() == {}
    assert experiment.why_not == "Nothing was trained: the data has no train part."


def test_without_a_q_former_the_grid_says_which_command_makes_one(make_context):
    context = make_context(grid="small")
    shutil.rmtree(context.checkpoints)
    with pytest.raises(StageError, match="run `dvc repro qformer` first"):
        Experiment(context.prepared)
