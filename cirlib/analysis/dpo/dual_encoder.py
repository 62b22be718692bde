"""The two sides of a retrieval model, query and image: three ways to fuse, four choices of what learns.

What stays frozen is computed once. A projection is trained as a D × D map of the frozen projected embedding, started at
the identity. Shapes: B queries or images, D embedding width, Q query tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cirlib.losses.gradient_cache import in_chunks
from cirlib.models.clip import TwoTowers, trainable_texts
from cirlib.models.devices import autocast
from cirlib.models.feature_store import ImageFeatures
from cirlib.models.length_groups import by_length, quarters
from cirlib.models.memo import Memo
from cirlib.models.qformer import QFormerComposer
from cirlib.models.qformer_layers import FrozenTextStates
from cirlib.study.pictures import open_rgb
from cirlib.study.progress import progress

QueryTower = Callable[[Sequence[str], Sequence[str]], Tensor]  # reference ids and texts → (B, D), not normalised
ImageTower = Callable[[Sequence[str]], Tensor]  # ids → normalised (B, D) or (B, Q, D)
CHUNK = 256  # queries or images embedded at once
IMAGES_AT_ONCE = 16  # whose activations a whole image tower keeps: a batch with its negatives would be 80 GB of a ViT-L


class DualEncoder(nn.Module):
    """Embeds queries and images; its parameters are what learns. Starts where the frozen model is.

    Args:
        trains: as ``dpo.trains``; the projections are made here. None: nothing learns.
        weight: of the text where it is summed with the reference's image embedding; None: it is the query.
    """

    def __init__(
        self, queries: QueryTower, images: ImageTower, width: int, device: torch.device,
        trains: str | None = None, weight: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.query_map = _Projection(width, device) if "projection" in (trains or "") else nn.Identity()
        self.image_map = _Projection(width, device) if trains == "both_projections" else None
        self.queries, self.images, self.device, self.weight = queries, images, device, weight

    def query_vectors(self, references: Sequence[str], texts: Sequence[str]) -> Tensor:
        """Query vectors (B, D) of reference images and edits, before they are normalised."""
        vectors = self.query_map(self.queries(references, texts).to(self.device))
        if self.weight is None:
            return vectors
        return (1 - self.weight) * self.image_vectors(references) + self.weight * F.normalize(vectors, dim=-1)

    def image_vectors(self, ids: Sequence[str]) -> Tensor:
        """Normalised image vectors, (B, D) or (B, Q, D)."""
        images = self.images(ids).to(self.device)
        return images if self.image_map is None else F.normalize(self.image_map(images), dim=-1)

    @torch.inference_mode()
    def embed_queries(self, references: Sequence[str], texts: Sequence[str], normalize: bool = True) -> Tensor:
        """Query vectors (N, D) of any number of edits, on the CPU."""
        vectors = by_length(
            lambda rows: self.query_vectors([references[i] for i in rows], [texts[i] for i in rows]), texts, CHUNK
        )
        vectors = vectors.float().cpu()
        return F.normalize(vectors, dim=-1) if normalize else vectors

    @torch.inference_mode()
    def embed_images(self, ids: Sequence[str]) -> Tensor:
        """Image vectors (M, D) or (M, Q, D) of any number of images, on the CPU."""
        chunks = (ids[start : start + CHUNK] for start in range(0, len(ids), CHUNK))
        return torch.cat([self.image_vectors(chunk).float().cpu() for chunk in chunks])


class _Projection(nn.Linear):
    """The identity (D, D) at first. In float32 whatever autocast says: bfloat16 would cost it three digits."""

    def __init__(self, width: int, device: torch.device) -> None:
        super().__init__(width, width, bias=False, device=device)
        nn.init.eye_(self.weight)

    def forward(self, vectors: Tensor) -> Tensor:
        with torch.autocast(vectors.device.type, enabled=False):
            return super().forward(vectors.float())


class TextTower(nn.Module):
    """The text side of a two-tower model as the query side that learns: a copy, the logit scale frozen.

    ``lower``: what of a mini tower stays frozen; None: nothing does.
    """

    def __init__(self, towers: TwoTowers, lower: FrozenTextStates | None = None) -> None:
        super().__init__()
        self.towers = trainable_texts(towers)
        self.model = self.towers.model
        if lower is not None:
            minilm = self.model.text.transformer
            del minilm.encoder.layer[: len(lower.lower.encoder.layer)]
            minilm.embeddings = _Embeddings(lower)

    def forward(self, references: Sequence[str], texts: Sequence[str]) -> Tensor:
        def embed(rows: list[int]) -> Tensor:
            return self.towers.text_features([texts[i] for i in rows], normalize=False)

        return by_length(embed, texts, quarters(texts))


class _Embeddings(nn.Module):
    """The states of ``lower`` in the place of MiniLM's embeddings."""

    def __init__(self, lower: FrozenTextStates) -> None:
        super().__init__()
        self.lower = [lower]  # in a list: no part of what learns

    def forward(self, input_ids: Tensor, **_options: Any) -> Tensor:
        (lower,) = self.lower
        queries = torch.zeros(len(input_ids), 0, lower.lower.config.hidden_size, device=input_ids.device)
        return lower(input_ids, lower.mask(input_ids), queries)


