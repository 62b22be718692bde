"""Prompt tuning: it learns on triplets, repeats itself, goes on after a stop, and is left out where it cannot be."""

import shutil

import pytest
import torch

from cirlib.analysis import zero_shot
from cirlib.models.fitted_methods import fit_methods
from cirlib.models.prepared import Prepared
from cirlib.models.weights import ModelError
from cirlib.retrieval.method_scoring import score_methods
from cirlib.training import two_tower_methods
from cirlib.training.prompt_tuning import PromptTuned


def tuned(prepared: Prepared) -> PromptTuned:
    method = PromptTuned()
    method.fit(prepared)
    return method


def test_it_learns_and_the_towers_stay_as_they_were(two_tower_study, capsys):
    prepared = two_tower_study()
    before = {name: tensor.clone() for name, tensor in prepared.towers().model.state_dict().items()}
    method = tuned(prepared)
    losses = [float(line.split("loss ")[1].split()[0]) for line in capsys.readouterr().out.splitlines()]
    assert len(losses) == 8 and losses[-1] < 0.8 * losses[0]
    assert method.weight != 0.5 and len(method.context) == 4
    for name, tensor in method.towers.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_the_score_is_that_of_the_weighted_sum_with_the_learned_texts(two_tower_study):
    prepared = two_tower_study(prompt_epochs=1)
    method = tuned(prepared)
    rules, parts = prepared.stage.study.evaluation, prepared.splits.reported
    embedded = zero_shot.embed(prepared, method.towers.encode_texts, parts, rules.captions)
    methods = zero_shot.baselines({"sum": method.weight.item()})
    expected = zero_shot.score_baselines({"sum": methods["sum"]}, embedded, rules)
    found = score_methods({"prompt_tuned": method}, prepared.read, parts, rules)
    for one, other in zip(found, expected, strict=True):
        assert one.method == "prompt_tuned" and one.target_ranks == other.target_ranks and one.top == other.top


def test_a_stopped_tuning_goes_on_to_the_same_prompts(two_tower_study, monkeypatch, capsys):
    expected = tuned(two_tower_study(prompt_epochs=3)).state_dict()
    shutil.rmtree(two_tower_study().stage.trainings)
    losses = iter([two_tower_methods.info_nce] * 5)  # of nine batches
    with monkeypatch.context() as patch, pytest.raises(StopIteration):
        patch.setattr(two_tower_methods, "info_nce", lambda *args, **options: next(losses)(*args, **options))
        tuned(two_tower_study(prompt_epochs=3))
    assert "goes on" not in capsys.readouterr().out
    again = tuned(two_tower_study(prompt_epochs=3)).state_dict()
    assert "prompt_tuned: goes on after epoch 1" in capsys.readouterr().out
    for name, tensor in expected.items():
        assert torch.equal(again[name], tensor), name


@pytest.mark.parametrize("why", ["not asked for", "no train split"])
def test_there_is_no_such_row_where_nothing_is_tuned(two_tower_study, why):
    prepared = two_tower_study(**({"methods": []} if why == "not asked for" else {}))
    if why == "no train split":
        for file in (prepared.stage.images / "captions").glob("cap.*.train.json"):
            file.unlink()
    assert fit_methods(Prepared(prepared.stage), prepared.stage.params.methods) == {}


def test_saved_prompts_come_back_and_others_are_refused_in_one_sentence(two_tower_study, tmp_path):
    prepared = two_tower_study(prompt_epochs=1)
    method, loaded = tuned(prepared), PromptTuned()
    method.save(tmp_path / "prompts.safetensors")
    loaded.load(prepared, tmp_path / "prompts.safetensors")
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, method.state_dict()[name])
    for broken in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(ModelError, match=r"^no method of this study could be loaded from .*$"):
            loaded.load(prepared, broken)
