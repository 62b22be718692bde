"""A gated sum in a space of its own, heads and gate trained together: for catalogues of some thousand photographs."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.nn import functional as F

from cirlib.benchmarks.splits import annotations_key
from cirlib.losses.info_nce import info_nce
from cirlib.models.colours import BINS, colour_histograms
from cirlib.models.prepared import Prepared
from cirlib.models.word_counts import WordCounts
from cirlib.training.batches import Batch, TripletSampler
from cirlib.training.loop import TrainingConfig
from cirlib.training.two_tower_methods import LearnedMethod, dev_recall, train_method

WIDTH, MEMBERS = 512, 3
IMAGE_DROPOUT, TEXT_DROPOUT, GATE_DROPOUT = 0.5, 0.2, 0.5
PAIRS_WEIGHT = 1.5  # of the loss on image-caption pairs


class GatedSum(nn.Module):
    """Images x (B, C) and texts t (B, D) in one space, and the queries in it.

    ``f = W_i x`` and ``g = W_t t``, normalised; the query is ``(1 - w) f * gate([f; g]) + w g``, normalised, where the
    gate says of every channel how much of the reference stays (Vo et al., 2019, TIRG, eq. 2) and ``w`` is learned.

    >>> GatedSum(8, 6).compose(torch.ones(2, 8), torch.ones(2, 6)).shape
    torch.Size([2, 512])
    """

    def __init__(self, channels: int, text_width: int) -> None:
        super().__init__()
        self.image_head, self.text_head = nn.Linear(channels, WIDTH), nn.Linear(text_width, WIDTH)
        self.gate = nn.Sequential(nn.Linear(2 * WIDTH, 256), nn.ReLU(), nn.Dropout(GATE_DROPOUT), nn.Linear(256, WIDTH))
        nn.init.zeros_(self.gate[-1].weight)
        nn.init.ones_(self.gate[-1].bias)
        self.share = nn.Parameter(torch.tensor(0.6))  # of the text, as a logit
        self.log_scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    def embed_images(self, inputs: Tensor) -> Tensor:
        """Inputs (B, C) to the common space (B, WIDTH)."""
        return F.normalize(self.image_head(F.dropout(inputs, IMAGE_DROPOUT, self.training)), dim=-1)

    def embed_texts(self, texts: Tensor) -> Tensor:
        """Text embeddings (B, D) to the common space (B, WIDTH)."""
        return F.normalize(self.text_head(F.dropout(texts, TEXT_DROPOUT, self.training)), dim=-1)

    def compose(self, references: Tensor, texts: Tensor) -> Tensor:
        """Queries (B, WIDTH)."""
        image, text, share = self.embed_images(references), self.embed_texts(texts), self.share.sigmoid()
        kept = self.gate(torch.cat([image, text], dim=-1) * WIDTH**0.5).sigmoid()  # (B, WIDTH)
        return F.normalize((1 - share) * image * kept + share * text, dim=-1)


class JointSum(LearnedMethod):
    """Some :class:`GatedSum` side by side, on frozen features.

    An image is its mean token beside its colour histogram, a text its sentence embedding beside its words.
    They learn from triplets and, so that few triplets do not bend the words, from image-caption pairs at once. Their
    embeddings are laid end to end, so that the mean of their scores counts.

    >>> method = JointSum()
    >>> method.build(prepared)
    >>> method.embed_queries(images, ["is blue", "is red"]).shape
    torch.Size([2, 1536])
    """

    def build(self, prepared: Prepared) -> None:
        self.towers, channels = prepared.towers(), prepared.tokens.shape[-1] + BINS
        if prepared.stage.study.models.clip == "mini":
            self.towers.model.text.proj = nn.Identity()  # MiniLM's own sentence embeddings: aligned ones have lost some
        edits = [text for part in prepared.splits.train.values() for one in part.triplets for text in one.captions]
        self.words = WordCounts([pair["caption"] for pair in prepared.pairs] or edits)  # those of edits are less exact
        width = self.towers.encode_texts([""]).shape[1] + len(self.words.rows)
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("spread", torch.ones(channels))
        self.members = nn.ModuleList(GatedSum(channels, width) for _ in range(MEMBERS))
        self.to(self.towers.device)

    def fit(self, prepared: Prepared) -> None:
        study, splits = prepared.stage.study, prepared.splits
        set_seed(study.seed)
        self.build(prepared)
        images = sorted({image for part in splits.train.values() for image in part.query_images})
        images = sorted({*images, *(pair["image"] for pair in prepared.pairs)})
        known = self._inputs(prepared, images)  # (N, C)
        self.mean, self.spread = known.mean(0), 2 * known.std(0) + 0.02
        known, row = (known - self.mean) / self.spread, {image: n for n, image in enumerate(images)}
        sampler, ids = TripletSampler(prepared.clip, splits.train, study), prepared.clip.ids
        captions = self._texts([pair["caption"] for pair in prepared.pairs])  # (P, D)
        described = torch.tensor([row[pair["image"]] for pair in prepared.pairs], dtype=torch.long)  # (P,)

        def loss_of(batch: Batch) -> tuple[Tensor, dict[str, float]]:
            references, targets = (known[[row[ids[n]] for n in rows]] for rows in (batch.references, batch.targets))
            drawn = torch.randperm(len(described))[: len(batch)]
            pair = known[described[drawn]], captions[drawn]
            return self._loss(references, self._texts(batch.texts), targets, *pair), {}

        params = study.qformer
        config = TrainingConfig(
            "joint_sum", params.method_epochs, len(sampler.rows(1)), params.combiner_lr, study.models.precision
        )
        data = [annotations_key([*splits.train.values(), *splits.dev.values()]), params.edits, params.single_captions]
        data += [prepared.tokens.key, prepared.annotations]
        train_method(self, prepared, sampler.batches, loss_of, config, data, partial(dev_recall, self, prepared))

    def _loss(self, references: Tensor, edits: Tensor, targets: Tensor, images: Tensor, captions: Tensor) -> Tensor:
        """InfoNCE of triplets and, symmetric, of pairs: the mean over the members."""
        losses = []
        for one in self.members:
            temperature = 1 / one.log_scale.exp().clamp(1, 100)
            losses.append(info_nce(one.compose(references, edits), one.embed_images(targets), temperature=temperature))
            if len(images):
                texts, described = one.embed_texts(captions), one.embed_images(images)
                losses[-1] += PAIRS_WEIGHT * info_nce(texts, described, temperature=temperature, symmetric=True)
        return torch.stack(losses).mean()

    def embed_queries(self, images: Any, texts: list[str]) -> Tensor:
        references, edits = self._standardised(images), self._texts(texts)
        return torch.cat([one.compose(references, edits) for one in self.members], dim=-1)

    def embed_targets(self, images: Any) -> Tensor:
        inputs = self._standardised(images)
        return torch.cat([one.embed_images(inputs) for one in self.members], dim=-1)

    def _standardised(self, images: Any) -> Tensor:
        return (_described(images).to(self.mean.device) - self.mean) / self.spread

    def _inputs(self, prepared: Prepared, ids: Sequence[str]) -> Tensor:
        parts = [_described(prepared.read(ids[start : start + 256])) for start in range(0, len(ids), 256)]
        return torch.cat(parts).to(self.towers.device)

    def _texts(self, texts: list[str]) -> Tensor:
        """Sentence embeddings and words, each of length sqrt(H) / 2, side by side, (B, H + V)."""
        embedded = self.towers.encode_texts(texts).to(self.towers.device)  # (B, H)
        return torch.cat([embedded, self.words(texts)], dim=-1) * embedded.shape[1] ** 0.5 / 2


def _described(images: Any) -> Tensor:
    """Mean token and colour histogram of images, (B, C)."""
    return torch.cat([images.tokens.mean(1), colour_histograms(images.pictures)], dim=-1)
