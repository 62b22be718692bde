"""How much GPU memory the full-size Q-Former trains in: its tensors counted, with no memory spent on them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from dvc.utils.hydra import compose_and_dump
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoTokenizer, Blip2QFormerConfig

from cirlib.losses.info_nce import info_nce
from cirlib.models.mini import minilm_folder
from cirlib.models.qformer import QFormerComposer, QFormerSettings, blip2_qformer
from cirlib.study.parameters import load_study
from cirlib.study.resources import kept_for_backward

ROOT = Path(__file__).resolve().parents[2]
WORDS = 25  # the longest joined captions of FashionIQ's val have as many
TOKENS, CHANNELS, VOCABULARY = 257, 1408, 30_523  # of BLIP-2 with ViT-g at 224 px
LAYERS = 12


def count(batch: int, negatives: int, checkpointing: bool) -> tuple[int, int]:
    """Bytes of weights, gradients and both moments; and of what one step in bf16 keeps for its backward pass."""
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
    with FakeTensorMode(allow_non_fake_inputs=True):
        config = Blip2QFormerConfig(vocab_size=VOCABULARY, use_qformer_text_input=True)
        composer = QFormerComposer(config, 32, 256, tokenizer, QFormerSettings()).train()
        if checkpointing:
            composer.qformer.activation_checkpointing_enable()
        ids = torch.ones(batch, WORDS, dtype=torch.long)
        with kept_for_backward(composer) as kept, torch.autocast("cpu", torch.bfloat16):
            queries = composer._embed_group(torch.zeros(batch, TOKENS, CHANNELS), ids, torch.ones_like(ids))
            images = [torch.zeros(n, TOKENS, CHANNELS) for n in (batch, batch * negatives)]
            targets, mined = (composer.embed_targets(image) for image in images)
            info_nce(queries, targets, negatives=mined.unflatten(0, (batch, negatives)))
        parameters = sum(p.numel() for p in composer.parameters())
    return 16 * parameters, sum(kept.values())


@pytest.mark.slow
def test_the_fashioniq_study_fits_24_gb(tmp_path):
    compose_and_dump(tmp_path / "params.yaml", str(ROOT / "conf"), None, "config", "", ["study=fashioniq"])
    params = load_study(tmp_path / "params.yaml").qformer
    states, kept = count(params.batch_size, params.hard_negatives, params.gradient_checkpointing)
    _, whole = count(params.batch_size, params.hard_negatives, False)
    assert 2.9e9 < states < 3.1e9  # 186 million weights
    assert whole > 24e9  # which is why the study recomputes
    recomputed = whole / LAYERS  # one layer at a time
    assert states + kept + recomputed < 0.5 * 24e9


@pytest.mark.parametrize("fusion", ["one_pass", "two_pass"])
def test_gradient_checkpointing_changes_no_gradient(tiny_blip2, fusion):
    def gradients(checkpointing: bool) -> dict:
        composer = blip2_qformer(str(tiny_blip2), QFormerSettings(fusion)).train()
        if checkpointing:
            composer.qformer.activation_checkpointing_enable()
        images = torch.randn(3, 5, 24, generator=torch.Generator().manual_seed(0))
        torch.manual_seed(0)  # of dropout
        queries = composer.embed_queries(images, ["is blue", "has long sleeves", "is red"])
        info_nce(queries, composer.embed_targets(images.flip(0))).backward()
        return {name: p.grad for name, p in composer.named_parameters() if p.grad is not None}

    plain, checkpointed = gradients(False), gradients(True)
    assert len(plain) > 50 and plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, msg=name)
