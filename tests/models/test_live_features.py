"""Features computed when asked for are those that would have been stored."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_images import MeanColour

from cirlib.models.feature_store import StoreError
from cirlib.models.image_encoding import encode_images
from cirlib.models.live_features import LiveFeatures
from cirlib.models.preparation import encode_tokens
from cirlib.models.prepared import Prepared, needed_images


class LiveMeanColour(MeanColour):
    def encode_pixels(self, pixels):
        return pixels.mean((2, 3))


@pytest.fixture
def pictures(tmp_path, write_image):
    return {f"p{i}": write_image(tmp_path / "images" / f"p{i}.png", seed=i) for i in range(7)}


@pytest.mark.parametrize("num_workers", [0, 3])
def test_live_features_are_the_stored_ones_without_their_rounding(tmp_path, pictures, num_workers):
    live = LiveFeatures(LiveMeanColour(), pictures, num_workers)
    store = encode_images(MeanColour(), pictures, tmp_path / "store", num_workers=0)
    ids = ["p5", "p0", "p5", "p6"]
    assert (len(live), live.shape, live.ids) == (len(store), store.shape, store.ids)
    assert live.rows(ids).tolist() == store.rows(ids).tolist()
    for read in (lambda s: s[ids], lambda s: s.read(s.rows(ids), torch.device("cpu"))):
        torch.testing.assert_close(read(live), read(store), atol=1e-3, rtol=0)
    assert "p3" in live and "q" not in live
    with pytest.raises(StoreError, match="image 'q' has no features"):
        live.rows(["q"])


@pytest.mark.slow
def test_without_a_cache_nothing_is_written_and_the_same_is_read(custom_stage, capsys):
    models = {"image_size": 64, "precision": "fp32"}
    cached = Prepared(custom_stage("data_prep", models=models))
    images = needed_images(cached)
    stored = encode_tokens(cached, images)
    stage = custom_stage("data_prep", models=models | {"cache_tokens": False})
    live = encode_tokens(Prepared(stage), images)
    assert "models.cache_tokens is false" in capsys.readouterr().out
    assert live.shape == stored.shape
    torch.testing.assert_close(live[list(images)], stored[list(images)], atol=2e-2, rtol=2e-3)


def test_features_computed_live_can_be_learned_from(pictures):
    live = LiveFeatures(LiveMeanColour(), pictures, 1)
    weight = torch.ones(3, requires_grad=True)
    (live.read(live.rows(["p1", "p2"]), torch.device("cpu")).clone() * weight).sum().backward()
    assert weight.grad.abs().sum() > 0


def test_what_is_expected_is_decoded_once_and_read_like_the_rest(pictures, monkeypatch):
    live, cpu, decoded = LiveFeatures(LiveMeanColour(), pictures, 2), torch.device("cpu"), []
    pixels = live._pixels
    monkeypatch.setattr(live, "_pixels", lambda row: decoded.append(row) or pixels(row))
    live.prefetch(np.array([4, 1, 4, 2]), cpu)
    live.prefetch(np.array([5]), cpu)
    rows = np.array([2, 4, 2, 6])
    torch.testing.assert_close(live.read(rows, cpu), live[[f"p{row}" for row in rows]])
    assert sorted(decoded[:5]) == [1, 2, 4, 5, 6]
