"""The Q-Former initialised from MiniLM: its text path, settings, attention, saved weights, and memory."""

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from dvc.utils.hydra import compose_and_dump
from safetensors.torch import save_file
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer, Blip2QFormerConfig

from cirlib.losses.info_nce import info_nce
from cirlib.models.qformer import (
    MAX_TOKENS,
    QFormerComposer,
    QFormerSettings,
    blip2_qformer,
    load_weights,
    mini_qformer,
    save_weights,
)
from cirlib.models.weights import ModelError, minilm_folder
from cirlib.study.parameters import QFormer, load_study

TEXTS = ["is blue", "has much longer sleeves, a collar and stripes on the chest", "shorter"]
IMAGES = torch.randn(3, 9, 1280, generator=torch.Generator().manual_seed(0))


def make(seed: int = 0) -> QFormerComposer:
    torch.manual_seed(seed)
    return mini_qformer(4, 16, QFormerSettings()).eval()


@pytest.fixture(scope="module")
def built() -> QFormerComposer:
    return make()


@pytest.fixture
def composer(built) -> Iterator[QFormerComposer]:
    """Shared, so tests leave its weights alone; its settings are put back."""
    yield built
    built.settings = QFormerSettings()
    built.qformer.set_attn_implementation("eager")


def test_the_text_path_is_minilm_itself(composer):
    minilm = AutoModel.from_pretrained(minilm_folder()).eval()
    batch = AutoTokenizer.from_pretrained(minilm_folder())(TEXTS, padding=True, return_tensors="pt")
    ids, mask = composer.tokenize(TEXTS)
    assert torch.equal(ids, batch["input_ids"])
    assert torch.equal(mask, batch["attention_mask"])
    with torch.inference_mode():
        expected = minilm(**batch).last_hidden_state
        states = composer.embeddings(ids, mask, composer.query_tokens[:, :0].expand(len(ids), -1, -1))
        got = composer.qformer(query_embeds=states, query_length=0, attention_mask=mask)
        real = mask.bool()
        torch.testing.assert_close(got.last_hidden_state[real], expected[real], atol=1e-5, rtol=1e-4)
        texts = F.normalize(composer.text_projection(expected[:, 0]), dim=-1)
        torch.testing.assert_close(composer.embed_texts(TEXTS), texts, atol=1e-5, rtol=1e-4)


def test_query_feed_forwards_start_as_the_text_ones_and_cross_attention_in_every_second_layer(composer):
    layers = composer.qformer.encoder.layer
    assert [layer.has_cross_attention for layer in layers] == [True, False] * 3
    for layer in layers:
        for text, query in ((layer.intermediate, layer.intermediate_query), (layer.output, layer.output_query)):
            for name, tensor in text.state_dict().items():
                assert torch.equal(query.state_dict()[name], tensor), name


@pytest.mark.parametrize("layers", [1, 3, 6])
def test_below_its_own_layers_minilm_reads_the_text_and_stays_frozen(layers):
    shallow = mini_qformer(4, 16, QFormerSettings(), layers)
    minilm = AutoModel.from_pretrained(minilm_folder()).eval()
    ids, mask = shallow.tokenize(TEXTS)
    expected = minilm(input_ids=ids, attention_mask=mask).last_hidden_state[:, 0]
    texts = F.normalize(shallow.text_projection(expected), dim=-1)
    torch.testing.assert_close(shallow.embed_texts(TEXTS), texts, atol=1e-5, rtol=1e-4)
    shallow.train().embed_queries(torch.ones(len(TEXTS), 4, 1280), TEXTS).sum().backward()
    still = {name for name, weight in shallow.named_parameters() if not weight.requires_grad}
    assert len(shallow.qformer.encoder.layer) == layers
    assert still == {name for name, _ in shallow.named_parameters() if name.startswith("embeddings.")}
    assert all(weight.grad is None for weight in shallow.embeddings.parameters())


