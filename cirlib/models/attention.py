"""Where the Q-Former's query tokens look: cross-attention over an image, as maps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import isqrt

import torch
from torch import Tensor

from cirlib.models.qformer import QFormerComposer


@torch.inference_mode()
def attention_maps(composer: QFormerComposer, images: Tensor, texts: Sequence[str] | None = None) -> Tensor:
    """Each query token's attention over the image in the last cross-attention layer, mean of the heads.

    Args:
        images: image tokens (B, T, C); T is a square number, or one more for a leading class token; else a ValueError.
        texts: B edits: how a reference is read with its edit. None: how a target is read, without text.

    Returns:
        maps (B, Q, S, S), row by row from the top left; each sums to 1, less what went to the class token.

    >>> attention_maps(composer, torch.ones(1, 9, 1280, device=composer.device)).shape
    torch.Size([1, 2, 3, 3])
    """
    side = isqrt(images.shape[1])
    extra = images.shape[1] - side * side
    if extra > 1:
        raise ValueError(f"image tokens must be a square grid, with or without a class token, got {images.shape[1]}")
    with _watched_attention(composer) as seen:
        if texts is None:
            composer.embed_targets(images)
        else:
            composer.fuse(images, *composer.tokenize(texts))
    return seen[0].float().mean(1)[:, :, extra:].unflatten(2, (side, side))


@contextmanager
def _watched_attention(composer: QFormerComposer) -> Iterator[list[Tensor]]:
    """Collects the last cross-attention's weights, (B, heads, Q, T) a call, from the one kernel that gives them."""
    layer = [layer for layer in composer.qformer.encoder.layer if layer.has_cross_attention][-1]
    seen: list[Tensor] = []
    handle = layer.crossattention.attention.register_forward_hook(lambda _module, _args, out: seen.append(out[1]))
    kernel = composer.qformer.config._attn_implementation
    composer.qformer.set_attn_implementation("eager")
    try:
        yield seen
    finally:
        composer.qformer.set_attn_implementation(kernel)
        handle.remove()
