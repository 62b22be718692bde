"""The Q-Former's trainings: what they learn, how they go on after a stop, and what is trained from what."""

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from cirlib.figures import learning_curves
from cirlib.models.prepared import Prepared
from cirlib.models.qformer import QFormerComposer, load_weights
from cirlib.models.qformer_embedding import embed_gallery, embed_queries, new_composer
from cirlib.retrieval.scoring import mean_recall
from cirlib.study.errors import ParameterError
from cirlib.study.parameters import Evaluation, QFormer
from cirlib.training import qformer_training
from cirlib.training.batches import TripletSampler
from cirlib.training.loop import KNOWN, SELECT, History
from cirlib.training.qformer_training import DECIDES, QFormerTrainer, save_training, score_composers, train_qformer


def timeless(history: History) -> list[dict]:
    return [{k: v for k, v in record.items() if not k.endswith("/s")} for record in history.records]


def assert_same_weights(one: QFormerComposer, other: QFormerComposer) -> None:
    for name, tensor in one.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name


@pytest.fixture
def tune(tokens, parts, make_study) -> Callable[..., History]:
    """Fine-tunes a composer in a folder, from the first epoch on with two mined negatives."""

    def run(composer, folder: Path, mining: bool = True, warm_start: Path | None = None, **qformer) -> History:
        torch.manual_seed(0)
        study = make_study(**{"mine_from": 0, "hard_negatives": 2, **qformer})
        trainer, sampler = QFormerTrainer(composer, tokens, study, folder), TripletSampler(tokens, parts, study)
        return trainer.finetune(sampler, parts, hard_negatives=mining, warm_start=warm_start)

    return run


@pytest.fixture
def mined(monkeypatch) -> list[np.ndarray]:
    """The negatives of every mining."""
    found: list[np.ndarray] = []
    mine = qformer_training.mine_for_triplets
    monkeypatch.setattr(
        qformer_training, "mine_for_triplets", lambda *arguments: found.append(mine(*arguments)) or found[-1]
    )
    return found


@pytest.mark.parametrize(("captions", "orders"), [("and", [1]), ("both_orders", [1, -1])])
def test_scores_are_the_ranks_of_each_category_by_the_best_token(composer, tokens, parts, captions, orders):
    composer.dtype = torch.float32
    scored = score_composers({"a": composer}, tokens, parts, Evaluation(reference="kept", captions=captions))
    assert [(one.method, one.category) for one in scored] == [("a", "hat"), ("a", "shoe")]
    for one, part in zip(scored, parts.values(), strict=True):
        references, gallery = tokens.rows([t.reference for t in part.triplets]), tokens.rows(part.gallery)
        both = [[f"is {t.category} {i}", f"has {i} dots"] for i, t in enumerate(part.triplets)]
        texts = [[" and ".join(pair[::order]) for pair in both] for order in orders]
        queries = sum(embed_queries(composer, tokens, references, some) for some in texts)
        scores = torch.einsum("nd,mtd->nmt", queries, embed_gallery(composer, tokens, gallery)).amax(-1)
        for row, triplet in enumerate(part.triplets):
            wanted = scores[row, part.gallery.index(triplet.targets[0])]
            assert one.ranks.above[row] == (scores[row] > wanted + 1e-6).sum()
            assert one.top[row][0] == part.gallery[scores[row].argmax()]


@pytest.mark.parametrize(("mine_from", "epochs"), [(0, 3), (2, 1), (3, 0)])
def test_negatives_are_mined_anew_each_epoch_after_the_plain_ones(composer, tune, mined, tmp_path, mine_from, epochs):
    tune(composer, tmp_path / "run", mine_from=mine_from, lr=0.05)
    assert len(mined) == epochs
    assert epochs < 3 or (mined[0] != mined[2]).any()  # the weights have moved on


@pytest.mark.parametrize("stop", [2, 6])  # of nine batches
def test_a_killed_run_called_again_trains_on_the_same_negatives(start, tune, mined, tmp_path, monkeypatch, stop):
    whole, again = deepcopy(start), deepcopy(start)
    expected = tune(whole, tmp_path / "whole")
    wanted, losses = mined.copy(), iter([qformer_training.batch_loss] * (stop - 1))
    with monkeypatch.context() as patch, pytest.raises(StopIteration):
        patch.setattr(qformer_training, "batch_loss", lambda *arguments: next(losses)(*arguments))
        tune(deepcopy(start), tmp_path / "cut" / "whole")
    mined.clear()
    assert timeless(tune(again, tmp_path / "cut" / "whole")) == timeless(expected)
    np.testing.assert_array_equal(mined, wanted[-len(mined) :])
    assert_same_weights(again, whole)


