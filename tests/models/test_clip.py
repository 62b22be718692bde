"""CLIP through open_clip, on a small architecture with a weights file; and the zero-shot composers."""

import json

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from cirlib.models.clip import load_clip, slerp, weighted_sum
from cirlib.models.image_encoding import encode_images
from cirlib.models.weights import ModelError
from cirlib.study.pictures import open_rgb

TEXTS = ["is blue", "has long sleeves and a wide neck", "is red", "is longer", "no pattern"]


@pytest.fixture(scope="module")
def towers(tiny_clip, cpu):
    name, file = tiny_clip
    return load_clip(name, str(file), **cpu)


def test_embeddings_are_open_clips_own(tiny_clip, towers, tmp_path, write_image):
    name, file = tiny_clip
    model, _, transform = open_clip.create_model_and_transforms(name, pretrained=str(file))
    pictures = {f"p{i}": write_image(tmp_path / f"p{i}.png", seed=i) for i in range(5)}
    store = encode_images(towers, pictures, tmp_path / "store", batch_size=2, num_workers=0)
    with torch.inference_mode():
        expected = model.eval().encode_text(open_clip.get_tokenizer(name)(TEXTS), normalize=True)
        pixels = torch.stack([transform(open_rgb(path)) for path in pictures.values()])
        images = model.encode_image(pixels, normalize=True)
    torch.testing.assert_close(store[list(pictures)], images, atol=1e-3, rtol=0)  # float16 on disk
    got = towers.encode_texts(TEXTS, batch_size=2)
    torch.testing.assert_close(got, expected)
    assert not got.is_inference()  # heads can be trained on it
    features = towers.text_features(TEXTS)
    torch.testing.assert_close(features.detach(), expected)
    assert features.requires_grad


def test_bf16_embeddings_are_near_the_fp32_ones(tiny_clip, cpu, towers):
    name, file = tiny_clip
    rounded = load_clip(name, str(file), **{**cpu, "dtype": torch.bfloat16})
    assert rounded.key != towers.key
    torch.testing.assert_close(rounded.encode_texts(TEXTS), towers.encode_texts(TEXTS), atol=0.03, rtol=0)


def test_the_key_tells_weights_apart(tiny_clip, cpu, tmp_path):
    name, file = tiny_clip
    state, keys = torch.load(file, weights_only=True), []
    for scale in (0, 0, 1):
        torch.save(state | {"logit_scale": state["logit_scale"] + scale}, tmp_path / "weights.pt")
        keys.append(load_clip(name, str(tmp_path / "weights.pt"), **cpu).key)
    assert keys[0] == keys[1] != keys[2]


def activations(model: torch.nn.Module) -> set[type]:
    return {type(block.mlp.gelu) for tower in (model.visual, model) for block in tower.transformer.resblocks}


def test_a_tag_whose_weights_want_quick_gelu_gets_it(tiny_clip, cpu, monkeypatch):
    name, file = tiny_clip
    tags = {"quick": {"quick_gelu": True, "url": ""}, "plain": {"url": ""}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, name, tags)
    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *_args, **_options: str(file))
    loaded = {tag: load_clip(name, tag, **cpu) for tag in tags}
    assert activations(loaded["quick"].model) == {open_clip.model.QuickGELU}
    assert activations(loaded["plain"].model) == {torch.nn.GELU}
    assert loaded["quick"].key != loaded["plain"].key


def test_every_tag_of_open_clip_is_built_with_the_activation_that_it_names_or_refused(cpu, monkeypatch):
    built: list[bool] = []

    def build(model: str, **options: bool) -> None:
        built.append(options["force_quick_gelu"] or open_clip.get_model_config(model).get("quick_gelu", False))
        raise RuntimeError("built")

    monkeypatch.setattr(open_clip, "create_model_and_transforms", build)
    refused = set()
    for name, tag in open_clip.list_pretrained():
        wanted = open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False)
        with pytest.raises(ModelError) as caught:
            load_clip(name, tag, **cpu)
        if "names GELU" in str(caught.value):
            refused.add((name, wanted))
        else:
            assert built.pop() == wanted, (name, tag)
    assert refused == {("roberta-ViT-B-32", False)}  # an architecture that has no other


def refusal(model: str, pretrained: str | None, cpu: dict) -> str:
    with pytest.raises(ModelError, match="could not be loaded") as caught:
        load_clip(model, pretrained, **cpu)
    text = str(caught.value)
    assert "\n" not in text and repr(model) in text
    return text


def test_a_local_folder_gives_the_same_model_and_without_weights_is_refused(tiny_clip, tmp_path, cpu, towers):
    name, file = tiny_clip
    config = {"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": {}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    save_file(torch.load(file, weights_only=True), tmp_path / "open_clip_model.safetensors")
    got = load_clip(f"local-dir:{tmp_path}", None, **cpu)
    torch.testing.assert_close(got.encode_texts(TEXTS), towers.encode_texts(TEXTS))
    (tmp_path / "open_clip_model.safetensors").unlink()
    refusal(f"local-dir:{tmp_path}", None, cpu)


@pytest.mark.parametrize(
    ("model", "pretrained"),
    [
        ("ViT-B-32", "laion2b_s34b_b79k"),
        ("ViT-B-32", None),
        ("hf-hub:nobody/nothing", None),
        ("ViT-B-32", "broken.pt"),
        ("ViT-B-32", "broken.safetensors"),
    ],
)
def test_weights_that_are_not_here_or_broken_give_one_sentence_offline(cpu, model, pretrained, tmp_path):
    if pretrained and pretrained.startswith("broken"):
        (tmp_path / pretrained).write_bytes(b"<html>404</html>" * 20)
        pretrained = str(tmp_path / pretrained)
    refusal(model, pretrained, cpu)


# ------------------------------------------------------------------ zero-shot composers


def unit(seed: int) -> Tensor:
    return F.normalize(torch.randn(50, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.double), dim=-1)


IMAGE, TEXT = unit(0), unit(1)


@pytest.mark.parametrize("compose", [weighted_sum, slerp])
def test_weight_0_is_the_image_and_weight_1_the_text(compose):
    torch.testing.assert_close(compose(IMAGE, TEXT, 0.0), IMAGE)
    torch.testing.assert_close(compose(IMAGE, TEXT, 1.0), TEXT)


@pytest.mark.parametrize("weight", [0.1, 0.5, 0.9])
def test_slerp_goes_the_share_of_the_angle_that_weight_says(weight):
    query, whole = slerp(IMAGE, TEXT, weight), torch.acos((IMAGE * TEXT).sum(-1))
    torch.testing.assert_close(torch.acos((query * IMAGE).sum(-1)), weight * whole)
    torch.testing.assert_close(torch.acos((query * TEXT).sum(-1)), (1 - weight) * whole)


@pytest.mark.parametrize("noise", [0.0, 1e-7, 1e-5, 1e-3])
def test_slerp_of_nearly_parallel_embeddings_is_their_weighted_sum(noise):
    image, near = IMAGE.float(), F.normalize(IMAGE + noise * TEXT, dim=-1).float()
    torch.testing.assert_close(slerp(image, near, 0.3), weighted_sum(image, near, 0.3), atol=2e-6, rtol=0)
    assert torch.isfinite(slerp(image, -near, 0.3)).all()
