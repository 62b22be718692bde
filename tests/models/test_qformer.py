"""The Q-Former initialised from MiniLM: its text path, its settings, its saved weights, its memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from dvc.utils.hydra import compose_and_dump
from safetensors.torch import load_file, save_file
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer, Blip2QFormerConfig

from cirlib.losses.info_nce import info_nce
from cirlib.models.qformer import (
    MAX_TOKENS,
    QFormerComposer,
    QFormerSettings,
    blip2_qformer,
    build_qformer,
    load_weights,
    mini_qformer,
    save_weights,
)
from cirlib.models.weights import ModelError, minilm_folder
from cirlib.study.parameters import load_study

TEXTS = ["is blue", "has much longer sleeves, a collar and stripes on the chest", "shorter"]
IMAGES = torch.randn(3, 9, 1280, generator=torch.Generator().manual_seed(0))


def make(seed: int = 0, queries: int = 4) -> QFormerComposer:
    torch.manual_seed(seed)
    return mini_qformer(queries, 16, QFormerSettings()).eval()


@pytest.fixture(scope="module")
def built() -> QFormerComposer:
    return make()


@pytest.fixture(scope="module")
def other() -> QFormerComposer:
    return make(seed=1)


@pytest.fixture
def composer(built) -> Iterator[QFormerComposer]:
    """Shared, so tests leave its weights alone; its settings are put back."""
    yield built
    built.settings = QFormerSettings()


@pytest.fixture(scope="module")
def saved(built, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("qformer") / "checkpoint"
    save_weights(built, folder)
    return folder


def test_the_text_path_is_minilm_itself(composer):
    minilm = AutoModel.from_pretrained(minilm_folder()).eval()
    batch = AutoTokenizer.from_pretrained(minilm_folder())(TEXTS, padding=True, return_tensors="pt")
    ids, mask = composer.tokenize(TEXTS)
    assert torch.equal(ids, batch["input_ids"])
    assert torch.equal(mask, batch["attention_mask"])
    with torch.inference_mode():
        expected = minilm(**batch).last_hidden_state
        got = composer.qformer(query_embeds=composer.embeddings(input_ids=ids), query_length=0, attention_mask=mask)
        real = mask.bool()
        torch.testing.assert_close(got.last_hidden_state[real], expected[real], atol=1e-5, rtol=1e-4)
        texts = F.normalize(composer.text_projection(expected[:, 0]), dim=-1)
        torch.testing.assert_close(composer.embed_texts(TEXTS), texts, atol=1e-5, rtol=1e-4)


def test_query_feed_forwards_start_as_the_text_ones_and_cross_attention_in_every_second_layer(composer):
    layers = composer.qformer.encoder.layer
    assert len(layers) == 6
    assert [layer.has_cross_attention for layer in layers] == [True, False] * 3
    for layer in layers:
        for text, query in ((layer.intermediate, layer.intermediate_query), (layer.output, layer.output_query)):
            for name, tensor in text.state_dict().items():
                assert torch.equal(query.state_dict()[name], tensor), name
        if layer.has_cross_attention:
            assert layer.crossattention.attention.key.in_features == 1280


@pytest.mark.parametrize("fusion", ["one_pass", "two_pass"])
@pytest.mark.parametrize(("target", "shape"), [("max", (3, 4, 16)), ("mean", (3, 16))])
def test_embeddings_have_unit_length_with_every_setting(composer, fusion, target, shape):
    composer.settings = QFormerSettings(fusion, target)
    with torch.inference_mode():
        queries, targets = composer.embed_queries(IMAGES, TEXTS), composer.embed_targets(IMAGES)
    assert queries.shape == (3, 16)
    assert targets.shape == shape
    for embedding in (queries, targets):
        torch.testing.assert_close(embedding.norm(dim=-1), torch.ones(embedding.shape[:-1]))


@pytest.mark.parametrize("fusion", ["one_pass", "two_pass"])
def test_queries_of_many_lengths_come_back_in_the_order_given(composer, fusion):
    composer.settings = QFormerSettings(fusion)
    generator = torch.Generator().manual_seed(1)
    texts = [
        f"number {i} is " + "very " * int(torch.randint(20, (1,), generator=generator)) + "blue" for i in range(70)
    ]
    images = torch.randn(70, 4, 1280, generator=generator)
    with torch.inference_mode():
        together = composer.embed_queries(images, texts)
        for i in range(0, 70, 7):
            alone = composer.embed_queries(images[i : i + 1], texts[i : i + 1])
            torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=1e-4)


def test_texts_are_cut_at_max_tokens(composer):
    ids, mask = composer.tokenize(["blue " * 50, "blue"])
    assert ids.shape == mask.shape == (2, MAX_TOKENS)
    assert ids[0, -1] == composer.tokenizer.sep_token_id
    assert mask.sum(1).tolist() == [MAX_TOKENS, 3]


def test_the_temperature_starts_at_7_percent_and_stays_in_range(composer):
    start = composer.log_temperature.item()
    assert composer.temperature.item() == pytest.approx(0.07)
    for log, value in ((-20.0, 0.01), (5.0, 0.5), (start, 0.07)):
        composer.log_temperature.data.fill_(log)
        assert composer.temperature.item() == pytest.approx(value)


def test_saved_weights_give_the_same_embeddings(composer, other, saved):
    with torch.inference_mode():
        expected = composer.embed_queries(IMAGES, TEXTS)
        assert not torch.allclose(other.embed_queries(IMAGES, TEXTS), expected)
        load_weights(other, saved)
        assert torch.equal(other.embed_queries(IMAGES, TEXTS), expected)
        assert torch.equal(other.embed_targets(IMAGES), composer.embed_targets(IMAGES))
    assert json.loads((saved / "settings.json").read_text()) == {
        "fusion": "one_pass",
        "target": "max",
        "num_query_tokens": 4,
        "width": 16,
    }


def test_a_checkpoint_decides_the_size_of_a_mini_qformer(composer, saved):
    built = build_qformer("mini", saved, QFormerSettings(), num_query_tokens=8, width=64)
    assert built.query_tokens.shape == (1, 4, 384)
    for name, tensor in composer.state_dict().items():
        assert torch.equal(built.state_dict()[name], tensor), name


def test_a_missing_checkpoint_is_named(composer, tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ModelError, match=r"no trained Q-Former in .*settings\.json"):
            load_weights(composer, folder)
        with pytest.raises(ModelError, match="no trained Q-Former"):
            build_qformer("mini", folder, QFormerSettings(), num_query_tokens=4, width=16)


@pytest.mark.parametrize("damage", ["cut off", "removed", "one tensor missing", "another size"])
def test_a_damaged_or_another_checkpoint_is_refused(composer, saved, tmp_path, damage):
    (tmp_path / "settings.json").write_text((saved / "settings.json").read_text())
    state = load_file(saved / "model.safetensors")
    if damage == "cut off":
        (tmp_path / "model.safetensors").write_bytes((saved / "model.safetensors").read_bytes()[:5000])
    elif damage != "removed":
        tensor = state.pop("query_tokens")
        save_file(
            state | ({"query_tokens": tensor[:, :3]} if damage == "another size" else {}),
            tmp_path / "model.safetensors",
        )
    with pytest.raises(ModelError, match=f"the Q-Former in {tmp_path} does not fit: .+") as caught:
        load_weights(composer, tmp_path)
    assert damage in ("cut off", "removed") or "query_tokens" in str(caught.value)


def test_a_trained_blip2_qformer_goes_through_the_same_door(tiny_blip2, tmp_path):
    trained = blip2_qformer(str(tiny_blip2), QFormerSettings("two_pass"))
    trained.query_tokens.data.add_(1)
    save_weights(trained, tmp_path)
    built = build_qformer(str(tiny_blip2), tmp_path, QFormerSettings("two_pass"), num_query_tokens=8, width=64)
    for name, tensor in trained.state_dict().items():
        assert torch.equal(built.state_dict()[name], tensor), name


# ------------------------------------------------------------------ memory


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


def bytes_of_a_full_size_step(batch: int, negatives: int, checkpointing: bool) -> tuple[int, int]:
    """Of weights, gradients and both moments; and of what one step in bf16 keeps for its backward pass.

    The tensors of BLIP-2 with ViT-g at 224 px are counted, with no memory spent on them; the longest joined captions
    of FashionIQ's val have 25 tokens.
    """
    kept: dict[int, int] = {}
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
    with FakeTensorMode(allow_non_fake_inputs=True):
        config = Blip2QFormerConfig(vocab_size=30_523, use_qformer_text_input=True)
        composer = QFormerComposer(config, 32, 256, tokenizer, QFormerSettings()).train()
        if checkpointing:
            composer.qformer.activation_checkpointing_enable()
        weights = {parameter.untyped_storage()._cdata for parameter in composer.parameters()}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in weights:
                kept[storage._cdata] = storage.nbytes()
            return tensor.detach()

        ids = torch.ones(batch, 25, dtype=torch.long)
        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        with hooks, torch.autocast("cpu", torch.bfloat16):
            queries = composer._embed_group(torch.zeros(batch, 257, 1408), ids, torch.ones_like(ids))
            images = [torch.zeros(n, 257, 1408) for n in (batch, batch * negatives)]
            targets, mined = (composer.embed_targets(image) for image in images)
            info_nce(queries, targets, negatives=mined.unflatten(0, (batch, negatives)))
        return 16 * sum(p.numel() for p in composer.parameters()), sum(kept.values())


@pytest.mark.slow
def test_the_fashioniq_study_fits_24_gb(tmp_path):
    conf = Path(__file__).resolve().parents[2] / "conf"
    compose_and_dump(tmp_path / "params.yaml", str(conf), None, "config", "", ["study=fashioniq"])
    params = load_study(tmp_path / "params.yaml").qformer
    states, kept = bytes_of_a_full_size_step(params.batch_size, params.hard_negatives, params.gradient_checkpointing)
    _, whole = bytes_of_a_full_size_step(params.batch_size, params.hard_negatives, False)
    assert 2.9e9 < states < 3.1e9  # 186 million weights
    assert whole > 24e9  # which is why the study recomputes, one of twelve layers at a time
    assert states + kept + whole / 12 < 0.5 * 24e9
