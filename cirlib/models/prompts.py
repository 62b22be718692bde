"""CoOp's prompts (Zhou et al., 2022) for composed queries: learned context vectors before each edit, towers frozen."""

from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cirlib.models.clip import TwoTowers, weighted_sum
from cirlib.models.length_groups import by_length, halves
from cirlib.models.weights import ModelError
from cirlib.study.files import replace_file


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

    @property
    def temperature(self) -> float:
        """The two towers' own: one over their logit scale."""
        return 1 / self.towers.model.logit_scale.exp().item()

    def compose(self, references: Tensor, texts: Tensor) -> Tensor:
        """Queries (N, D) from normalised embeddings of references and of edits (N, D)."""
        weight = self.weight.to(references.device)
        return weighted_sum(references, texts, weight)

    def embed_queries(self, references: Tensor, texts: list[str]) -> Tensor:
        """Queries (B, D) with gradients, from embeddings of references (B, D) on the towers' device, and B edits."""

        def embed(rows: list[int]) -> Tensor:
            return self.towers.text_features([texts[i] for i in rows])

        return self.compose(references, by_length(embed, texts, halves(texts)))


def save_prompts(composer: PromptTunedTowers, path: Path) -> None:
    """Writes the learned vectors and the weight as safetensors.

    >>> save_prompts(PromptTunedTowers(prepared.towers(), num_vectors=4), folder / "prompts.safetensors")
    """
    replace_file(path, lambda part: save_file(composer.state_dict(), part))


def load_prompts(towers: TwoTowers, path: Path) -> PromptTunedTowers:
    """Frozen ``towers`` with the prompts of ``path``; a ModelError where there are none that fit.

    >>> save_prompts(PromptTunedTowers(prepared.towers(), num_vectors=4), folder / "prompts.safetensors")
    >>> len(load_prompts(prepared.towers(), folder / "prompts.safetensors").context)
    4
    """
    try:
        state = load_file(path)
        composer = PromptTunedTowers(towers, len(state["context"]))
        composer.load_state_dict(state)
    except (OSError, RuntimeError, KeyError, SafetensorError) as error:
        raise ModelError.because(f"no prompts of this study could be loaded from {path}", error) from error
    return composer.eval()
