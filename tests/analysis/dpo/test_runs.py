"""Single runs: repeatable, kept, resumed; never read for other parameters, models, data or code."""

import json
import math
from pathlib import Path

import pytest
import torch
import yaml

from cirlib.analysis.dpo import context as context_module
from cirlib.analysis.dpo import runs as runs_module
from cirlib.analysis.dpo.context import CODE, RunContext
from cirlib.analysis.dpo.grid import with_changes
from cirlib.analysis.dpo.preferences import Preferences
from cirlib.analysis.dpo.runs import measured_run, measured_start, train_preferences
from cirlib.models.qformer import save_weights
from cirlib.models.qformer_embedding import new_composer
from cirlib.study.parameters import DPO

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def params(context) -> DPO:
    return context.study.dpo


@pytest.fixture
def trained(monkeypatch) -> list[DPO]:
    """The parameters of every training that is really run."""
    runs: list[DPO] = []
    train = train_preferences
    monkeypatch.setattr(
        runs_module, "train_preferences", lambda *args, **more: runs.append(args[1]) or train(*args, **more)
    )
    return runs


def weights(encoder) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in encoder.parameters()]


def same(left, right) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(left), weights(right), strict=True))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"trains": "query_projection", "fusion": "sum", "objective": "info_nce_mined"},
        {"trains": "both_towers", "sampling": "random", "mine_every": 1},
        {"fusion": "qformer", "trains": "query_projection", "objective": "info_nce_in_batch"},
    ],
)
def test_a_run_is_repeatable_and_another_repetition_is_another_run(context, params, changes):
    params = with_changes(params, changes)
    torch.manual_seed(123)  # whatever went before does not matter
    first = train_preferences(context, params)
    torch.manual_seed(456)
    assert same(first.encoder, train_preferences(context, params).encoder)
    assert not same(first.encoder, train_preferences(context, params.model_copy(update={"repetition": 1})).encoder)
    assert not torch.equal(weights(first.encoder)[0], weights(context.encoder(params))[0])


@pytest.mark.parametrize("fusion", ["text_only", "qformer"])
def test_dpo_starts_without_a_margin_and_parts_wanted_from_mined(context, params, fusion):
    params = with_changes(params, {"epochs": 4, "fusion": fusion})
    steps = train_preferences(context, params).history.steps
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-3)
    assert steps[0]["margin"] == pytest.approx(0, abs=1e-3)
    assert steps[-1]["loss"] < 0.95 * math.log(2)
    swapped = train_preferences(context, params, corruption="swapped").history.steps
    assert steps[-1]["margin"] > 0 > swapped[-1]["margin"]


@pytest.mark.parametrize("objective", ["dpo", "info_nce_in_batch"])
def test_measuring_does_not_change_the_run(context, params, objective):
    params = with_changes(params, {"objective": objective})
    measured = train_preferences(context, params, measure=lambda encoder: {"noise": torch.rand(1).item()})
    assert [record["step"] for record in measured.track] == [0, 1, 2, 3, 4]
    assert same(measured.encoder, train_preferences(context, params).encoder)


def test_a_stopped_run_goes_on_to_the_same_end(context, params, monkeypatch, capsys):
    params = with_changes(params, {"epochs": 4, "mine_every": 2, "trains": "both_towers", "lr": 0.05})
    options = {"every": 3, "measure": lambda encoder: {"first": weights(encoder)[0].ravel()[0].item()}}
    whole = train_preferences(context, params, kept_as="whole", **options)
    assert (whole.preferences.negatives != Preferences(context, params).negatives).any()  # mined by the model as it was

    def killed(self, encoder, rows, count=[0], loss=Preferences.loss):  # noqa: B006
        count[0] += 1
        if count[0] == 8:  # in epoch 4 of 2 batches: the state is that of epoch 3, mined at 3
            raise KeyboardInterrupt
        return loss(self, encoder, rows)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Preferences, "loss", killed)
        train_preferences(context, params, kept_as="stopped", **options)
    capsys.readouterr()
    resumed = train_preferences(context, params, kept_as="stopped", **options)
    assert "goes on after epoch 3" in capsys.readouterr().out
    assert same(whole.encoder, resumed.encoder)
    assert resumed.track == whole.track
    assert (resumed.preferences.negatives == whole.preferences.negatives).all()


def test_a_record_tells_the_run_and_is_read_the_second_time(context, params, trained):
    images = [image for part in context.splits.train.values() for image in part.gallery]
    attributes = {image: {"colour": image[-1], "fit": "loose"} for image in images}
    context.prepared.__dict__["attributes"] = attributes
    record = measured_run(context, params)
    assert 0 <= record["recall@1"] <= record["recall@10"] <= record["recall@50"] <= 1
    assert {category: len(above) for category, above in record["above"].items()} == {"hat": 3, "shoe": 3}
    assert record["chance"] == 1  # ten of five candidates
    assert (record["queries"], record["hits"]) == (6, 6)
    assert record["change"] == record["recall@10"] - measured_start(context, params)["recall@10"]
    assert (record["satisfies_edit"], record["differs_in_one"]) == (0, 1)  # every picture has its own colour
    assert measured_run(context, params) == json.loads(json.dumps(record))
    assert len(trained) == 1
    measured_run(context, params, corruption="swapped")
    assert len(trained) == 2


@pytest.mark.slow
def test_a_record_is_not_read_for_another_run(context, make_context, params, trained, write_json, monkeypatch):
    """Other parameters, captions, weights of the sum, models and code give other runs; the grid's size does not."""
    fused, summed = with_changes(params, {"fusion": "qformer"}), with_changes(params, {"fusion": "sum"})

    def new(count: int, *runs: DPO, where: RunContext | None = None) -> None:
        before = len(trained)
        for one in runs:
            measured_run(where or make_context(), one)
        assert len(trained) - before == count

    new(3, params, fused, summed, where=context)
    new(0, params, fused, summed, params.model_copy(update={"grid_edits": 7}))
    new(1, with_changes(params, {"beta": 0.2}))
    write_json(context.prepared.stage.results("zero_shot") / "weights.json", {"sum": 0.9})
    new(1, params, fused, summed)
    torch.manual_seed(9)
    save_weights(
        new_composer(context.prepared), context.stage.results("qformer") / "checkpoints" / "qformer_pretrained"
    )
    new(1, params, fused, summed)
    file = context.prepared.stage.images / "captions" / "cap.hat.val.json"
    records = json.loads(file.read_text())
    write_json(file, [{**records[0], "captions": ["is red"]}, *records[1:]])
    new(3, params, fused, summed)
    monkeypatch.setattr(context_module, "code_hash", lambda *_: "other")
    new(3, params, fused, summed)


def test_no_folder_of_the_stage_is_forgotten_where_other_code_is_another_run():
    stage = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["dpo"]
    assert {f"cirlib/{folder}" for folder in CODE} == {one for one in stage["deps"] if one.startswith("cirlib/")}


def test_the_command_says_what_differs_from_the_defaults_and_from_the_study(context):
    study = context.study
    told = runs_module._command(study, with_changes(study.dpo, {"beta": 0.3, "index": "ivf", "nlist": 4, "epochs": 1}))
    assert told.startswith("dvc exp run -S study=small ") and told.endswith(" dpo")
    for part in ("beta=0.3", "index=ivf", "nlist=4", "epochs=1", "num_negatives=2", "grid=none"):  # 1: not the study's
        assert f"-S dpo.{part} " in told
    assert "grid_edits" not in told and "dpo.fusion" not in told
