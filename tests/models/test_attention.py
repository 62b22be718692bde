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


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@pytest.mark.parametrize("texts", [None, TEXTS])
def test_the_maps_are_the_softmax_of_queries_and_keys(composer, texts, kernel):
    """Whichever kernel the model computes with, which stays what it was."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    module = composer.qformer.encoder.layer[4].crossattention.attention
    hooks = [
        module.query.register_forward_hook(lambda _module, _args, out: seen.append(out)),
        module.key.register_forward_hook(lambda _module, _args, out: seen.append(out)),
    ]
    composer.qformer.set_attn_implementation(kernel)
    before = composer.embed_targets(IMAGES)
    seen.clear()
    maps = attention_maps(composer, IMAGES, texts)  # (2, 4, 3, 3)
    query, key = (x.unflatten(-1, (module.num_attention_heads, -1)).transpose(1, 2) for x in seen)
    for hook in hooks:
        hook.remove()
    expected = (query @ key.transpose(2, 3) / query.shape[-1] ** 0.5).softmax(-1).mean(1)
    torch.testing.assert_close(maps.flatten(2), expected)
    assert composer.qformer.config._attn_implementation == kernel
    assert not any(layer._forward_hooks for layer in composer.qformer.modules())
    torch.testing.assert_close(composer.embed_targets(IMAGES), before)


def test_a_class_token_is_left_out(composer):
    maps = attention_maps(composer, torch.cat([torch.randn(2, 1, 1280), IMAGES], 1))
    assert maps.shape == (2, 4, 3, 3)
    assert (maps.sum((2, 3)) < 1).all()


def test_an_edit_changes_where_a_reference_is_looked_at(composer):
    assert not torch.allclose(attention_maps(composer, IMAGES, TEXTS), attention_maps(composer, IMAGES, TEXTS[::-1]))


def test_tokens_in_no_square_are_refused(composer):
    with pytest.raises(ValueError, match="square grid"):
        attention_maps(composer, IMAGES[:, :8])
