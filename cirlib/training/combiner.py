"""The Combiner on two-tower embeddings (Baldrati et al., 2022, CLIP4Cir), with and without a tuned text tower."""

import torch
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.nn import functional as F

from cirlib.models.clip import TwoTowers, trainable_texts, weighted_sum
from cirlib.models.prepared import Prepared
from cirlib.training.two_tower_methods import TwoTowerMethod, train_on_triplets

DROPOUT = 0.5


class TunedSum(TwoTowerMethod):
    """The sum of the two embeddings with the text tower tuned on triplets, CLIP4Cir's first stage (sec. 3.1)."""

    def build(self, prepared: Prepared) -> None:
        self.towers = trainable_texts(prepared.towers())
        self.texts = self.towers.model

    def fit(self, prepared: Prepared) -> None:
        params = prepared.stage.study.qformer
        set_seed(prepared.stage.study.seed)
        self.build(prepared)
        options = {"epochs": params.method_epochs, "lr": params.text_lr, "edits": params.edits}
        train_on_triplets(self, prepared, "sum_tuned", **options)

    def compose(self, references: Tensor, texts: list[str]) -> Tensor:
        return weighted_sum(references, self.read_texts(texts), 0.5)


class Combiner(TwoTowerMethod):
    """Both embeddings through one network, beside a learned convex mix of the two (Baldrati et al., 2022, sec. 3.2).

    With ``p = [relu(W_t t); relu(W_i i)]`` of 8 D channels the query is ``W_2 relu(W_1 p) + s t + (1 - s) i``,
    normalised, where ``s`` in (0, 1) is a second network's of ``p``.
    """

    tuned = False  # whether the text tower is tuned first

    def build(self, prepared: Prepared, towers: TwoTowers | None = None) -> None:
        """``towers``: those of the first stage, tuned."""
        self.towers = towers or (trainable_texts(prepared.towers()) if self.tuned else prepared.towers())
        self.texts = self.towers.model.requires_grad_(False) if self.tuned else None
        width, device = self.towers.shape[0], self.towers.device
        self.text_projection, self.image_projection = nn.Linear(width, 4 * width), nn.Linear(width, 4 * width)
        self.dropout = nn.Dropout(DROPOUT)
        self.output = _two_layers(8 * width, width)
        self.mix = _two_layers(8 * width, 1)
        self.to(device)

    def fit(self, prepared: Prepared) -> None:
        params, first = prepared.stage.study.qformer, TunedSum() if self.tuned else None
        if first is not None:
            first.fit(prepared)
        set_seed(prepared.stage.study.seed)
        self.build(prepared, first and first.towers)
        options = {"epochs": params.method_epochs, "lr": params.combiner_lr, "edits": params.edits}
        train_on_triplets(self, prepared, "combiner_tuned" if self.tuned else "combiner", **options)

    def compose(self, references: Tensor, texts: list[str]) -> Tensor:
        with torch.no_grad():
            edits = self.read_texts(texts)  # (B, D)
        projected = [self.text_projection(edits), self.image_projection(references)]
        hidden = self.dropout(torch.cat(projected, dim=-1).relu())  # (B, 8 D)
        share = self.mix(hidden).sigmoid()  # (B, 1), of the text
        return F.normalize(self.output(hidden) + share * edits + (1 - share) * references, dim=-1)


class TunedCombiner(Combiner):
    """The Combiner behind a text tower that was tuned under the sum: CLIP4Cir's two stages."""

    tuned = True


def _two_layers(width: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Dropout(DROPOUT), nn.Linear(width, out))
