"""Where the Q-Former's query tokens look: cross-attention over an image, as maps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

from cirlib.models.qformer import QFormerComposer


@torch.inference_mode()
def attention_maps(composer: QFormerComposer, images: Tensor, texts: Sequence[str] | None = None) -> Tensor:
    """Each query token's attention over the image in the last cross-attention layer, mean of the heads.

    Args:
        images: image tokens (B, T, C); T is a square number, or one more for a leading class token.
        texts: B edits: how a reference is read with its edit. None: how a target is read, without text.

    Returns:
        maps (B, Q, S, S) in [0, 1], row by row from the top left. The cells of a map sum to 1, or to less by what went
        to the class token.

    Raises:
        ValueError: the image tokens are no square grid, or there is not one text an image.
    """
    side = isqrt(images.shape[1])
    extra = images.shape[1] - side * side
    if extra > 1:
        raise ValueError(
            f"expected image tokens in a square grid, with or without a class token, got {images.shape[1]}"
        )
    if texts is not None and len(texts) != len(images):
        raise ValueError(f"expected one text an image, got {len(texts)} texts and {len(images)} images")
    with _watched(_last_cross_attention(composer)) as seen:
        if texts is None:
            composer.embed_targets(images)
        else:
            composer.fuse(images, texts)
    return seen[0][:, :, extra:].unflatten(2, (side, side))


def _last_cross_attention(composer: QFormerComposer) -> nn.Module:
    layers = [layer for layer in composer.qformer.encoder.layer if getattr(layer, "has_cross_attention", False)]
    return layers[-1].crossattention.attention


@contextmanager
def _watched(attention: nn.Module) -> Iterator[list[Tensor]]:
    """Collects what ``attention`` attends to, (B, Q, T) a call, whichever kernel computes it."""
    seen: list[Tensor] = []

    def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], _: Any) -> None:
        states = args[0] if args else kwargs["hidden_states"]  # (B, Q, H)
        image = kwargs["encoder_hidden_states"] if "encoder_hidden_states" in kwargs else args[2]  # (B, T, C)
        heads = (module.num_attention_heads, module.attention_head_size)
        query = module.query(states).unflatten(-1, heads).transpose(1, 2)  # (B, heads, Q, ·)
        key = module.key(image).unflatten(-1, heads).transpose(1, 2)  # (B, heads, T, ·)
        scores = (query @ key.transpose(2, 3)) * module.scaling
        seen.append(scores.float().softmax(-1).mean(1))

    handle = attention.register_forward_hook(hook, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()
