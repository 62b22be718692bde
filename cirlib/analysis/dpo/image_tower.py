"""The image tower while it learns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cirlib.models.clip import TwoTowers
from cirlib.models.devices import autocast
from cirlib.models.feature_store import FeatureStore, contents_key
from cirlib.models.image_encoding import encode_images
from cirlib.study.pictures import open_rgb

ImageTower = Callable[[Sequence[str]], Tensor]  # ids → normalised vectors (B, D), with gradients


class LastStage(nn.Module):
    """EfficientNet's last convolution and the projection, from stored features of the frozen stages before it.

    The whole tower would take a minute a run on a laptop's cores. Batch-norm statistics stay as they are.
    """

    def __init__(self, towers: TwoTowers, store: FeatureStore) -> None:
        super().__init__()
        trunk = towers.model.visual.trunk
        self.conv, self.norm = deepcopy(trunk.conv_head), deepcopy(trunk.bn2)
        self.head, self.store, self.device = deepcopy(towers.model.visual.head), store, towers.device
        self.requires_grad_(True)

    def forward(self, ids: Sequence[str]) -> Tensor:
        grid = self.store[ids].to(self.device)  # (B, 320, S, S)
        pooled = self.norm(self.conv(grid)).mean((2, 3))  # (B, 1280)
        return F.normalize(self.head(pooled.float()), dim=-1)

    def train(self, mode: bool = True) -> LastStage:
        return super().train(False)


class WholeTower(nn.Module):
    """The image tower of an open_clip model, from the pictures."""

    def __init__(self, towers: TwoTowers, files: Mapping[str, Path]) -> None:
        super().__init__()
        self.visual, self.transform = deepcopy(towers.model.visual).requires_grad_(True), towers.transform
        self.files, self.device = files, towers.device

    def forward(self, ids: Sequence[str]) -> Tensor:
        pixels = torch.stack([self.transform(open_rgb(self.files[image])) for image in ids])
        return F.normalize(self.visual(pixels.to(self.device)).float(), dim=-1)


class _EarlyStages:
    """EfficientNet before its last convolution, as an :class:`~cirlib.models.image_encoding.ImageEncoder`."""

    def __init__(self, towers: TwoTowers, image_size: int) -> None:
        self.trunk, self.towers = towers.model.visual.trunk, towers
        self.transform, self.key = towers.transform, f"{towers.key} before the last convolution"
        self.shape = (self.trunk.conv_head.in_channels, image_size // 32, image_size // 32)

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, S, S) to grids (B, 320, S / 32, S / 32)."""
        pixels = pixels.to(self.towers.device, memory_format=torch.channels_last)
        with autocast(self.towers.device, self.towers.dtype):
            return self.trunk.blocks(self.trunk.bn1(self.trunk.conv_stem(pixels))).contiguous()


def encode_early(
    towers: TwoTowers, images: dict[str, Path], folder: Path, image_size: int, batch_size: int, num_workers: int
) -> FeatureStore:
    """The store that :class:`LastStage` reads."""
    encoder = _EarlyStages(towers, image_size)
    key = contents_key(encoder.key, list(images.values()))
    options = {"batch_size": batch_size, "num_workers": num_workers}
    with torch.inference_mode():
        return encode_images(encoder, images, folder, key=key, description="image tower's early stages", **options)
