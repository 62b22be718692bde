"""CLIP through open_clip, on a small architecture with a weights file, and what is said of missing models."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from cirlib.models.clip import load_clip
from cirlib.models.image_encoding import encode_images
from cirlib.models.mini import ModelError
from cirlib.study.pictures import open_rgb

TEXTS = ["is blue", "has long sleeves and a wide neck", "is red", "is longer", "no pattern"]


@pytest.fixture(scope="module")
def towers(tiny_clip, cpu):
    name, file = tiny_clip
    return load_clip(name, str(file), **cpu)


@pytest.fixture(scope="module")
def theirs(tiny_clip):
    """The same model opened by open_clip itself: (model, transform, tokenizer)."""
    name, file = tiny_clip
    model, _, transform = open_clip.create_model_and_transforms(name, pretrained=str(file))
    return model.eval(), transform, open_clip.get_tokenizer(name)


def test_text_embeddings_are_open_clips_own(towers, theirs):
    model, _, tokenizer = theirs
    with torch.inference_mode():
        expected = model.encode_text(tokenizer(TEXTS), normalize=True)
    got = towers.encode_texts(TEXTS, batch_size=2)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(got.norm(dim=-1), torch.ones(len(TEXTS)))
    assert not got.requires_grad
    assert not got.is_inference()  # heads can be trained on it


def test_text_features_carry_gradients(towers):
    features = towers.text_features(TEXTS[:2])
    torch.testing.assert_close(features.detach(), towers.encode_texts(TEXTS[:2]))
    features.sum().backward()
    assert any(p.grad is not None for p in towers.model.parameters())
    towers.model.zero_grad()


def test_image_embeddings_are_open_clips_own(towers, theirs, tmp_path, write_image):
    model, transform, _ = theirs
    pictures = {f"p{i}": write_image(tmp_path / f"p{i}.png", seed=i) for i in range(5)}
    store = encode_images(towers, pictures, tmp_path / "store", batch_size=2, num_workers=0)
    pixels = torch.stack([transform(open_rgb(path)) for path in pictures.values()])
    with torch.inference_mode():
        expected = model.encode_image(pixels, normalize=True)
    torch.testing.assert_close(towers.encode_pixels(pixels).detach(), expected)
    torch.testing.assert_close(store[list(pictures)], expected, atol=1e-3, rtol=0)  # float16 on disk
    assert store.array.shape == (5, 12)


def test_bf16_embeddings_are_near_the_fp32_ones(tiny_clip, cpu, towers):
    name, file = tiny_clip
    rounded = load_clip(name, str(file), **{**cpu, "dtype": torch.bfloat16})
    assert rounded.key != towers.key
    got = rounded.encode_texts(TEXTS)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, towers.encode_texts(TEXTS), atol=0.03, rtol=0)


def test_the_key_tells_weights_apart(tiny_clip, cpu, towers, tmp_path):
    name, file = tiny_clip
    assert load_clip(name, str(file), **cpu).key == towers.key
    state = torch.load(file, weights_only=True)
    state["logit_scale"] = state["logit_scale"] + 1
    torch.save(state, tmp_path / "weights.pt")
    before = towers.key.replace(str(file), "")
    assert load_clip(name, str(tmp_path / "weights.pt"), **cpu).key.replace(str(tmp_path / "weights.pt"), "") != before


@pytest.fixture
def local_folder(tiny_clip, tmp_path: Path) -> Path:
    """The tiny model as a folder in the form that open_clip's `local-dir:` reads."""
    name, file = tiny_clip
    config = {"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": {}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    save_file(torch.load(file, weights_only=True), tmp_path / "open_clip_model.safetensors")
    return tmp_path


def test_a_local_folder_gives_the_same_model(local_folder, cpu, towers):
    got = load_clip(f"local-dir:{local_folder}", None, **cpu)
    torch.testing.assert_close(got.encode_texts(TEXTS), towers.encode_texts(TEXTS))


def refusal(model: str, pretrained: str | None, cpu: dict) -> str:
    with pytest.raises(ModelError) as caught:
        load_clip(model, pretrained, **cpu)
    text = str(caught.value)
    assert "\n" not in text
    assert repr(model) in text
    return text


def test_a_local_folder_without_weights_is_refused_not_left_random(local_folder, cpu):
    (local_folder / "open_clip_model.safetensors").unlink()
    assert "could not be loaded" in refusal(f"local-dir:{local_folder}", None, cpu)


@pytest.mark.parametrize(
    ("model", "pretrained"),
    [
        ("ViT-B-32", "laion2b_s34b_b79k"),
        ("ViT-B-32", None),
        ("hf-hub:nobody/nothing", None),
        ("local-dir:/nowhere", None),
        ("ViT-B-32", "broken.pt"),
        ("ViT-B-32", "broken.safetensors"),
    ],
)
def test_weights_that_are_not_here_or_broken_give_one_sentence_offline(cpu, model, pretrained, tmp_path):
    if pretrained and pretrained.startswith("broken"):
        (tmp_path / pretrained).write_bytes(b"<html>404</html>" * 20)
        pretrained = str(tmp_path / pretrained)
    assert "could not be loaded" in refusal(model, pretrained, cpu)


def test_weights_of_another_architecture_are_refused(tiny_clip, cpu, tmp_path):
    name, file = tiny_clip
    state = torch.load(file, weights_only=True)
    state["text_projection"] = torch.zeros(32, 99)
    torch.save(state, tmp_path / "weights.pt")
    assert "text_projection" in refusal(name, str(tmp_path / "weights.pt"), cpu)