def test_finetuning_learns_and_keeps_the_best_dev_epoch(composer, tokens, parts, tune, mined, tmp_path):
    records = tune(composer, tmp_path / "run", mining=False, epochs=8).records
    assert mined == []
    assert records[-1]["loss"] < 0.8 * records[0]["loss"]
    recall = mean_recall(score_composers({"x": composer}, tokens, parts, Evaluation()), 10)
    assert max(record["dev/recall@10"] for record in records) == pytest.approx(recall)


def test_every_parameter_is_known_to_decide_a_training_or_not_to():
    in_the_weights = {"num_query_tokens", "width", "layers"}
    in_the_configuration = {"pretraining_epochs", "pretraining_lr", "epochs", "lr", "accumulation", "recipe"}
    in_the_configuration |= {"temperature_lr"}
    in_the_data = {"whole_train"}
    needs = {"processes", "chunk_size", "gradient_checkpointing", "retrain"}
    others = {name for name in QFormer.model_fields if name.startswith("prompt_")}
    others |= {"combiner_lr", "method_epochs", "methods", "phi", "phi_lr", "rerank", "text_lr"}  # of the other methods
    known = set().union(*DECIDES.values()) | in_the_weights | in_the_configuration | in_the_data | needs | others
    assert known == set(QFormer.model_fields)


@pytest.mark.parametrize("change", ["triplets", "tokens", "rules", "needs", "mining"])
def test_a_finetuning_on_something_else_is_not_gone_on_with(
    start, tokens, parts, make_study, tmp_path, make_store, make_benchmark, change, capsys
):
    def run(tokens, parts, **rules) -> None:
        study = make_study(epochs=1, **rules)
        sampler = TripletSampler(tokens, parts, study)
        QFormerTrainer(deepcopy(start), tokens, study, tmp_path / "run").finetune(sampler, parts)

    run(tokens, parts)
    rules = {"rules": {"batch_size": 3}, "needs": {"chunk_size": 2}, "mining": {"range_max": 40}}.get(change, {})
    if change == "triplets":
        queries = [(t.reference, t.targets[0], "is new") for t in parts["hat"].triplets]
        parts = {**parts, "hat": make_benchmark(queries, parts["hat"].gallery)}
    elif change == "tokens":
        tokens = make_store(tmp_path / "other", tokens.ids, tokens[tokens.ids], key="another tower")
    run(tokens, parts, **rules)
    assert (KNOWN in capsys.readouterr().out) == (change in ("needs", "mining"))


def test_pretraining_brings_pictures_and_their_captions_together(composer, start, tokens, make_study, tmp_path):
    pairs = [{"image": image, "caption": f"picture of {i} and {image}"} for i, image in enumerate(tokens.ids[:12])]

    def hits(model: QFormerComposer) -> int:
        """How many captions are nearest to their own picture."""
        with torch.inference_mode():
            texts = model.embed_texts([pair["caption"] for pair in pairs])
            images = model.embed_targets(tokens.read(np.arange(12), model.device))
        best = torch.einsum("bd,ntd->bnt", texts, images).amax(-1)
        return int((best.argmax(1).cpu() == torch.arange(12)).sum())

    study = make_study(batch_size=6, pretraining_epochs=40)
    records = QFormerTrainer(composer, tokens, study, tmp_path).pretrain(pairs).records
    assert records[0].keys() == {"epoch", "loss", "pairs/s"}
    assert records[-1]["loss"] < 0.5 * records[0]["loss"]
    assert hits(composer) >= 6 > 3 >= hits(start)


def test_pretraining_on_other_pairs_starts_over(start, tokens, make_study, tmp_path, capsys):
    for word in ("number", "another"):
        pairs = [{"image": image, "caption": f"{word} {i}"} for i, image in enumerate(tokens.ids[:4])]
        QFormerTrainer(deepcopy(start), tokens, make_study(pretraining_epochs=1), tmp_path).pretrain(pairs)
    assert "loaded" not in capsys.readouterr().out


@pytest.fixture
def ready(custom_stage, tiny_blip2, make_store) -> Callable[..., Prepared]:
    """The small study on a tiny BLIP-2, its tokens random."""

    def prepare(**qformer) -> Prepared:
        block = {"pretraining_epochs": 1, "epochs": 1, "batch_size": 4, "mine_from": 0, "lr": 1e-3, **qformer}
        stage = custom_stage("qformer", models={"fusion": str(tiny_blip2), "precision": "fp32"}, qformer=block)
        ids = [f"{c}-{s}-{i}" for c in ("hat", "shoe") for s, size in (("train", 9), ("val", 6)) for i in range(size)]
        ids += [f"pair-{i}" for i in range(6)]
        make_store(stage.data / "tokens", ids, torch.randn(len(ids), 5, 24, generator=torch.Generator().manual_seed(2)))
        return Prepared(stage)

    return prepare


