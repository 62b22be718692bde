"""Retrieval-DPO: which negatives are mined, the loss against a plain loop, and that only the text side learns."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cirlib.devices import best_device
from cirlib.encoders.clip import load_clip
from cirlib.params import DPO, Data, Models, Study
from cirlib.preparation import Prepared
from cirlib.retrieval_dpo import (
    STEP_COLUMNS,
    Preferences,
    learn_text_only,
    mine_preferences,
    preference_loss,
    run_dpo,
    score_text_query,
    score_trained,
    train_dpo,
)
from cirlib.training import History

QUERIES = {"hat": 6, "shoe": 5}
IMAGES = [f"{category}-{i}" for category in QUERIES for i in range(8)]
FEATURES = F.normalize(torch.randn(len(IMAGES), 12, generator=torch.Generator().manual_seed(0)), dim=-1)
STORED = FEATURES.half().float()


@pytest.fixture
def towers(tiny_clip):
    """Loaded for each test, which may train them."""
    name, file = tiny_clip
    return load_clip(name, str(file), device=best_device(), dtype=torch.float32)


@pytest.fixture
def store(tmp_path, make_store):
    return make_store(tmp_path / "store", IMAGES, FEATURES)


@pytest.fixture
def parts(make_chains):
    return make_chains(QUERIES, (3, 0, 7, 1, 5, 2, 6, 4), lambda name, i: (f"is {name} {i}", "has dots."))


def study_of(**dpo) -> Study:
    block = {"num_negatives": 3, "epochs": 3, "batch_size": 4, "lr": 3e-3, **dpo}
    return Study(name="t", data=Data(root=Path("x")), models=Models(precision="fp32"), dpo=DPO(**block))


# ------------------------------------------------------------------ mining


@pytest.mark.parametrize("skipped", [0, 2])
def test_negatives_are_the_best_ranked_images_of_the_category_without_the_target(towers, store, parts, skipped):
    preferences = mine_preferences(towers, store, parts, study_of(range_min=skipped))
    triplets = [triplet for part in parts.values() for triplet in part.triplets]
    assert preferences.texts == [f"Is {t.category} {t.reference[-1]} and has dots" for t in triplets]
    queries = towers.encode_texts(preferences.texts)
    for row, triplet in enumerate(triplets):
        assert IMAGES[preferences.chosen[row]] == triplet.targets[0]
        others = [IMAGES.index(image) for image in parts[triplet.category].gallery if image != triplet.targets[0]]
        ranking = sorted(others, key=lambda image: -float(queries[row] @ STORED[image]))
        assert preferences.rejected[row].tolist() == ranking[skipped : skipped + 3]
        assert preferences.reference_chosen[row].item() == pytest.approx(
            100 * float(queries[row] @ STORED[preferences.chosen[row]]), abs=1e-3
        )
        expected = [100 * float(queries[row] @ STORED[image]) for image in preferences.rejected[row]]
        assert preferences.reference_rejected[row].tolist() == pytest.approx(expected, abs=1e-3)


def test_drawn_negatives_are_never_the_target_and_depend_on_the_seed(towers, store, parts):
    drawn = []
    for seed in (0, 0, 1):
        study = study_of(sampling="random").model_copy(update={"seed": seed})
        preferences = mine_preferences(towers, store, parts, study)
        assert (preferences.rejected != preferences.chosen[:, None]).all()
        assert (preferences.rejected // 8 == preferences.chosen[:, None] // 8).all()  # of the same category
        drawn.append(preferences.rejected)
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any()


def test_all_the_others_can_be_negatives(towers, store, parts):
    preferences = mine_preferences(towers, store, parts, study_of(num_negatives=7))
    for chosen, rejected in zip(preferences.chosen.tolist(), preferences.rejected.tolist(), strict=True):
        assert sorted([chosen, *rejected]) == list(range(8 * (chosen // 8), 8 * (chosen // 8) + 8))


def test_too_few_negatives_are_refused_with_the_parameters_that_ask_for_them(towers, store, parts):
    with pytest.raises(ValueError) as caught:
        mine_preferences(towers, store, parts, study_of(num_negatives=6, range_min=2, range_max=20))
    assert str(caught.value) == (
        "fewer than dpo.num_negatives=6 negatives between dpo.range_min=2 and dpo.range_max=20 in a gallery of 8"
    )


# ------------------------------------------------------------------ the loss


def pair_loss(kind: str, beta: float, margin: float) -> float:
    if kind == "hinge":
        return max(0.0, 1 - beta * margin)
    if kind == "ipo":
        return (margin - 1 / (2 * beta)) ** 2
    return math.log(1 + math.exp(-beta * margin))


@pytest.mark.parametrize("kind", ["sigmoid", "hinge", "ipo"])
@pytest.mark.parametrize("scale", [100.0, 7.0])
def test_the_loss_is_that_of_a_loop_over_edits_and_negatives(store, kind, scale):
    generator = torch.Generator().manual_seed(3)
    chosen, rejected = np.array([1, 9, 4, 15]), np.array([[0, 2, 3], [8, 10, 11], [5, 6, 7], [12, 13, 14]])
    before, before_rejected = torch.randn(4, generator=generator), torch.randn(4, 3, generator=generator)
    preferences = Preferences(["a", "b", "c", "d"], chosen, rejected, before, before_rejected)
    rows = torch.tensor([2, 0])  # some, and in another order
    queries = F.normalize(torch.randn(2, 12, generator=generator), dim=-1)
    params = DPO(beta=0.3, loss_type=kind, scale=scale)
    losses, chosen_rewards, rejected_rewards = preference_loss(queries, store, preferences, rows, params)
    assert losses.shape == rejected_rewards.shape == (2, 3)
    for b, row in enumerate(rows.tolist()):
        good = scale * float(queries[b] @ STORED[chosen[row]]) - before[row].item()
        assert chosen_rewards[b].item() == pytest.approx(0.3 * good, rel=1e-4, abs=1e-4)
        for k in range(3):
            bad = scale * float(queries[b] @ STORED[rejected[row, k]]) - before_rejected[row, k].item()
            assert rejected_rewards[b, k].item() == pytest.approx(0.3 * bad, rel=1e-4, abs=1e-4)
            assert losses[b, k].item() == pytest.approx(pair_loss(kind, 0.3, good - bad), rel=1e-3, abs=1e-4)


# ------------------------------------------------------------------ what learns


def test_only_the_text_side_is_freed(towers):
    towers.model.requires_grad_(False)
    learn_text_only(towers)
    visual = {id(p) for p in towers.model.visual.parameters()}
    for name, parameter in towers.model.named_parameters():
        frozen = id(parameter) in visual or name == "logit_scale"
        assert parameter.requires_grad is not frozen, name


@pytest.fixture
def trained(towers, store, parts, tmp_path):
    before = {name: tensor.clone() for name, tensor in towers.model.state_dict().items()}
    study = study_of()
    preferences = mine_preferences(towers, store, parts, study)
    history = train_dpo(towers, store, preferences, parts, study, tmp_path / "run")
    return towers, before, history, preferences, study


def test_training_leaves_the_image_side_and_the_scale_to_the_last_bit(trained):
    towers, before, *_ = trained
    changed = {name for name, tensor in towers.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert not any(name.startswith("visual.") or name == "logit_scale" for name in changed)
    assert "token_embedding.weight" in changed


def test_training_starts_at_no_margin_and_pushes_wanted_and_mined_images_apart(trained):
    _, _, history, *_ = trained
    assert list(history.steps[0]) == STEP_COLUMNS
    assert [step["step"] for step in history.steps] == list(range(1, 10))  # 11 edits, batches of 4, 3 epochs
    first, last = history.steps[0], history.steps[-3:]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-3)
    assert first["margin"] == pytest.approx(0, abs=1e-2)
    assert first["chosen_reward"] == pytest.approx(0, abs=1e-2)
    assert np.mean([step["loss"] for step in last]) < 0.9 * math.log(2)
    assert min(step["margin"] for step in last) > 0
    for step in history.steps:
        assert step["margin"] == pytest.approx(step["chosen_reward"] - step["rejected_reward"], abs=1e-4)
        assert 0 <= step["accuracy"] <= 1


def test_an_epoch_is_recorded_with_its_dev_recall(trained, store, parts):
    towers, _, history, _, study = trained
    assert [record["epoch"] for record in history.records] == [1, 2, 3]
    assert history.records[0].keys() == {"epoch", "loss", "dev/recall@10", "edits/s"}
    scored = score_text_query(towers, store, parts, study, "x")
    best = history.best("dev/recall@10")["dev/recall@10"]
    assert np.mean([one.recall(10).mean() for one in scored]) == pytest.approx(best)


def test_a_finished_training_is_not_repeated(trained, tiny_clip, store, parts, tmp_path, capsys):
    towers, _, history, preferences, study = trained
    capsys.readouterr()
    again = load_clip(tiny_clip[0], str(tiny_clip[1]), device=best_device(), dtype=torch.float32)
    assert train_dpo(again, store, preferences, parts, study, tmp_path / "run") == history
    assert capsys.readouterr().out == "retrieval_dpo: goes on after epoch 3\n"
    for name, tensor in towers.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor), name


def test_the_query_is_the_edit_alone(towers, store, parts):
    scored = score_text_query(towers, store, parts, study_of(), "m")
    assert [(one.method, one.category) for one in scored] == [("m", "hat"), ("m", "shoe")]
    part = parts["shoe"]
    queries = towers.encode_texts([f"Is shoe {i} and has dots" for i in range(5)])
    for row, triplet in enumerate(part.triplets):
        scores = {image: float(queries[row] @ STORED[IMAGES.index(image)]) for image in part.gallery}
        wanted = scores[triplet.targets[0]]
        above = [image for image, value in scores.items() if value > wanted + 1e-6 and image != triplet.reference]
        assert scored[1].ranks.above[row] == len(above)


# ------------------------------------------------------------------ the whole stage


@pytest.fixture
def prepared(custom_stage, make_store) -> Prepared:
    dpo = {"num_negatives": 2, "epochs": 1, "batch_size": 6}
    stage = custom_stage("dpo", dpo=dpo, models={"precision": "fp32"})
    ids = [f"{c}-{s}-{i}" for c in ("hat", "shoe") for s, size in (("train", 9), ("val", 6)) for i in range(size)]
    features = F.normalize(torch.randn(30, 12, generator=torch.Generator().manual_seed(0)), dim=-1)
    make_store(stage.data / "clip", ids, features)
    return Prepared(stage)


def test_the_stage_trains_on_train_and_scores_what_is_reported(towers, prepared):
    history = run_dpo(towers, prepared)
    assert [record["epoch"] for record in history.records] == [1]
    assert len(history.steps) == 2  # of 14 train queries 2 are dev
    scored = score_trained(towers, prepared, history)
    assert [(one.method, one.category) for one in scored] == [("retrieval_dpo", "hat"), ("retrieval_dpo", "shoe")]
    assert [len(one.ranks) for one in scored] == [3, 3]


def test_without_a_train_split_nothing_is_trained_or_scored(towers, prepared):
    for file in (prepared.stage.images / "captions").glob("cap.*.train.json"):
        file.unlink()
    before = {name: tensor.clone() for name, tensor in towers.model.state_dict().items()}
    history = run_dpo(towers, prepared)
    assert history == History("retrieval_dpo")
    assert score_trained(towers, prepared, history) == []
    assert all(torch.equal(tensor, before[name]) for name, tensor in towers.model.state_dict().items())
