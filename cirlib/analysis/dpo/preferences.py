"""The preferences of a run, and the losses compared on them, on one scale: cosine · ``SCALE`` · β is a logit."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cirlib.analysis.dpo.context import RunContext
from cirlib.analysis.dpo.dual_encoder import DualEncoder
from cirlib.analysis.dpo.grid import IN_BATCH
from cirlib.losses.dpo import dpo_loss
from cirlib.losses.recall_at_k import recall_at_k_loss
from cirlib.retrieval.similarity import own_similarity, similarity
from cirlib.study.files import read_json, write_json
from cirlib.study.parameters import DPO

SCALE = 100.0  # CLIP's logit scale


class PairCosines(NamedTuple):
    """Cosines of B queries with targets (B,) and K negatives (B, K), by the model in training and by the frozen."""

    chosen: Tensor
    rejected: Tensor
    frozen_chosen: Tensor
    frozen_rejected: Tensor

    def loss(self, params: DPO) -> Tensor:
        """The mean ``dpo_loss`` of the scaled cosines, or the target's cross-entropy among itself and its K negatives
        at temperature 1 / (β · scale): the same where K is 1 and the frozen model has no opinion.
        """
        if params.objective == "info_nce_mined":
            logits = params.beta * SCALE * torch.cat([self.chosen[:, None], self.rejected], dim=1)  # (B, 1 + K)
            return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))
        return dpo_loss(*(SCALE * one for one in self), beta=params.beta, loss_type=params.loss_type)[0].mean()

    def rewards(self, params: DPO) -> dict[str, float]:
        """DPO's rewards β · scale · (cosine − the frozen model's), their means, and how often the target leads."""
        strength = params.beta * SCALE
        chosen = strength * (self.chosen - self.frozen_chosen).detach()  # (B,)
        rejected = strength * (self.rejected - self.frozen_rejected).detach().mean(-1)  # (B,)
        return {
            "margin": (chosen - rejected).mean().item(),
            "chosen_reward": chosen.mean().item(),
            "rejected_reward": rejected.mean().item(),
            "accuracy": (0.5 + 0.5 * (chosen - rejected).sign()).mean().item(),  # a tie counts half
        }


class Preferences:
    """N edits, each with its target and K negatives, mined by the frozen model at first; in-batch nothing is mined.

    ``corruption``: chosen and rejected "swapped", or "raw" queries, not normalised. ``folder`` keeps later minings.
    """

    def __init__(
        self, context: RunContext, params: DPO, corruption: str | None = None, folder: Path | None = None
    ) -> None:
        self.edits, self.params, self.seed = context.edits(params), params, context.seed(params)
        self.corruption, self.folder = corruption, folder
        self.frozen = context.encoder(params, frozen=True).eval()
        self.negatives, self.mined_at = None, 1  # (N, K) ids, and the epoch
        if params.objective not in IN_BATCH:
            self.queries = self.frozen.embed_queries(self.edits.references, self.edits.texts, corruption != "raw")
            self._take(self._mine(self.frozen, 1))

    def mine_for(self, epoch: int, encoder: DualEncoder) -> None:
        """Mines anew where ``epoch`` asks for it: by the model as it is, or what was mined then before a stop."""
        every = self.params.mine_every
        since = 1 + (epoch - 1) // every * every if every else 1
        if self.negatives is None or since == self.mined_at:
            return
        file = self.folder and self.folder / f"negatives-{since}.json"
        if file and file.is_file():
            negatives = np.array(read_json(file), dtype=object)
        else:
            mode = encoder.training
            negatives = self._mine(encoder.eval(), since)
            encoder.train(mode)
            if file:
                write_json(negatives.tolist(), file, indent=None)
        self._take(negatives)
        self.mined_at = since

    def _mine(self, encoder: DualEncoder, epoch: int) -> np.ndarray:
        queries = encoder.embed_queries(self.edits.references, self.edits.texts)
        pools = {category: encoder.embed_images(ids) for category, ids in self.edits.pools.items()}
        return self.edits.mine(queries, pools, self.params, self.seed + epoch)

    def _take(self, negatives: np.ndarray) -> None:
        """Puts ``negatives`` (N, K) in force, with the frozen model's cosines."""
        self.negatives = negatives
        targets = self.frozen.embed_images(self.edits.targets)
        images = self.frozen.embed_images(negatives.ravel().tolist()).unflatten(0, negatives.shape)
        chosen = own_similarity(self.queries, targets[:, None])[:, 0]
        self.frozen_cosines = chosen, own_similarity(self.queries, images)  # (N,) and (N, K)

    def _embed(self, encoder: DualEncoder, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Queries (B, D) and targets (B, D) or (B, T, D) of the edits ``rows``."""
        references, texts, targets = (
            [some[i] for i in rows.tolist()] for some in (self.edits.references, self.edits.texts, self.edits.targets)
        )
        queries = encoder.query_vectors(references, texts)
        return queries if self.corruption == "raw" else F.normalize(queries, dim=-1), encoder.image_vectors(targets)

    def cosines(self, encoder: DualEncoder, rows: Tensor) -> PairCosines:
        """Of a batch, the edits ``rows`` (B,), with targets and negatives; dot products where queries are raw."""
        queries, targets = self._embed(encoder, rows)
        negatives = self.negatives[rows.tolist()]  # (B, K)
        images = encoder.image_vectors(negatives.ravel().tolist()).unflatten(0, negatives.shape)
        before = [one[rows].to(queries.device) for one in self.frozen_cosines]
        return PairCosines(own_similarity(queries, targets[:, None])[:, 0], own_similarity(queries, images), *before)

    def loss(self, encoder: DualEncoder, rows: Tensor) -> tuple[Tensor, dict[str, float]]:
        """The loss of a batch and its mean rewards; in-batch at temperature 1 / (β · scale), and no rewards."""
        if self.negatives is None:
            cosines = similarity(*self._embed(encoder, rows))  # (B, B), target b at column b
            wanted, slope = torch.arange(len(cosines), device=cosines.device), self.params.beta * SCALE
            if self.params.objective == "recall_in_batch":
                return recall_at_k_loss(cosines, wanted, temperature=1 / slope), {}
            return F.cross_entropy(slope * cosines, wanted), {}
        pairs = self.cosines(encoder, rows)
        signed = PairCosines(*(-one for one in pairs)) if self.corruption == "swapped" else pairs
        return signed.loss(self.params), pairs.rewards(self.params)
