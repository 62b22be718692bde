"""The two sides of a retrieval model, query and image: three ways to fuse, four choices of what learns.

What stays frozen is computed once, or read from the feature store. A projection is trained as a D × D map, started at
the identity, on the frozen projected embedding: the projection layer under another name, at a thousandth of the cost.

Shapes: B queries or images, D embedding width, Q query tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from copy import copy, deepcopy
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from cirlib.models.clip import TwoTowers
from cirlib.models.devices import autocast
from cirlib.models.feature_store import ImageFeatures
from cirlib.models.qformer import QFormerComposer
from cirlib.study.pictures import open_rgb

QueryTower = Callable[[Sequence[str], Sequence[str]], Tensor]  # reference ids and texts → (B, D), not normalised
ImageTower = Callable[[Sequence[str]], Tensor]  # ids → normalised (B, D) or (B, Q, D)
CHUNK = 256  # queries or images embedded at once


class Memo:
    """Frozen features by key, each computed once."""

    def __init__(self, compute: Callable[[list], Tensor]) -> None:
        self.compute, self.known = compute, {}

    def __call__(self, keys: Sequence[Hashable]) -> Tensor:
        """The features of ``keys``, (B, …)."""
        new = list(dict.fromkeys(key for key in keys if key not in self.known))
        if new:
            self.known.update(zip(new, self.compute(new), strict=True))
        with torch.autocast("cpu", enabled=False):  # which stacks no float16
            return torch.stack([self.known[key] for key in keys])


class DualEncoder(nn.Module):
    """Embeds queries and images; its parameters are what learns. Starts where the frozen model is.

    Args:
        queries, images: the towers; one that learns is a module, a frozen one a function.
        trains: as ``dpo.trains``; the projections are made here. None: nothing learns.
        weight: of the text where it is summed with the reference's image embedding; None: it is the query.
    """

    def __init__(
        self, queries: QueryTower, images: ImageTower, width: int, device: torch.device,
        trains: str | None = None, weight: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.query_map = _identity(width, device) if trains in ("query_projection", "both_projections") else None
        self.image_map = _identity(width, device) if trains == "both_projections" else None
        self.queries, self.images, self.device, self.weight = queries, images, device, weight

    def query_vectors(self, references: Sequence[str], texts: Sequence[str]) -> Tensor:
        """Query vectors (B, D) of reference images and edits, before they are normalised."""
        vectors = _mapped(self.query_map, self.queries(references, texts).to(self.device))
        if self.weight is None:
            return vectors
        return (1 - self.weight) * self.image_vectors(references) + self.weight * F.normalize(vectors, dim=-1)

    def image_vectors(self, ids: Sequence[str]) -> Tensor:
        """Normalised image vectors, (B, D) or (B, Q, D)."""
        images = self.images(ids).to(self.device)
        return images if self.image_map is None else F.normalize(_mapped(self.image_map, images), dim=-1)

    @torch.inference_mode()
    def embed_queries(self, references: Sequence[str], texts: Sequence[str], normalize: bool = True) -> Tensor:
        """Query vectors (N, D) of any number of edits, on the CPU; texts of like length go through together."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        parts = [
            self.query_vectors([references[i] for i in rows], [texts[i] for i in rows]).float().cpu()
            for rows in (order[start : start + CHUNK] for start in range(0, len(order), CHUNK))
        ]
        vectors = torch.cat(parts)[torch.tensor(order).argsort()]
        return F.normalize(vectors, dim=-1) if normalize else vectors

    @torch.inference_mode()
    def embed_images(self, ids: Sequence[str]) -> Tensor:
        """Image vectors (M, D) or (M, Q, D) of any number of images, on the CPU."""
        starts = range(0, len(ids), CHUNK)
        return torch.cat([self.image_vectors(ids[start : start + CHUNK]).float().cpu() for start in starts])


