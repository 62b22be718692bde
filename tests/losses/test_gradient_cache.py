"""Gradient caching: the gradients of the whole batch, the activations of a part of it."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from cirlib.losses import info_nce
from cirlib.losses.gradient_cache import in_chunks
from cirlib.models.qformer import QFormerComposer, QFormerSettings, blip2_qformer
from cirlib.training.batches import Batch, batch_loss

COUNT = 12


class Store:
    """Features in memory."""

    def __init__(self) -> None:
        self.features = torch.randn(30, 5, 24, generator=torch.Generator().manual_seed(0))

    def read(self, rows: np.ndarray, device: torch.device) -> Tensor:
        return self.features[torch.from_numpy(np.asarray(rows))]


def batch(negatives: int) -> Batch:
    rows = np.random.default_rng(0).integers(0, 30, (COUNT, 2 + negatives))
    texts = [f"is {word} with {number} dots" for number, word in enumerate(["red", "very dark blue", "long"] * 4)]
    return Batch(rows[:, 0], rows[:, 1], texts, rows[:, 2:] if negatives else None)


def gradients(composer: QFormerComposer, negatives: int, size: int | None) -> dict[str, Tensor]:
    composer.zero_grad()
    batch_loss(composer, Store(), batch(negatives), size).backward()
    return {name: p.grad.clone() for name, p in composer.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("negatives", [0, 2])
@pytest.mark.parametrize(
    "form", [QFormerSettings("one_pass", "max"), QFormerSettings("two_pass", "mean")], ids=["one pass", "two passes"]
)
@pytest.mark.parametrize("size", [1, 5, 11])
def test_the_gradients_are_those_of_the_whole_batch(tiny_blip2, form, negatives, size):
    composer = blip2_qformer(str(tiny_blip2), form).eval()  # without dropout, whose draws would differ
    whole, cached = (gradients(composer, negatives, chunk) for chunk in (None, size))
    assert len(whole) > 50 and whole.keys() == cached.keys()
    assert "raw_temperature" in whole
    for name, gradient in whole.items():
        torch.testing.assert_close(cached[name], gradient, rtol=1e-5, atol=1e-5, msg=name)


def test_dropout_is_drawn_again_as_it_was(tiny_blip2):
    composer = blip2_qformer(str(tiny_blip2), QFormerSettings()).train()
    images = Store().features[:COUNT]

    def gradient(embed: Callable[[Sequence[Tensor]], Tensor]) -> Tensor:
        composer.zero_grad()
        torch.manual_seed(0)
        embedded = embed(images)
        torch.rand(3)  # what else is drawn in between must not matter
        info_nce(embedded.flip(0)[:, 0], embedded).backward()
        return composer.query_tokens.grad.clone()

    plain = gradient(lambda rows: torch.cat([composer.embed_targets(part) for part in rows.split(5)]))
    torch.testing.assert_close(gradient(lambda rows: in_chunks(composer.embed_targets, rows, 5)), plain)


def test_only_a_chunks_activations_are_kept(tiny_blip2):
    composer = blip2_qformer(str(tiny_blip2), QFormerSettings()).train()

    def most_kept(size: int | None) -> int:
        kept = [0]

        def keep(tensor: Tensor) -> Tensor:
            kept[0] += tensor.numel() if tensor.requires_grad or tensor.grad_fn is not None else 0
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            batch_loss(composer, Store(), batch(0), size)
        return kept[0]

    assert most_kept(3) < 0.1 * most_kept(None)


def test_a_batch_that_fits_into_one_chunk_is_embedded_once():
    calls: list[int] = []

    def embed(rows: Tensor) -> Tensor:
        calls.append(len(rows))
        return rows.square()

    rows = torch.ones(4, 2, requires_grad=True)
    in_chunks(embed, rows, 4).sum().backward()
    in_chunks(embed, rows, None).sum().backward()
    assert calls == [4, 4]
    in_chunks(embed, rows, 3).sum().backward()
    assert sorted(calls[2:]) == [1, 1, 3, 3]  # once each way
    assert torch.equal(rows.grad, torch.full((4, 2), 6.0))
