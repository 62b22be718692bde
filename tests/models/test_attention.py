"""Attention maps: what the attention module itself computes, one a query token."""

from __future__ import annotations

import pytest
import torch

from cirlib.models.attention import attention_maps
from cirlib.models.qformer import QFormerComposer, QFormerSettings, mini_qformer

TEXTS = ["is blue", "has much longer sleeves and a collar"]
IMAGES = torch.randn(2, 9, 1280, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def composer() -> QFormerComposer:
    torch.manual_seed(0)
    return mini_qformer(4, 16, QFormerSettings()).eval()


@pytest.mark.parametrize("texts", [None, TEXTS])
def test_the_maps_are_the_weights_the_module_used(composer, texts):
    used: list[torch.Tensor] = []
    module = composer.qformer.encoder.layer[4].crossattention.attention
    handle = module.register_forward_hook(lambda _module, _args, output: used.append(output[1]))
    maps = attention_maps(composer, IMAGES, texts)  # (2, 4, 3, 3)
    handle.remove()
    assert maps.shape == (2, 4, 3, 3)
    torch.testing.assert_close(maps.flatten(2), used[0].mean(1))  # the mean of the heads


def test_a_class_token_is_left_out(composer):
    images = torch.cat([torch.randn(2, 1, 1280), IMAGES], 1)
    maps = attention_maps(composer, images)
    assert maps.shape == (2, 4, 3, 3)
    assert (maps.sum((2, 3)) < 1).all()


def test_nothing_stays_behind_in_the_model(composer):
    before = composer.embed_targets(IMAGES)
    attention_maps(composer, IMAGES, TEXTS)
    assert not any(layer._forward_hooks for layer in composer.qformer.encoder.layer.modules())
    torch.testing.assert_close(composer.embed_targets(IMAGES), before)


def test_an_edit_changes_where_a_reference_is_looked_at(composer):
    assert not torch.allclose(attention_maps(composer, IMAGES, TEXTS), attention_maps(composer, IMAGES, TEXTS[::-1]))


def test_tokens_in_no_square_are_refused(composer):
    with pytest.raises(ValueError, match="square grid"):
        attention_maps(composer, IMAGES[:, :8])


def test_one_text_an_image(composer):
    with pytest.raises(ValueError, match="got 1 texts and 2 images"):
        attention_maps(composer, IMAGES, TEXTS[:1])
