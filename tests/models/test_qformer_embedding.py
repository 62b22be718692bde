"""Embeddings of stored tokens: in the order given, whatever goes through at a time, and in the precision asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from cirlib.models.qformer import QFormerComposer
from cirlib.models.qformer_embedding import embed_gallery, embed_queries, new_composer

ROWS = np.array([4, 1, 16, 0, 9, 12, 7])


@pytest.fixture
def composer(prepared) -> QFormerComposer:
    return new_composer(prepared).eval()


def read(prepared, rows: np.ndarray, composer: QFormerComposer) -> Tensor:
    return prepared.tokens.read(rows, composer.device)


@pytest.mark.parametrize("batch_size", [3, 256])
def test_queries_are_embedded_in_the_order_given(prepared, composer, batch_size):
    texts = [f"is {'very ' * n}{word}" for n, word in zip([3, 0, 5, 1, 0, 2, 4], "abcdefg", strict=True)]
    together = embed_queries(composer, prepared.tokens, ROWS, texts, batch_size)
    with torch.inference_mode():
        alone = [
            composer.embed_queries(read(prepared, ROWS[[i]], composer), [text]).cpu() for i, text in enumerate(texts)
        ]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=0)


@pytest.mark.parametrize("batch_size", [2, 256])
def test_the_gallery_is_embedded_in_the_order_given(prepared, composer, batch_size):
    with torch.inference_mode():
        alone = [composer.embed_targets(read(prepared, ROWS[[i]], composer)).cpu() for i in range(len(ROWS))]
    together = embed_gallery(composer, prepared.tokens, ROWS, batch_size)
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("dtype", "coarse"), [(torch.float32, False), (torch.bfloat16, True)])
def test_embeddings_have_the_precision_that_was_asked_for(prepared, composer, dtype, coarse):
    composer.dtype = dtype
    with torch.inference_mode():
        direct = composer.embed_targets(read(prepared, ROWS, composer)).cpu()
    found = embed_gallery(composer, prepared.tokens, ROWS)
    assert torch.equal(found, direct) != coarse
    torch.testing.assert_close(found, direct, atol=0.05, rtol=0)
