"""Embeddings of stored tokens: in the order given, whatever goes through at a time, and in the precision asked for."""

import numpy as np
import pytest
import torch
from torch import Tensor

from cirlib.models.prepared import Prepared
from cirlib.models.qformer import QFormerComposer, save_weights
from cirlib.models.qformer_embedding import embed_gallery, embed_queries, new_composer

ROWS = np.array([4, 1, 16, 0, 9, 12, 7])
TEXTS = [f"is {'very ' * n}{word}" for n, word in zip([3, 0, 5, 1, 0, 2, 4], "abcdefg", strict=True)]


@pytest.fixture
def composer(prepared) -> QFormerComposer:
    return new_composer(prepared).eval()


@pytest.mark.parametrize("batch_size", [3, 256])
def test_queries_and_gallery_are_embedded_in_the_order_given(prepared, composer, batch_size):
    def alone(i: int) -> tuple[Tensor, Tensor]:
        tokens = prepared.tokens.read(ROWS[[i]], composer.device)
        return composer.embed_queries(tokens, [TEXTS[i]]).cpu(), composer.embed_targets(tokens).cpu()

    with torch.inference_mode():
        queries, gallery = (torch.cat(parts) for parts in zip(*map(alone, range(len(ROWS))), strict=True))
    found = embed_queries(composer, prepared.tokens, ROWS, TEXTS, batch_size)
    torch.testing.assert_close(found, queries, atol=1e-4, rtol=0)
    found = embed_gallery(composer, prepared.tokens, ROWS, batch_size)
    torch.testing.assert_close(found, gallery, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("dtype", "coarse"), [(torch.float32, False), (torch.bfloat16, True)])
def test_embeddings_have_the_precision_that_was_asked_for(prepared, composer, dtype, coarse):
    composer.dtype = dtype
    with torch.inference_mode():
        direct = composer.embed_targets(prepared.tokens.read(ROWS, composer.device)).cpu()
    found = embed_gallery(composer, prepared.tokens, ROWS)
    assert torch.equal(found, direct) != coarse
    torch.testing.assert_close(found, direct, atol=0.05, rtol=0)


@pytest.mark.parametrize("fusion", ["mini", "blip2"])
def test_a_study_may_start_from_a_trained_qformer(custom_stage, tiny_blip2, tmp_path, fusion):
    sizes = {"num_query_tokens": 2, "width": 16, "fusion": "two_pass"}
    models = {"fusion": "mini" if fusion == "mini" else str(tiny_blip2)}
    trained = new_composer(Prepared(custom_stage(models=models, qformer=sizes)))
    trained.query_tokens.data.add_(1)
    save_weights(trained, tmp_path / "trained")
    again = new_composer(Prepared(custom_stage(models=models | {"fusion_checkpoint": "trained"}, qformer=sizes)))
    for name, tensor in trained.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
