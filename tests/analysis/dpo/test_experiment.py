"""The sections of the notebook: mistakes, recipe, what is empty without a train part or a Q-Former."""

import math
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from cirlib.analysis.dpo.effects import SECOND
from cirlib.analysis.dpo.embedded_splits import embed_splits
from cirlib.analysis.dpo.experiment import Experiment
from cirlib.analysis.dpo.grid import MISTAKES, READINGS, RECIPES
from cirlib.models.qformer_embedding import new_composer
from cirlib.models.weights import ModelError
from cirlib.retrieval.statistics import clopper_pearson
from cirlib.study.errors import StageError
from cirlib.study.parameters import DPO


def test_every_mistake_ends_somewhere_twice_with_an_exact_interval(make_context):
    table = Experiment(make_context(grid="small", grid_edits=8).prepared).mistakes()
    assert table["mistake"].tolist() == [name for name in [*list(MISTAKES)[:2], *READINGS] for _ in range(2)]
    assert (table["queries"] == 6).all()
    assert (table["hits"] == 6).all()  # ten of five candidates
    assert table["ci_low"].tolist() == pytest.approx([0.025 ** (1 / 6)] * len(table))
    assert set(table["verdict"]) == {"cannot tell"}


def test_the_recipe_compares_second_trainings_with_the_first_and_with_dpo(make_context):
    context = make_context(grid="full")
    table = Experiment(context.prepared).recipe()
    dpo, *others = RECIPES
    assert table["method"].tolist() == [dpo, *others, *others]
    assert table["against"].tolist() == [SECOND] * 4 + [dpo] * 3
    assert table["runs"].tolist() == [2] * 4 + [4] * 3
    start = context.encoder(DPO(fusion="qformer", start="finetuned"), frozen=True)
    recalls = [one.scored.recall(10).mean() for one in embed_splits(start, context.splits.reported, context.evaluation)]
    assert table["start"].tolist() == pytest.approx([np.mean(recalls)] * 7)
    assert (table["difference"][:4] + table["start"][:4]).tolist() == pytest.approx(table["value"][:4].tolist())
    assert Experiment(make_context(grid="small").prepared).recipe().empty


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
    scored = [(one.method, one.category) for one in experiment.scored()]
    names = ("retrieval_dpo", "retrieval_dpo_projection")  # both readings of what is frozen
    assert scored == [(name, category) for name in names for category in ("hat", "shoe")]
    alone = Experiment(make_context(grid="none", trains="query_projection").prepared).scored()
    assert {one.method for one in alone} == {"retrieval_dpo"}
    assert Experiment(make_context(objective="info_nce_in_batch").prepared).first_batch() == {}


def test_a_section_is_a_table_and_a_picture_or_a_sentence(make_context):
    experiment = Experiment(make_context(grid="none").prepared)
    drawn = []
    (experiment.pictures / "x.png").write_bytes(b"of an earlier run")
    shown = experiment.show("x", experiment.sweep(), draw=lambda *_, **__: pytest.fail("nothing to draw"))
    assert shown.data == "Not run: dpo.grid is none."
    assert not (experiment.pictures / "x.png").exists()
    assert not (experiment.tables / "x.csv").exists()
    experiment.show("y", pd.DataFrame({"a": [1.0]}), lambda table, context: drawn.append(context) or "y")
    assert "reference removed" in drawn[0]
    assert (experiment.tables / "y.csv").read_text() == "a\n1.0\n"


def test_negatives_are_counted_once_a_repetition_with_exact_intervals(make_context, monkeypatch):
    runs = [("dpo sigmoid", 0, 0.25), ("dpo sigmoid", 0, 0.25), ("dpo sigmoid", 1, 0.75), ("info_nce_mined", 0, 1.0)]
    table = pd.DataFrame(runs, columns=["objective", "repetition", "satisfies_edit"])
    table = table.assign(fusion="qformer", negatives="top", differs_in_one=0.0, edits=4, num_negatives=2)
    experiment = Experiment(make_context(grid="none").prepared)
    monkeypatch.setattr(experiment, "factorial", lambda: table)
    (row,) = experiment.negatives().to_dict("records")
    assert (row["fusion"], row["mined"], row["satisfies_edit"]) == ("qformer_pretrained", 16, 0.5)
    ends = [row[f"{name}/{end}"] for name in ("satisfies_edit", "differs_in_one") for end in ("ci_low", "ci_high")]
    assert ends == pytest.approx([*clopper_pearson(8, 16), *clopper_pearson(0, 16)])


def test_a_figure_of_the_grid_says_how_large_its_runs_are_and_which_split_it_is_of(make_context):
    experiment = Experiment(make_context(grid="small", grid_edits=8).prepared)
    assert "grid “small”: each run reads 8 train edits 2 times" in experiment._measured_on("effects")
    assert experiment._measured_on("trajectory").startswith("on dev (held out of train by image family")


def test_without_a_train_part_every_section_is_empty(make_context):
    context = make_context(grid="small")
    for file in (context.prepared.stage.images / "captions").glob("cap.*.train.json"):
        file.unlink()
    experiment = Experiment(make_context(grid="small").prepared)
    names = (
        "steps",
        "trajectory",
        "sweep",
        "mistakes",
        "factorial",
        "effects",
        "negatives",
        "scored",
        "first_batch",
        "recipe",
    )
    assert all(len(getattr(experiment, name)()) == 0 for name in names)
    assert experiment.why_not("effects") == "Nothing was trained: the data has no train part."


def test_without_a_q_former_the_grid_says_which_command_makes_one(make_context):
    context = make_context(grid="small")
    shutil.rmtree(context.stage.results("qformer") / "checkpoints")
    with pytest.raises(StageError, match="run `dvc repro qformer` first"):
        Experiment(context.prepared)


def test_a_pretrained_q_former_that_is_lost_or_damaged_is_not_replaced_by_a_random_one(make_context):
    context = make_context(grid="small", fusion="qformer")
    folder = context.stage.results("qformer") / "checkpoints" / "qformer_pretrained"
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ModelError, match=r"could be loaded from .*/qformer_pretrained.*: `dvc repro qformer` brings"):
        Experiment(context.prepared).context.encoder(context.study.dpo)
    shutil.rmtree(folder)
    with pytest.raises(StageError, match=r"qformer_pretrained, which is missing: run `dvc repro qformer` first"):
        Experiment(context.prepared).context.encoder(context.study.dpo)


def test_a_study_that_pretrains_none_starts_from_the_q_former_as_it_comes(make_context):
    context = make_context(grid="small", fusion="qformer")
    (context.stage.images / "pairs.json").write_text("[]")
    context = make_context(grid="small", fusion="qformer")
    shutil.rmtree(context.stage.results("qformer") / "checkpoints" / "qformer_pretrained")
    tower = Experiment(context.prepared).context.encoder(context.study.dpo).queries
    torch.manual_seed(context.study.seed)
    torch.testing.assert_close(tower.composer.query_tokens, new_composer(context.prepared).query_tokens)