def test_texts_read_ahead_are_read_by_the_frozen_layers_once_for_every_copy_and_come_out_the_same(monkeypatch):
    shallow = mini_qformer(4, 16, QFormerSettings(), layers=2)
    shallow.dtype = torch.float32
    with torch.inference_mode():
        queries, alone = shallow.embed_queries(IMAGES, TEXTS), shallow.embed_texts(TEXTS)
    shallow.read_ahead([*TEXTS, *TEXTS])
    copied = deepcopy(shallow)
    monkeypatch.setattr(shallow.embeddings.lower, "forward", None)  # fails where it is asked again
    copied.read_ahead(TEXTS[::-1])
    torch.testing.assert_close(copied.embed_queries(IMAGES, TEXTS), queries, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(copied.embed_texts(TEXTS), alone, atol=1e-5, rtol=1e-4)
    with pytest.raises(TypeError, match="NoneType"):
        copied.embed_texts(["another"])
    monkeypatch.undo()
    copied.read_ahead(["another"])
    assert len(shallow.embeddings.known) == 1


@pytest.mark.parametrize("fusion", ["one_pass", "two_pass"])
def test_queries_of_many_lengths_come_back_in_the_order_given(composer, fusion):
    composer.settings = QFormerSettings(fusion)
    texts = [f"number {i} is {'very ' * (7 * i % 20)}blue" for i in range(70)]
    images = torch.randn(70, 4, 1280, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        together = composer.embed_queries(images, texts)
        for i in range(0, 70, 7):
            alone = composer.embed_queries(images[i : i + 1], texts[i : i + 1])
            torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=1e-4)


def test_texts_are_cut_at_max_tokens(composer):
    ids, mask = composer.tokenize(["blue " * 50, "blue"])
    assert ids[0, -1] == composer.tokenizer.sep_token_id
    assert mask.sum(1).tolist() == [MAX_TOKENS, 3]


def test_the_temperature_starts_at_7_percent_stays_in_range_and_comes_back_from_beyond(composer):
    parameter, start = composer.raw_temperature, composer.raw_temperature.item()
    assert start == pytest.approx(0.07)
    for raw, value in ((start, 0.07), (-0.5, 0.01), (0.9, 0.5)):
        parameter.data.fill_(raw)
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(composer.temperature, parameter)
        assert (composer.temperature.item(), slope.item()) == pytest.approx((value, 1.0), rel=1e-5)
    parameter.data.fill_(start)


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@pytest.mark.parametrize("texts", [None, TEXTS])
def test_attention_maps_are_the_softmax_of_queries_and_keys(composer, texts, kernel):
    """Whichever kernel the model computes with, which stays what it was; a class token is left out."""
    seen: list[torch.Tensor] = []
    module = composer.qformer.encoder.layer[4].crossattention.attention
    parts = (module.query, module.key)
    hooks = [part.register_forward_hook(lambda _module, _args, out: seen.append(out)) for part in parts]
    composer.qformer.set_attn_implementation(kernel)
    maps = composer.attention_maps(torch.cat([IMAGES[:, :1] + 1, IMAGES], 1), texts)
    query, key = (x.unflatten(-1, (module.num_attention_heads, -1)).transpose(1, 2) for x in seen)
    for hook in hooks:
        hook.remove()
    expected = (query @ key.transpose(2, 3) / query.shape[-1] ** 0.5).softmax(-1).mean(1)
    torch.testing.assert_close(maps, expected[:, :, 1:].unflatten(2, (3, 3)))
    assert composer.qformer.config._attn_implementation == kernel
    assert not any(layer._forward_hooks for layer in composer.qformer.modules())
    with pytest.raises(ValueError, match="square grid"):
        composer.attention_maps(IMAGES[:, :8])


def test_saved_weights_give_the_same_embeddings(composer, tmp_path):
    save_weights(composer, tmp_path)
    other = make(seed=1)
    with torch.inference_mode():
        expected = composer.embed_queries(IMAGES, TEXTS)
        assert not torch.allclose(other.embed_queries(IMAGES, TEXTS), expected)
        load_weights(other, tmp_path)
        assert torch.equal(other.embed_queries(IMAGES, TEXTS), expected)


@pytest.mark.parametrize("damage", ["cut off", "removed", "one tensor missing", "another size"])
def test_a_missing_damaged_or_another_checkpoint_is_refused(composer, tmp_path, damage):
    file, state = tmp_path / "model.safetensors", composer.state_dict()
    if damage != "removed":
        tensor = state.pop("query_tokens")
        kept = {} if damage == "one tensor missing" else {"query_tokens": tensor[:, :3].contiguous()}
        save_file(state | kept, file)
    if damage == "cut off":
        file.write_bytes(file.read_bytes()[:5000])
    said = f"no Q-Former of this study could be loaded from {tmp_path}: .+"
    with pytest.raises(ModelError, match=said) as caught:
        load_weights(composer, tmp_path)
    assert damage in ("cut off", "removed") or "query_tokens" in str(caught.value)


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


def bytes_of_a_full_size_step(params: QFormer, checkpointing: bool) -> tuple[int, int]:
    """Of weights, gradients and both moments; and of what one step in bf16 keeps for its backward pass.

    The tensors of BLIP-2 with ViT-g at 224 px are counted, with no memory spent on them; the longest joined captions
    of FashionIQ's val have 25 tokens.
    """
    kept: dict[int, int] = {}
    batch, negatives = params.batch_size, params.hard_negatives
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
    with FakeTensorMode(allow_non_fake_inputs=True):
        config = Blip2QFormerConfig(vocab_size=30_523, use_qformer_text_input=True)
        settings = QFormerSettings(params.fusion, params.target)
        composer = QFormerComposer(config, 32, 256, tokenizer, settings).train()
        if params.fusion == "covr":  # in place of a copy, which fake tensors do not have
            composer.frozen = QFormerComposer(config, 32, 256, tokenizer, settings).requires_grad_(False)
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
            targets, mined = (composer.embed_targets(image) for image in images if len(image))
            info_nce(queries, targets, negatives=mined.unflatten(0, (batch, negatives)))
        sizes = [(16 if p.requires_grad else 4) * p.numel() for p in composer.parameters()]
        return sum(sizes), sum(kept.values())


@pytest.mark.slow
@pytest.mark.parametrize("change", [{}, {"fusion": "two_pass", "target": "max"}])
def test_the_fashioniq_study_fits_24_gb(tmp_path, change):
    conf = Path(__file__).resolve().parents[2] / "conf"
    compose_and_dump(tmp_path / "params.yaml", str(conf), None, "config", "", ["study=fashioniq"])
    params = load_study(tmp_path / "params.yaml").qformer.model_copy(update=change)
    states, kept = bytes_of_a_full_size_step(params, params.gradient_checkpointing)
    _, whole = bytes_of_a_full_size_step(params, False)
    assert 2.9e9 < states < 3.8e9  # 186 million weights that learn, and what is frozen
    assert states + kept + whole / 12 < 0.5 * 24e9  # one of twelve layers is recomputed at a time
