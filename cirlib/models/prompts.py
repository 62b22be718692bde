"""CoOp's prompts (Zhou et al., 2022) for composed queries: learned context vectors before each edit, towers frozen."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from cirlib.models.clip import TwoTowers, weighted_sum


class PromptTunedTowers(nn.Module):
    """A weighted sum of reference and edit, the edit read behind M learned vectors (M, H); its weight is learned too.

    ``weight`` in (0, 1) is the text's share to start from. The two towers are no part of the state.

    >>> composer = PromptTunedTowers(prepared.towers(), num_vectors=4, weight=0.3)
    >>> [name for name, _ in composer.named_parameters()], round(composer.weight.item(), 2)
    (['context', 'weight_logit'], 0.3)
    """

    def __init__(self, towers: TwoTowers, num_vectors: int, weight: float = 0.5) -> None:
        super().__init__()
        width, device = towers.word_embeddings.embedding_dim, towers.device
        self.context = nn.Parameter(torch.empty(num_vectors, width, device=device).normal_(0, 0.02))  # as CoOp starts
        start = torch.tensor(weight, device=device).clamp(0.05, 0.95)
        self.weight_logit = nn.Parameter(start.logit())
        self.towers = replace(towers, context=self.context)
        self.towers.model.requires_grad_(False)

    @property
    def weight(self) -> Tensor:
        """The text's share of the query, in (0, 1)."""
        return self.weight_logit.sigmoid()

    def compose(self, references: Tensor, texts: Tensor) -> Tensor:
        """Queries (N, D) from normalised embeddings of references and of edits (N, D)."""
        weight = self.weight.to(references.device)
        return weighted_sum(references, texts, weight)