class TextTower(nn.Module):
    """The text side of a two-tower model as the query side that learns: a copy, the logit scale frozen."""

    def __init__(self, towers: TwoTowers) -> None:
        super().__init__()
        self.towers = copy(towers)
        self.model = self.towers.model = deepcopy(towers.model).requires_grad_(True)
        self.model.visual = nn.Identity()
        self.model.logit_scale.requires_grad_(False)

    def forward(self, references: Sequence[str], texts: Sequence[str]) -> Tensor:
        """Text vectors (B, D); the references are not looked at. Texts of like length go through together."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        size = max(16, -(-len(texts) // 2))
        groups = [order[start : start + size] for start in range(0, len(order), size)]
        parts = [self.towers.text_features([texts[i] for i in rows], normalize=False) for rows in groups]
        return torch.cat(parts)[torch.tensor([i for rows in groups for i in rows]).argsort().to(self.towers.device)]


class QFormerTower(nn.Module):
    """The Q-Former that fuses reference and edit, learning: a copy, the temperature frozen."""

    def __init__(self, composer: QFormerComposer, tokens: ImageFeatures) -> None:
        super().__init__()
        self.composer, self.tokens = deepcopy(composer), tokens
        self.composer.log_temperature.requires_grad_(False)

    def forward(self, references: Sequence[str], texts: Sequence[str]) -> Tensor:
        """Fused queries (B, D)."""
        return self.composer.embed_queries(self._read(references), list(texts))

    def images(self, ids: Sequence[str]) -> Tensor:
        """Target embeddings (B, D) or (B, Q, D) by the same weights."""
        return self.composer.embed_targets(self._read(ids))

    def _read(self, ids: Sequence[str]) -> Tensor:
        return self.tokens.read(self.tokens.rows(ids), self.composer.device)


class LastStage(nn.Module):
    """EfficientNet's last convolution and the projection, on what the frozen stages before it made of the pictures.

    The whole tower would take a minute a run on a laptop's cores. Batch-norm statistics stay as they are.
    """

    def __init__(self, towers: TwoTowers, early: Memo) -> None:
        super().__init__()
        visual = deepcopy(towers.model.visual).requires_grad_(True)
        self.conv, self.norm, self.head = visual.trunk.conv_head, visual.trunk.bn2, visual.head
        self.early, self.device = early, towers.device

    def forward(self, ids: Sequence[str]) -> Tensor:
        """Normalised image vectors (B, D)."""
        grid = self.early(ids).to(self.device).float()  # (B, 320, S, S)
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
        """Normalised image vectors (B, D)."""
        pixels = torch.stack([self.transform(open_rgb(self.files[image])) for image in ids])
        return F.normalize(self.visual(pixels.to(self.device)).float(), dim=-1)


@torch.inference_mode()
def early_features(towers: TwoTowers, files: Sequence[Path]) -> Tensor:
    """What :class:`LastStage` reads of pictures: EfficientNet's features before its last convolution, float16.

    >>> early_features(prepared.towers(), [write_image(folder / "a.png")]).shape
    torch.Size([1, 320, 2, 2])
    """
    trunk, parts = towers.model.visual.trunk, []
    for start in tqdm(range(0, len(files), 64), "image tower", leave=False, disable=len(files) < 999):
        pixels = torch.stack([towers.transform(open_rgb(file)) for file in files[start : start + 64]])
        with autocast(towers.device, towers.dtype):
            grid = trunk.blocks(trunk.bn1(trunk.conv_stem(pixels.to(towers.device, memory_format=torch.channels_last))))
        parts.append(grid.float().cpu())
    return torch.cat(parts).half()


def _identity(width: int, device: torch.device) -> nn.Linear:
    linear = nn.Linear(width, width, bias=False, device=device)
    nn.init.eye_(linear.weight)
    return linear


def _mapped(linear: nn.Linear | None, vectors: Tensor) -> Tensor:
    """In float32 whatever autocast says: bfloat16 would cost the identity three digits."""
    if linear is None:
        return vectors
    with torch.autocast(vectors.device.type, enabled=False):
        return linear(vectors.float())
