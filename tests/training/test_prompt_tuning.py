"""Prompt tuning: it learns on triplets, repeats itself, goes on after a stop, and is left out where it cannot be."""

import json
import shutil

import pytest
import torch

from cirlib.analysis import zero_shot
from cirlib.models.mini import mini_towers, save_heads
from cirlib.models.prepared import Prepared
from cirlib.models.prompts import ModelError, PromptTunedTowers, load_prompts, save_prompts
from cirlib.retrieval.scoring import mean_recall
from cirlib.training import prompt_tuning
from cirlib.training.prompt_tuning import score_prompts, tune_prompts


@pytest.fixture
def ready(custom_stage, cpu, make_store):
    """The small study; the image of each query's target is embedded as the edit's words are, from other words on."""

    def prepare(**qformer) -> Prepared:
        block = {"prompt_epochs": 8, "prompt_lr": 0.02, "batch_size": 4, "hard_negatives": 1, **qformer}
        prepared = Prepared(custom_stage("qformer", models={"image_size": 64, "precision": "fp32"}, qformer=block))
        stage = prepared.stage
        if not (stage.data / "clip").is_dir():
            torch.manual_seed(0)
            stage.data.mkdir(parents=True)
            save_heads(mini_towers(64, width=16, **cpu), stage.data / "two_towers.safetensors")
            ids = list(prepared.images)
            words = [f"a photo of a thing that is {int(image.split('-')[-1]) - 1} sizes bigger" for image in ids]
            make_store(stage.data / "clip", ids, prepared.towers().encode_texts(words))
            (weights := stage.results("zero_shot") / "weights.json").parent.mkdir(parents=True)
            weights.write_text(json.dumps({"sum": 0.5, "slerp": 0.5}))
        return prepared

    return prepare


def state(composers: dict[str, PromptTunedTowers]) -> dict[str, torch.Tensor]:
    return composers["prompt_tuned"].state_dict()


def test_it_learns_and_the_towers_stay_as_they_were(ready):
    prepared = ready()
    before = {name: tensor.clone() for name, tensor in prepared.towers().model.state_dict().items()}
    composers, history = tune_prompts(prepared)
    assert history["epoch"].tolist() == list(range(1, 9))
    assert history["loss"].iloc[-1] < 0.8 * history["loss"].iloc[0]
    composer = composers["prompt_tuned"]
    assert composer.weight != 0.5 and len(composer.context) == 4
    for name, tensor in composer.towers.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    dev = score_prompts(composers, prepared, prepared.splits.dev, prepared.stage.study.evaluation)
    assert mean_recall(dev, 10) == history["dev/recall@10"].max()


def test_the_score_is_that_of_the_weighted_sum_with_the_learned_texts(ready):
    prepared = ready(prompt_epochs=1)
    composers, _ = tune_prompts(prepared)
    tuned, rules, parts = composers["prompt_tuned"], prepared.stage.study.evaluation, prepared.splits.reported
    embedded = zero_shot.embed(prepared, tuned.towers, parts, rules.captions)
    methods = zero_shot.baselines({"sum": tuned.weight.item()})
    expected = zero_shot.score_baselines({"sum": methods["sum"]}, embedded, rules)
    for one, other in zip(score_prompts(composers, prepared, parts, rules), expected, strict=True):
        assert one.method == "prompt_tuned" and one.target_ranks == other.target_ranks and one.top == other.top


def test_a_stopped_tuning_goes_on_to_the_same_prompts(ready, monkeypatch, capsys):
    expected = state(tune_prompts(ready(prompt_epochs=3))[0])
    shutil.rmtree(ready().stage.trainings)
    losses = iter([prompt_tuning.info_nce] * 5)  # of nine batches
    with monkeypatch.context() as patch, pytest.raises(StopIteration):
        patch.setattr(prompt_tuning, "info_nce", lambda *args, **options: next(losses)(*args, **options))
        tune_prompts(ready(prompt_epochs=3))
    assert "goes on" not in capsys.readouterr().out
    again = state(tune_prompts(ready(prompt_epochs=3))[0])
    assert "prompt_tuned: goes on after epoch 1" in capsys.readouterr().out
    for name, tensor in expected.items():
        assert torch.equal(again[name], tensor), name


@pytest.mark.parametrize("why", ["no epochs", "no train split"])
def test_there_is_no_such_row_where_nothing_is_tuned(ready, why):
    prepared = ready(prompt_epochs=0 if why == "no epochs" else 1)
    if why == "no train split":
        for file in (prepared.stage.images / "captions").glob("cap.*.train.json"):
            file.unlink()
    composers, history = tune_prompts(prepared := Prepared(prepared.stage))
    assert composers == {} and len(history) == 0
    assert score_prompts(composers, prepared, prepared.splits.reported, prepared.stage.study.evaluation) == []


def test_saved_prompts_come_back_and_others_are_refused_in_one_sentence(ready, tmp_path):
    composers, _ = tune_prompts(ready(prompt_epochs=1))
    save_prompts(composers["prompt_tuned"], tmp_path / "prompts.safetensors")
    towers = ready().towers()
    loaded = load_prompts(towers, tmp_path / "prompts.safetensors")
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, state(composers)[name])
    for broken in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(ModelError, match=r"^no prompts of this study could be loaded from .*$"):
            load_prompts(towers, broken)
