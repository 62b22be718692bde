"""What a stage says it needs, and when it refuses to start."""

from __future__ import annotations

import shutil
from collections import namedtuple

import pytest
import torch
from test_images import MeanColour
from torch import nn

from cirlib.models.preparation import Prepared, encode_tokens, needed_images
from cirlib.study.errors import ResourceError
from cirlib.study.resources import (
    Needs,
    StepWatch,
    duration,
    encoding_needs,
    kept_for_backward,
    require_disk,
    size,
    state_bytes,
)
from cirlib.training.loop import Recipe, train

Usage = namedtuple("Usage", "total used free")


def test_sizes_and_times_are_for_reading():
    assert [size(n) for n in (512, 2_500_000, 28_900_000_000, 1.2e12)] == ["0.512 kB", "2.5 MB", "28.9 GB", "1.2 TB"]
    assert [duration(s) for s in (12, 89, 120, 5_400, 36_000)] == ["12 s", "89 s", "2 min", "1.5 h", "10 h"]


def test_needs_are_one_line():
    needs = Needs("image tokens of 39,952 images", "images", 17.0, 2350.1, 28_900_000_000, 3_000_000_000, None)
    assert str(needs) == "image tokens of 39,952 images: 28.9 GB on disk, 3 GB of memory, 39 min at 17 images/s"


def test_a_disk_that_is_too_small_is_refused_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10e9, 0, 10e9))
    require_disk(tmp_path / "not" / "there", int(9e9), "make room")
    with pytest.raises(ResourceError, match=r"needs 9\.8 GB and its disk has 10 GB free: make room"):
        require_disk(tmp_path / "not" / "there", int(9.8e9), "make room")


def test_encoding_needs_its_bytes_and_the_time_of_what_was_measured(tmp_path, write_image):
    files = [write_image(tmp_path / f"{i}.png", seed=i) for i in range(20)]
    encoder = MeanColour()
    needs = encoding_needs("means", encoder, files, bytes_an_image=6, workers=2)
    assert (needs.disk, encoder.seen) == (120, 16)
    assert needs.seconds == pytest.approx(20 / needs.rate)
    assert needs.memory > 200_000_000
    assert (needs.gpu_memory is None) == (not torch.cuda.is_available())


def test_encoding_stops_before_it_begins_where_the_disk_is_too_small(custom_stage, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1e9, 1e9, 0))
    prepared = Prepared(custom_stage("data_prep", models={"image_size": 64, "precision": "fp32"}))
    with pytest.raises(ResourceError, match=r"its disk has 0 kB free.*models\.cache_tokens to false"):
        encode_tokens(prepared, needed_images(prepared))
    assert not (prepared.stage.data / "tokens").exists()


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 20), nn.Dropout(0.5), nn.Sigmoid(), nn.Linear(20, 1)).train()


def loss_of(model: nn.Module, rows: int) -> torch.Tensor:
    return model(torch.ones(rows, 10)).pow(2).mean()


def test_what_the_backward_pass_keeps_is_counted_once_and_without_weights(model):
    kept = {}
    for rows in (32, 64):
        with kept_for_backward(model) as seen:
            loss = loss_of(model, rows)
        kept[rows] = sum(seen.values())
        loss.backward()
    # input 32 × 10, dropout's mask, sigmoid's output 32 × 20, the output that is squared 32 × 1
    assert 4 * 32 * (10 + 20 + 1) + 32 * 20 <= kept[32] <= 4 * 32 * (10 + 20 + 20 + 1) + 100
    assert kept[64] == pytest.approx(2 * kept[32], rel=0.01)


def test_gradients_are_the_same_under_the_count(model):
    state = torch.get_rng_state()
    loss_of(model, 8).backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    torch.set_rng_state(state)
    with kept_for_backward(model):
        loss = loss_of(model, 8)
    loss.backward()
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), expected, strict=True))


@pytest.mark.parametrize(("steps", "said_after"), [(5, 2), (1, 1)])
def test_a_training_says_once_what_all_its_steps_take(model, capsys, steps, said_after):
    watch = StepWatch("qformer", model, "triplets", steps)
    for step in range(1, steps + 1):
        with watch.forward():
            loss_of(model, 32)
        watch.after_step(32)
        said = capsys.readouterr().out
        assert said.startswith(f"qformer, {steps} steps of 32 triplets: ") == (step == said_after)


def test_a_training_needs_its_state_and_its_steps(model):
    model[0].requires_grad_(False)
    watch = StepWatch("qformer", model, "triplets", 100)
    needs = watch.needs(32, 0.5)
    weights, trained = 4 * (220 + 21), 4 * 21
    assert needs.disk == state_bytes(model) == 2 * weights + 2 * trained
    assert (needs.seconds, needs.rate) == (50, 64)


def test_a_batch_that_does_not_fit_says_what_to_lower(tmp_path):
    model = nn.Linear(2, 1)

    def too_large(batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    with pytest.raises(ResourceError, match=r"batch of 3 triplets does not fit.*lower batch_size"):
        train(model, lambda epoch: [[1, 2, 3]], 1, too_large, Recipe(1, 0.1, precision="fp32"), tmp_path, run="r")


def test_a_training_stops_before_it_begins_where_its_state_would_not_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1e9, 1e9, 0))
    with pytest.raises(ResourceError, match="make room on it, or move results/"):
        train(nn.Linear(2, 1), lambda epoch: [[1]], 1, None, Recipe(1, 0.1, precision="fp32"), tmp_path, run="r")
