"""Single runs: repeatable, kept, resumed; what they tell; the mistakes and the recipe; on small real files."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cirlib.analysis.dpo import context as bench_module
from cirlib.analysis.dpo import runs as cells_module
from cirlib.analysis.dpo.context import RunContext
from cirlib.analysis.dpo.experiment import Experiment
from cirlib.analysis.dpo.grid import with_changes
from cirlib.analysis.dpo.mistakes import mistakes, run_mistakes
from cirlib.analysis.dpo.recipe import START, run_recipe
from cirlib.analysis.dpo.runs import (
    Corruption,
    command,
    describe,
    embed_parts,
    measure,
    score_embedded,
    train_preferences,
)
from cirlib.models.preparation import Prepared
from cirlib.models.qformer import save_weights
from cirlib.models.qformer_embedding import new_composer
from cirlib.study.errors import StageError
from cirlib.study.parameters import DPO

SMALL = {"num_negatives": 2, "epochs": 2, "batch_size": 6, "lr": 3e-3, "projection_lr": 3e-2, "range_max": 6}
IDS = [f"{c}-{s}-{i}" for c in ("hat", "shoe") for s, size in (("train", 9), ("val", 6)) for i in range(size)]


@pytest.fixture
def make_bench(custom_stage, make_store, tiny_clip):
    """Makes the context of a study with a tiny CLIP and a small Q-Former, prepared and with Q-Former checkpoints."""

    def make(**dpo) -> RunContext:
        models = {"precision": "fp32", "clip": tiny_clip[0], "clip_pretrained": str(tiny_clip[1])}
        qformer = {"num_query_tokens": 2, "width": 8}
        zero_shot = {"weights": [0.5]}
        stage = custom_stage("dpo", dpo={**SMALL, **dpo}, models=models, qformer=qformer, zero_shot=zero_shot)
        generator = torch.Generator().manual_seed(0)
        if not (stage.data / "clip").is_dir():
            make_store(stage.data / "clip", IDS, F.normalize(torch.randn(30, 12, generator=generator), dim=-1))
            make_store(stage.data / "tokens", IDS, torch.randn(30, 4, 1280, generator=generator))
        prepared = Prepared(stage)
        context = RunContext(prepared, stage.root / "runs")
        for seed, name in enumerate(("pretrained", "qformer")):
            torch.manual_seed(seed)
            save_weights(new_composer(prepared), context.checkpoints / name)
        (context.checkpoints.parent / "history.csv").write_text(
            "run,epoch,dev/recall@10\npretraining,1,\nqformer,1,0.5\n"
        )
        return context

    return make


@pytest.fixture
def context(make_bench) -> RunContext:
    return make_bench()


@pytest.fixture
def params(context) -> DPO:
    return context.prepared.stage.study.dpo


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
    assert all(
        not torch.equal(a, b)
        for a, b in zip(weights(first.encoder)[:1], weights(context.encoder(params)), strict=False)
    )


def test_dpo_starts_without_a_margin_and_parts_wanted_from_mined(context, params):
    steps = train_preferences(context, with_changes(params, {"epochs": 4})).history.steps
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-3)
    assert steps[0]["margin"] == pytest.approx(0, abs=1e-3)
    assert steps[-1]["margin"] > 0
    assert steps[-1]["loss"] < 0.95 * math.log(2)


def test_swapped_preferences_turn_the_margin_round(context, params):
    right, wrong = (
        train_preferences(context, with_changes(params, {"epochs": 4}), corruption=corruption)
        for corruption in (Corruption(), Corruption(True))
    )
    assert right.history.steps[-1]["margin"] > 0 > wrong.history.steps[-1]["margin"]


def test_raw_dot_products_give_another_loss(context, params):
    losses = [
        train_preferences(context, params, corruption=Corruption(raw=raw)).history.steps[-1]["loss"]
        for raw in (False, True)
    ]
    assert losses[0] != losses[1]


def test_remining_follows_the_model(context, params):
    params = with_changes(params, {"epochs": 3, "trains": "both_towers", "lr": 0.05})
    once, anew = (train_preferences(context, with_changes(params, {"mine_every": every})) for every in (0, 1))
    assert once.negatives.shape == anew.negatives.shape == (12, 2)
    assert (once.negatives != anew.negatives).any()


def test_looking_does_not_change_the_run(context, params):
    looked = []
    watched = train_preferences(
        context, params, every=1, look=lambda encoder: looked.append(1) or {"noise": torch.rand(1).item()}
    )
    assert [record["step"] for record in watched.track] == [0, 1, 2, 3, 4]
    assert same(watched.encoder, train_preferences(context, params).encoder)


def test_a_stopped_run_goes_on_to_the_same_end(context, params, tmp_path, monkeypatch, capsys):
    params = with_changes(params, {"epochs": 4, "mine_every": 2, "trains": "both_towers"})
    look = lambda encoder: {"first": weights(encoder)[0].ravel()[0].item()}  # noqa: E731
    whole = train_preferences(context, params, folder=tmp_path / "whole", every=3, look=look)

    def killed(self, encoder, rows, count=[0], loss=cells_module._Pairs.loss):  # noqa: B006
        count[0] += 1
        if count[0] == 8:  # in epoch 4 of 2 batches: the state is that of epoch 3, mined at 3
            raise KeyboardInterrupt
        return loss(self, encoder, rows)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(cells_module._Pairs, "loss", killed)
        train_preferences(context, params, folder=tmp_path / "stopped", every=3, look=look)
    capsys.readouterr()
    resumed = train_preferences(context, params, folder=tmp_path / "stopped", every=3, look=look)
    assert "retrieval_dpo: goes on after epoch 3" in capsys.readouterr().out
    assert same(whole.encoder, resumed.encoder)
    assert resumed.track == whole.track
    assert (resumed.negatives == whole.negatives).all()


def test_a_record_tells_the_run_and_is_read_the_second_time(context, params, monkeypatch):
    record = measure(context, params)
    assert 0 <= record["recall@1"] <= record["recall@10"] <= record["recall@50"] <= 1
    assert {category: len(above) for category, above in record["above"].items()} == {"hat": 3, "shoe": 3}
    assert record["chance"] == 1  # ten of five candidates
    assert "satisfies_edit" not in record  # these pictures' attributes are not known
    monkeypatch.setattr(cells_module, "train_preferences", lambda *_: pytest.fail("was run again"))
    assert measure(context, params) == json.loads(json.dumps(record))


def test_a_record_is_not_read_for_other_parameters_or_models(context, params, monkeypatch):
    measure(context, params)
    runs = []
    monkeypatch.setattr(cells_module, "train_preferences", lambda *args: runs.append(args) or train_preferences(*args))
    measure(context, with_changes(params, {"beta": 0.2}))
    measure(context, params.model_copy(update={"grid_edits": 7}))  # of the grid, not of this run
    assert len(runs) == 1
    torch.manual_seed(9)
    save_weights(new_composer(context.prepared), context.checkpoints / "qformer")
    del context.__dict__["_identity"]
    measure(context, params)
    assert len(runs) == 2


def test_comments_and_docstrings_do_not_throw_records_away():
    plain = "def f(x):\n    return x + 1\n"
    told = '"""What."""\n\ndef f(x):\n    """How."""\n    return x + 1  # why\n'
    assert cells_module._without_docstrings(plain) == cells_module._without_docstrings(told)
    assert cells_module._without_docstrings(plain) != cells_module._without_docstrings(plain.replace("1", "2"))


def test_quality_is_told_where_attributes_are_known(context, params, write_json):
    attributes = {image: {"colour": image[-1], "fit": "loose"} for image in IDS}
    write_json(context.prepared.stage.images / "attributes.json", attributes)
    record = measure(context, params)
    assert record["satisfies_edit"] == 0  # every picture of a category has its own colour
    assert record["differs_in_one"] == 1


@pytest.mark.parametrize("left", ["", "[]", "null", "{}", '{"above": {}', b"\xff\xfe"])
def test_a_damaged_record_is_measured_again(context, params, left):
    whole = measure(context, params)
    (file,) = (context.folder / "cells").iterdir()
    file.write_bytes(left if isinstance(left, bytes) else left.encode())
    again = measure(context, params)
    assert {**again, "seconds": 0} == {**whole, "seconds": 0}
    assert json.loads(file.read_text()) == again


def test_other_captions_or_another_weight_of_the_sum_are_another_run(make_bench, write_json, params):
    context = make_bench()
    summed = with_changes(params, {"fusion": "sum"})
    keys = {cells_module._key(context, params, False), cells_module._key(context, summed, False)}
    other = make_bench()
    other.weight = 0.9
    assert cells_module._key(other, params, False) in keys
    keys.add(cells_module._key(other, summed, False))
    file = context.prepared.stage.images / "captions" / "cap.hat.val.json"
    records = json.loads(file.read_text())
    write_json(file, [{**records[0], "captions": ["is red"]}, *records[1:]])
    keys |= {cells_module._key(make_bench(), one, False) for one in (params, summed)}
    assert len(keys) == 5


def test_two_runs_do_not_encode_into_one_folder(context, monkeypatch):
    monkeypatch.setattr(bench_module, "hold", lambda folder: False)
    with pytest.raises(StageError, match=r"another run is encoding images into .*runs: start this one again"):
        _ = context._early


def test_the_recall_is_that_of_the_embeddings(context, params):
    outcome = train_preferences(context, params)
    evaluation, parts = context.prepared.stage.study.evaluation, context.prepared.splits.reported
    embedded = embed_parts(outcome.encoder, parts, evaluation)
    scored = score_embedded(embedded, evaluation, "m")
    for one in scored:
        part = embedded[one.category]
        queries = F.normalize(part.raw, dim=-1)
        for row, triplet in enumerate(one.benchmark.triplets):
            scores = dict(zip(one.benchmark.gallery, (part.gallery @ queries[row]).tolist(), strict=True))
            above = [i for i, s in scores.items() if s > scores[triplet.targets[0]] + 1e-6 and i != triplet.reference]
            assert one.ranks.above[row] == len(above)
    told = describe(embedded, scored)
    assert told["recall@10"] == pytest.approx(np.mean([one.recall(10).mean() for one in scored]))


def test_the_command_says_what_differs_from_the_defaults_and_from_the_study(context):
    study = context.prepared.stage.study
    told = command(study, with_changes(study.dpo, {"beta": 0.3, "index": "ivf", "nlist": 4}))
    assert told.startswith("dvc exp run -S study=small ")
    assert told.endswith(" dpo")
    for part in (
        "dpo.beta=0.3",
        "dpo.index=ivf",
        "dpo.nlist=4",
        "dpo.epochs=2",
        "dpo.num_negatives=2",
        "dpo.grid=none",
    ):
        assert f"-S {part} " in told
    assert "grid_edits" not in told
    assert "dpo.fusion" not in told
    assert "-S dpo.epochs=1 " in command(study, with_changes(study.dpo, {"epochs": 1}))  # the default, not the study's


def test_every_mistake_has_its_curve(make_bench):
    context = make_bench(grid="small", grid_edits=8, grid_epochs=2, grid_batch_size=4)
    params = context.prepared.stage.study.dpo
    table = run_mistakes(context, params, every=2)
    assert list(dict.fromkeys(table["mistake"])) == [mistake.name for mistake in mistakes(params)]
    for _, rows in table.groupby("mistake"):
        assert rows["step"].tolist() == [0, 2, 4]
        assert rows["recall@10"].between(0, 1).all()
    start = table[table["step"] == 0].set_index("mistake")["recall@10"]
    assert start["chosen and rejected swapped"] == start["none: as the paper describes it"]


def test_the_recipe_compares_second_trainings_with_the_first(make_bench):
    context = make_bench(grid="small", grid_edits=3)
    table, tests = run_recipe(context, context.prepared.stage.study.dpo)
    assert table["method"].tolist()[0] == START
    assert len(table) == 4
    assert table["value"].between(0, 1).all()
    assert table["dev/recall@10"].between(0, 1).all()
    assert len(tests) == 5
    start = embed_parts(context.encoder(with_changes(DPO(), {"fusion": "qformer", "start": "finetuned"}), frozen=True),
                        context.prepared.splits.reported, context.prepared.stage.study.evaluation)  # fmt: skip
    scored = score_embedded(start, context.prepared.stage.study.evaluation, "s")
    assert table["value"][0] == pytest.approx(np.mean([one.recall(10).mean() for one in scored]))


def test_without_a_train_part_every_section_is_empty(make_bench):
    context = make_bench(grid="small")
    for file in (context.prepared.stage.images / "captions").glob("cap.*.train.json"):
        file.unlink()
    experiment = Experiment(context.prepared)
    tables = [getattr(experiment, n)() for n in ("steps", "trajectory", "sweep", "mistakes", "factorial", "effects")]
    assert all(len(table) == 0 for table in [*tables, experiment.negatives(), *experiment.recipe])
    assert experiment.scored() == []
    assert experiment.why_not == "Nothing was trained: the data has no train part."


def test_without_a_q_former_the_grid_says_which_command_makes_one(make_bench):
    import shutil

    from cirlib.study.errors import StageError

    context = make_bench(grid="small")
    shutil.rmtree(context.checkpoints)
    with pytest.raises(StageError, match="run `dvc repro qformer` first"):
        Experiment(context.prepared)
