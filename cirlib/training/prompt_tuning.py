"""Prompt tuning (CoOp: Zhou et al., 2022) on triplets: of two frozen towers only vectors before the edit learn."""

from dataclasses import replace

import torch
from accelerate.utils import set_seed
from torch import Tensor, nn

from cirlib.models.clip import TwoTowers, weighted_sum
from cirlib.models.prepared import Prepared
from cirlib.training.two_tower_methods import TwoTowerMethod, train_on_triplets


class PromptTuned(TwoTowerMethod):
    """A weighted sum of reference and edit, the edit read behind learned vectors (M, H); its weight is learned too."""

    def build(self, prepared: Prepared, weight: float = 0.5) -> None:
        self.put_on(prepared.towers(), prepared.stage.study.qformer.prompt_vectors, weight)

    def put_on(self, towers: TwoTowers, num_vectors: int, weight: float) -> None:
        """Freezes ``towers``; ``weight`` in (0, 1) is the text's share to start from."""
        width, device = towers.word_embeddings.embedding_dim, towers.device
        self.context = nn.Parameter(torch.empty(num_vectors, width, device=device).normal_(0, 0.02))  # as CoOp starts
        self.weight_logit = nn.Parameter(torch.tensor(weight, device=device).clamp(0.05, 0.95).logit())
        self.towers = replace(towers, context=self.context)
        self.towers.model.requires_grad_(False)

    def fit(self, prepared: Prepared) -> None:
        study, params = prepared.stage.study, prepared.stage.study.qformer
        set_seed(study.seed)
        self.build(prepared, prepared.stage.read_choice("zero_shot", "weights.json")["sum"])
        options = {"epochs": params.prompt_epochs, "lr": params.prompt_lr, "edits": params.prompt_edits}
        train_on_triplets(self, prepared, "prompt_tuned", **options)

    @property
    def weight(self) -> Tensor:
        """The text's share of the query, in (0, 1)."""
        return self.weight_logit.sigmoid()

    def compose(self, references: Tensor, texts: list[str]) -> Tensor:
        return weighted_sum(references, self.read_texts(texts), self.weight)
