"""The two encoder of a retrieval model, query and image, for three ways to fuse and four choices of what learns.

What stays frozen is computed once, or read from the feature store. A projection is trained as a D × D map, started at
the identity, on the frozen projected embedding: the projection layer under another name, at a thousandth of the cost.

Shapes: B queries or images, D embedding width, Q query tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from copy import copy, deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cirlib.analysis.dpo.image_tower import ImageTower
from cirlib.models.clip import TwoTowers
from cirlib.models.feature_store import FeatureStore
from cirlib.models.qformer import QFormerComposer
from cirlib.models.qformer_embedding import Features


class Memo:
    """Frozen features by key, each computed once."""

    def __init__(self, compute: Callable[[list], Tensor]) -> None:
        self.compute, self.known = compute, {}

    def __call__(self, keys: Sequence[Hashable]) -> Tensor:
        """The features of ``keys``, (B, …)."""
        new = list(dict.fromkeys(key for key in keys if key not in self.known))
        if new:
            self.known.update(zip(new, self.compute(new), strict=True))
        return torch.stack([self.known[key] for key in keys])


class DualEncoder(nn.Module, ABC):
    """Embeds queries and images; its parameters are what learns. Starts where the frozen model is."""

    def __init__(self, width: int, trains: str | None, device: torch.device) -> None:
        super().__init__()
        self.query_map = _identity(width, device) if trains in ("query_projection", "both_projections") else None
        self.image_map = _identity(width, device) if trains == "both_projections" else None
        self.device = device

    @abstractmethod
    def query_vectors(self, references: Sequence[str], texts: Sequence[str]) -> Tensor:
        """Query vectors (B, D) of reference images and edits, before they are normalised."""

    @abstractmethod
    def image_vectors(self, ids: Sequence[str]) -> Tensor:
        """Normalised image vectors, (B, D) or (B, Q, D)."""


class TwoTowerDualEncoder(DualEncoder):
    """The edit through the text tower, alone or in a weighted sum with the reference's image embedding."""

    def __init__(
        self, towers: TwoTowers, store: FeatureStore, texts: Memo, images: Callable[[], ImageTower],
        weight: float | None, trains: str | None,
    ) -> None:  # fmt: skip
        super().__init__(towers.shape[0], trains, towers.device)
        self.store, self.texts, self.weight = store, texts, weight
        self.live: TwoTowers | None = None
        self.image_tower: ImageTower | None = None
        if trains in ("query_tower", "both_towers"):
            self.live = copy(towers)
            self.live.model = deepcopy(towers.model)
            learn_text_only(self.live)
            self.text_tower = _without_images(self.live)
        if trains == "both_towers":
            self.image_tower = images()

    def query_vectors(self, references: Sequence[str], texts: Sequence[str]) -> Tensor:
        text = self._text_vectors(texts)
        if self.weight is None:
            return text
        return (1 - self.weight) * self.image_vectors(references) + self.weight * F.normalize(text, dim=-1)

    def image_vectors(self, ids: Sequence[str]) -> Tensor:
        if self.image_tower is not None:
            return self.image_tower(ids)
        images = self.store[ids].to(self.device)
        return images if self.image_map is None else F.normalize(_mapped(self.image_map, images), dim=-1)

    def _text_vectors(self, texts: Sequence[str]) -> Tensor:
        if self.live is not None:
            return _by_length(self.live, list(texts))
        frozen = self.texts(texts).to(self.device)
        return frozen if self.query_map is None else _mapped(self.query_map, frozen)


class QFormerDualEncoder(DualEncoder):
    """Reference and edit fused by the Q-Former."""

    def __init__(
        self, composer: QFormerComposer, tokens: Features, queries: Memo, images: Memo, trains: str | None
    ) -> None:  # fmt: skip
        super().__init__(composer.vision_projection.out_features, trains, composer.device)
        self.tokens, self.queries, self.images = tokens, queries, images
        self.both = trains == "both_towers"
        self.composer = deepcopy(composer) if trains in ("query_tower", "both_towers") else None
        if self.composer is not None:
            self.composer.log_temperature.requires_grad_(False)

    def query_vectors(self, references: Sequence[str], texts: Sequence[str]) -> Tensor:
        if self.composer is not None:
            reference = self.tokens.read(self.tokens.rows(references), self.device)
            return self.composer.embed_queries(reference, list(texts))
        fused = self.queries(list(zip(references, texts, strict=True))).to(self.device)
        return fused if self.query_map is None else _mapped(self.query_map, fused)

    def image_vectors(self, ids: Sequence[str]) -> Tensor:
        if self.composer is not None and self.both:
            return self.composer.embed_targets(self.tokens.read(self.tokens.rows(ids), self.device))
        images = self.images(ids).to(self.device)
        return images if self.image_map is None else F.normalize(_mapped(self.image_map, images), dim=-1)


def similarities(queries: Tensor, images: Tensor) -> Tensor:
    """Cosines (B, K) of normalised queries (B, D) and their images (B, K, D) or (B, K, Q, D): the best token counts."""
    if images.ndim == 3:
        return torch.einsum("bd,bkd->bk", queries, images)
    return torch.einsum("bd,bkqd->bkq", queries, images).amax(-1)


def all_similarities(queries: Tensor, images: Tensor) -> Tensor:
    """Cosines (B, M) of every normalised query (B, D) with every image (M, D) or (M, Q, D): the best token counts."""
    if images.ndim == 2:
        return queries @ images.T
    return torch.einsum("bd,mqd->bmq", queries, images).amax(-1)


def learn_text_only(towers: TwoTowers) -> None:
    """Frees the text side of an open_clip model and freezes its image side and logit scale."""
    towers.model.requires_grad_(True)
    towers.model.visual.requires_grad_(False)
    towers.model.logit_scale.requires_grad_(False)


def _without_images(towers: TwoTowers) -> nn.Module:
    """The towers' model, its image side left out: what ``encode_text`` needs."""
    towers.model.visual = nn.Identity()
    return towers.model


def _identity(width: int, device: torch.device) -> nn.Linear:
    linear = nn.Linear(width, width, bias=False, device=device)
    nn.init.eye_(linear.weight)
    return linear


def _mapped(linear: nn.Linear, vectors: Tensor) -> Tensor:
    """In float32 whatever autocast says: bfloat16 would cost the identity three digits."""
    with torch.autocast(vectors.device.type, enabled=False):
        return linear(vectors.float())


def _by_length(towers: TwoTowers, texts: list[str]) -> Tensor:
    """Text vectors (B, D) before they are normalised; texts of like length go through together."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    size = max(16, -(-len(texts) // 2))
    groups = [order[start : start + size] for start in range(0, len(order), size)]
    parts = [towers.text_features([texts[i] for i in rows], normalize=False) for rows in groups]
    return torch.cat(parts)[torch.tensor([i for rows in groups for i in rows]).argsort().to(towers.device)]
