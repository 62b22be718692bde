"""A second stage on any first method: BLIP-2's image-text matching on its first images (Li et al., 2023, sec. 3.1).

The Q-Former reads each candidate together with the edit; the head says of every query token whether the two belong
together, and the mean of that is added to the first stage's cosine, as BLIP-2's evaluation does.
"""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cirlib.benchmarks.splits import annotations_key
from cirlib.models.blip2 import load_blip2
from cirlib.models.clip import slerp, weighted_sum
from cirlib.models.devices import autocast
from cirlib.models.prepared import Prepared
from cirlib.models.qformer_embedding import new_composer, pretrained_composer, trained_composer
from cirlib.models.weights import ModelError
from cirlib.study.method_registry import QFORMER, ZERO_SHOT, find_method
from cirlib.training.batches import Batch, TripletSampler
from cirlib.training.loop import TrainingConfig
from cirlib.training.two_tower_methods import LearnedMethod, train_method

CANDIDATES = 256  # images that go through the Q-Former at a time


class Reranked(LearnedMethod):
    """The method ``qformer.rerank``, its first images put in order by image-text matching.

    BLIP-2 brings its matching head. The small models have none: head and Q-Former learn it on the train triplets, where
    the target is to match its edit and the batch's next target is not.
    """

    def build(self, prepared: Prepared) -> None:
        models = prepared.stage.study.models
        self.prepared, self.stages = prepared, [_first_stage(prepared)]  # in a list: no part of this module
        if models.fusion == "mini":
            self.composer = pretrained_composer(prepared)
            self.head = nn.Linear(self.composer.query_tokens.shape[-1], 2).to(self.composer.device)
        else:
            self.composer = new_composer(prepared)
            self.head = load_blip2(prepared.local_name(models.fusion))[0].itm_head.to(self.composer.device)
            if not self.head.weight.any():  # as cirlib.convert leaves it
                raise ModelError(f"{models.fusion} has no matching head to rerank with: convert it again with --base")
        self.eval()

    def fit(self, prepared: Prepared) -> None:
        study, params = prepared.stage.study, prepared.stage.study.qformer
        set_seed(study.seed)
        self.build(prepared)
        if study.models.fusion != "mini":
            return
        sampler, tokens = TripletSampler(prepared.tokens, prepared.splits.train, study), prepared.tokens

        def loss_of(batch: Batch) -> tuple[Tensor, dict[str, float]]:
            own = tokens.read(batch.targets, self.composer.device)
            logits = torch.cat([self.match(images, batch.texts) for images in (own, own.roll(1, 0))])  # (2 B, 2)
            return cross_entropy(logits, torch.tensor([1, 0], device=logits.device).repeat_interleave(len(batch))), {}

        steps, precision = len(sampler.rows(1)), study.models.precision
        config = TrainingConfig("reranked", params.method_epochs, steps, params.lr, precision=precision)
        data = [tokens.key, annotations_key([*sampler.parts.values()])]
        train_method(self, prepared, sampler.batches, loss_of, config, data)

    def match(self, tokens: Tensor, texts: Sequence[str]) -> Tensor:
        """The head's logits (B, 2), for no match and a match, of image tokens (B, T, C) and texts."""
        return self.head(self.composer.fuse(tokens, *self.composer.tokenize(texts))).mean(1)

    def rerank(self, _references: Any, texts: list[str], candidates: list[list[str]]) -> Tensor:
        """The probability (B, K) that each candidate matches its query's edit."""
        pairs = [(image, text) for images, text in zip(candidates, texts, strict=True) for image in images]
        parts = []
        with autocast(self.composer.device, self.composer.dtype):
            for start in range(0, len(pairs), CANDIDATES):
                images, edits = zip(*pairs[start : start + CANDIDATES], strict=True)
                logits = self.match(self.prepared.tokens[images].to(self.composer.device), edits)
                parts.append(logits.float().softmax(-1)[:, 1].cpu())
        return torch.cat(parts).unflatten(0, (len(texts), -1))

    def embed_queries(self, images: Any, texts: list[str]) -> Tensor:
        return self.stages[0].embed_queries(images, texts)

    def embed_targets(self, images: Any) -> Tensor:
        return self.stages[0].embed_targets(images)


def _first_stage(prepared: Prepared) -> Any:
    """The method ``qformer.rerank``, ready to embed."""
    name = prepared.stage.study.qformer.rerank
    method = find_method(name)
    if method.family == ZERO_SHOT:
        alone = {"image_only": 0.0, "text_only": 1.0}
        weight = alone[name] if name in alone else prepared.stage.read_choice("zero_shot", "weights.json")[name]
        mix, towers = slerp if name == "slerp" else weighted_sum, prepared.towers()
        return SimpleNamespace(
            embed_queries=lambda images, texts: mix(images.embeddings, towers.encode_texts(texts), weight),
            embed_targets=lambda images: images.embeddings,
        )
    if method.family == QFORMER:
        composer = trained_composer(prepared, name)
        return SimpleNamespace(
            embed_queries=lambda images, texts: composer.embed_queries(images.tokens.to(composer.device), texts),
            embed_targets=lambda images: composer.embed_targets(images.tokens.to(composer.device)),
        )
    made = method.make()
    if hasattr(made, "fit"):
        made.fit(prepared)
    return made