class QFormerTower(nn.Module):
    """The Q-Former that fuses reference and edit, learning: a copy, the temperature frozen."""

    def __init__(self, composer: QFormerComposer, tokens: ImageFeatures) -> None:
        super().__init__()
        self.composer, self.tokens = deepcopy(composer), tokens
        self.composer.raw_temperature.requires_grad_(False)

    def forward(self, references: Sequence[str], texts: Sequence[str]) -> Tensor:
        return self.composer.embed_queries(self._read(references), list(texts))

    def images(self, ids: Sequence[str]) -> Tensor:
        """Target embeddings (B, D) or (B, Q, D) by the same weights."""
        return self.composer.embed_targets(self._read(ids))

    def _read(self, ids: Sequence[str]) -> Tensor:
        return self.tokens.read(self.tokens.rows(ids), self.composer.device)


class LastStage(nn.Module):
    """EfficientNet's last convolution and the projection: the whole tower would take a minute a run on a laptop."""

    def __init__(self, towers: TwoTowers, early: Memo) -> None:
        super().__init__()
        visual = deepcopy(towers.model.visual).requires_grad_(True)
        self.conv, self.norm, self.head = visual.trunk.conv_head, visual.trunk.bn2, visual.head
        self.early, self.device = early, towers.device

    @staticmethod
    @torch.inference_mode()
    def read(towers: TwoTowers, files: Sequence[Path]) -> Tensor:
        """What is frozen, of pictures: EfficientNet's features (B, 320, S, S) before its last convolution, float16."""
        trunk, parts = towers.model.visual.trunk, []
        for start in progress(range(0, len(files), 64), "image tower", leave=False, disable=len(files) < 999):
            pixels = torch.stack([towers.transform(open_rgb(file)) for file in files[start : start + 64]])
            pixels = pixels.to(towers.device, memory_format=torch.channels_last)
            with autocast(towers.device, towers.dtype):
                parts.append(trunk.blocks(trunk.bn1(trunk.conv_stem(pixels))).float().cpu())
        return torch.cat(parts).half()

    def forward(self, ids: Sequence[str]) -> Tensor:
        grid = self.early(ids).to(self.device).float()  # (B, 320, S, S)
        pooled = self.norm(self.conv(grid)).mean((2, 3))  # (B, 1280)
        return F.normalize(self.head(pooled.float()), dim=-1)

    def train(self, mode: bool = True) -> nn.Module:
        return super().train(False)  # batch-norm statistics stay as they are


class WholeTower(nn.Module):
    """The image tower of an open_clip model, from the pictures; activations of a few images are kept at a time."""

    def __init__(self, towers: TwoTowers, files: Mapping[str, Path]) -> None:
        super().__init__()
        self.visual, self.transform = deepcopy(towers.model.visual).requires_grad_(True), towers.transform
        self.files, self.device = files, towers.device

    def forward(self, ids: Sequence[str]) -> Tensor:
        pixels = torch.stack([self.transform(open_rgb(self.files[image])) for image in ids])
        return F.normalize(in_chunks(self._read, pixels, IMAGES_AT_ONCE).float(), dim=-1)

    def _read(self, pixels: Tensor) -> Tensor:
        return self.visual(pixels.to(self.device))