def test_the_stage_trains_both_runs_and_writes_what_later_stages_open(ready, mined, capsys):
    prepared = ready(epochs=2, mine_from=1)
    stage = prepared.stage
    composers, table = train_qformer(prepared)
    assert table["run"].tolist() == ["pretraining"] + ["qformer"] * 2 + ["qformer_hard_negatives"] * 2
    assert table["epoch"].tolist() == [1, 1, 2, 1, 2]
    loss = table["loss"].tolist()
    assert loss[1] == loss[3] and loss[2] != loss[4]  # the epoch before the first mining is run once
    assert "qformer_hard_negatives: goes on after epoch 1" in capsys.readouterr().out
    assert len(mined) == 1
    save_training(composers, table, stage.out)
    assert (
        {path.name for path in (stage.out / "checkpoints").iterdir()}
        == set(composers)
        == {"qformer_pretrained", "qformer", "qformer_hard_negatives"}
    )
    for name, composer in composers.items():
        assert not composer.training
        loaded = new_composer(prepared)
        load_weights(loaded, stage.out / "checkpoints" / name)
        assert_same_weights(loaded, composer)
    for evaluation in ({}, {"gallery": "val_split", "reference": "kept"}):  # one training serves every protocol
        prepared = ready(epochs=2, mine_from=1)
        study = prepared.stage.study.model_copy(update={"evaluation": Evaluation(**evaluation)})
        again, same_table = train_qformer(Prepared(replace(prepared.stage, study=study)))
        assert same_table.equals(table)
        assert [line.split(": ")[1] for line in capsys.readouterr().out.splitlines()] == [KNOWN] * 3
        for name, composer in composers.items():
            assert_same_weights(again[name], composer)
    anew = train_qformer(ready(epochs=2, mine_from=1, retrain=True))[1]
    assert anew["loss"].tolist() == loss
    assert "loaded" not in capsys.readouterr().out
    train_qformer(ready(epochs=2, mine_from=1, range_max=3))  # mines from fewer: only that run is another
    lines = [line for line in capsys.readouterr().out.splitlines() if "trained before" in line]
    assert [line.split(": ")[0] for line in lines] == ["pretraining", "qformer"]


def test_on_the_whole_train_set_nothing_is_held_out_the_last_epoch_counts_and_nothing_is_mined(ready, monkeypatch):
    rows: list[int] = []

    def loss(composer, _tokens, batch, *_options):
        rows.extend(batch.targets)
        return composer.query_tokens.sum()

    monkeypatch.setattr(qformer_training, "batch_loss", loss)
    prepared = ready(pretraining_epochs=0, epochs=2, whole_train=True, hard_negatives=0)
    composers, table = train_qformer(prepared)
    assert list(composers) == ["qformer_pretrained", "qformer"]
    assert len(rows) == 2 * 14 and table[SELECT].isna().all()
    assert learning_curves(table).axes[0].get_title("left") == "Q-Former"
    save_training(composers, table, prepared.stage.out)
    assert json.loads((prepared.stage.out / "best_run.json").read_text()) == {"run": "qformer"}


@pytest.mark.parametrize(
    ("scores", "best"), [((0.2, 0.6, 0.3, 0.5), 1), ((0.2, 0.3, 0.4, 0.2), 2), ((0.5, 0.2, 0.5, 0.2), 0)]
)
def test_the_better_run_on_dev_is_written(tmp_path, scores, best):
    runs = ["qformer", "qformer", "qformer_hard_negatives", "qformer_hard_negatives"]
    save_training({}, pd.DataFrame({"run": ["pretraining", *runs], "dev/recall@10": [None, *scores]}), tmp_path)
    written = json.loads((tmp_path / "best_run.json").read_text())
    assert written == {"run": runs[best], "dev/recall@10": scores[best]}


@pytest.mark.parametrize("has_train_split", [True, False])
def test_where_nothing_is_trained_the_composers_are_those_given_and_no_run_is_best(ready, has_train_split):
    prepared = ready(pretraining_epochs=0, epochs=0)
    if not has_train_split:
        for file in (prepared.stage.images / "captions").glob("cap.*.train.json"):
            file.unlink()
    composers, table = train_qformer(prepared)
    assert list(composers) == ["qformer_pretrained", "qformer", "qformer_hard_negatives"][: 3 if has_train_split else 1]
    assert table.columns.tolist() == ["run", "epoch", "loss", "dev/recall@10"] and len(table) == 0
    for composer in composers.values():
        assert not composer.training
        assert_same_weights(composer, new_composer(prepared))
    save_training(composers, table, prepared.stage.out)
    assert not (prepared.stage.out / "best_run.json").exists()


def test_hard_negatives_that_the_images_cannot_give_are_refused_before_anything_is_trained(ready):
    prepared = ready(hard_negatives=8)
    with pytest.raises(ParameterError, match=r"is 8, at most 6 is allowed: so many images has hat"):
        train_qformer(prepared)
    assert not prepared.stage.trainings.exists()
