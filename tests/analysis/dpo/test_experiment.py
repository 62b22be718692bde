"""The sections of the notebook: mistakes, recipe, what is empty without a train part or a Q-Former."""

import math
import shutil

import numpy as np
import pandas as pd
import pytest

from cirlib import figures
from cirlib.analysis.dpo.embedded_splits import embed_splits
from cirlib.analysis.dpo.experiment import START, Experiment
from cirlib.analysis.dpo.grid import MISTAKES, READINGS
from cirlib.study.errors import StageError
from cirlib.study.parameters import DPO


def test_every_mistake_has_its_curve(make_context):
    table = Experiment(make_context(grid="small", grid_edits=8).prepared).mistakes()
    assert list(dict.fromkeys(table["mistake"])) == [*MISTAKES, *READINGS]
    assert all(rows["step"].tolist() == [0, 2] for _, rows in table.groupby("mistake"))
    assert table["recall@10"].between(0, 1).all()
    start = table[table["step"] == 0].set_index("mistake")["recall@10"]
    assert start["chosen and rejected swapped"] == start["none: as the paper describes it"]


def test_the_recipe_compares_second_trainings_with_the_first(make_context):
    context = make_context(grid="small", grid_edits=3)
    table, tests = Experiment(context.prepared).recipe
    assert table["method"].tolist()[0] == START
    assert len(table) == 4
    assert table[["value", "dev/recall@10"]].stack().between(0, 1).all()
    assert len(tests) == 5
    start = context.encoder(DPO(fusion="qformer", start="finetuned"), frozen=True)
    recalls = [one.scored.recall(10).mean() for one in embed_splits(start, context.splits.reported, context.evaluation)]
    assert table["value"][0] == pytest.approx(np.mean(recalls))


def test_the_studys_own_run_is_shown_before_training_and_measured_on_dev_on_its_way(make_context):
    experiment = Experiment(make_context(grid="none").prepared)
    batch = experiment.first_batch()
    assert {name: tuple(values.shape) for name, values in batch.items()} == {
        "chosen": (4,), "rejected": (4, 2), "frozen_chosen": (4,), "frozen_rejected": (4, 2), "loss": ()
    }  # fmt: skip
    assert batch["loss"].item() == pytest.approx(math.log(2), abs=1e-3)
    steps = experiment.steps()
    assert steps["step"].tolist() == [1, 2, 3, 4]
    assert steps.columns.tolist() == ["step", "loss", "margin", "chosen_reward", "rejected_reward", "accuracy"]
    assert experiment.trajectory()["step"].tolist() == [0, 1, 2, 3, 4]
    assert [one.category for one in experiment.scored()] == ["hat", "shoe"]
    assert Experiment(make_context(objective="info_nce_in_batch").prepared).first_batch() == {}


def test_a_section_is_a_table_and_a_picture_or_a_sentence(make_context):
    experiment = Experiment(make_context(grid="none").prepared)
    drawn = []
    experiment.show("x", experiment.sweep(), draw=lambda *_, **__: pytest.fail("nothing to draw"))
    assert (experiment.pictures / "x.png").is_file()
    assert not (experiment.tables / "x.csv").exists()
    experiment.show("y", pd.DataFrame({"a": [1.0]}), lambda table, context: drawn.append(context) or figures.note("y"))
    assert "reference removed" in drawn[0]
    assert (experiment.tables / "y.csv").read_text() == "a\n1.0\n"


def test_without_a_train_part_every_section_is_empty(make_context):
    context = make_context(grid="small")
    for file in (context.prepared.stage.images / "captions").glob("cap.*.train.json"):
        file.unlink()
    experiment = Experiment(make_context(grid="small").prepared)
    names = ("steps", "trajectory", "sweep", "mistakes", "factorial", "effects", "negatives", "scored", "first_batch")
    assert all(len(part) == 0 for part in [*(getattr(experiment, name)() for name in names), *experiment.recipe])
    assert experiment.why_not == "Nothing was trained: the data has no train part."


def test_without_a_q_former_the_grid_says_which_command_makes_one(make_context):
    context = make_context(grid="small")
    shutil.rmtree(context.checkpoints)
    with pytest.raises(StageError, match="run `dvc repro qformer` first"):
        Experiment(context.prepared)
