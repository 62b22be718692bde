"""What training does to an embedding space: alignment, uniformity, effective rank, spread, hubs, ranks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cirlib.models.qformer import mean_token
from cirlib.retrieval.scoring import Scored

QUANTILES = (10, 25, 50, 75, 90)


def alignment(queries: Tensor, targets: Tensor) -> float:
    """Mean squared distance of query and target, normalised (N, D): Wang & Isola 2020, eq. 1 with α = 2; 0 to 4."""
    return (queries - targets).square().sum(-1).mean().item()


def uniformity(vectors: Tensor) -> float:
    """log of the mean of exp(−2 ‖x − y‖²) over pairs of normalised (N, D): Wang & Isola 2020, eq. 2 with t = 2.

    0 where all are one point, about −4 where they fill the sphere.
    """
    distances = torch.pdist(vectors).square()
    return distances.mul(-2).exp().mean().log().item()


def effective_rank(vectors: Tensor) -> float:
    """exp of the entropy of the singular values of centred (N, D), normalised to sum 1: Roy & Vetterli 2007; 1 to D."""
    values = torch.linalg.svdvals(vectors - vectors.mean(0))
    shares = values / values.sum().clamp(min=1e-12)
    return torch.special.entr(shares).sum().exp().item()


def spread(vectors: Tensor) -> float:
    """1 − ‖mean‖ of normalised (N, D): 0 where all are one direction, 1 where they cancel out."""
    return 1 - vectors.mean(0).norm().item()


def hubness(best: np.ndarray) -> float:
    """Share of the places in result lists (N, k), gallery rows, that the k most retrieved images take; k / M to 1."""
    _, counts = np.unique(best, return_counts=True)
    return float(np.sort(counts)[::-1][: best.shape[1]].sum() / best.size)


def describe(
    raw: Sequence[Tensor], galleries: Sequence[Tensor], targets: Sequence[Sequence[int]], scored: Sequence[Scored]
) -> dict[str, float]:
    """All of the above, the mean over categories.

    Args:
        raw: of each category the query vectors (N, D) before normalising.
        galleries: its image vectors (M, D) or (M, Q, D).
        targets: the gallery row of each query's target.
        scored: its ranks.
    """
    rows = []
    for vectors, gallery, wanted, one in zip(raw, galleries, targets, scored, strict=True):
        queries = F.normalize(vectors, dim=-1)
        images = mean_token(gallery)
        best = (queries @ images.T).topk(min(10, len(images)), dim=1).indices.numpy()
        places = np.array(one.target_ranks)
        rows.append({
            "alignment": alignment(queries, images[torch.as_tensor(wanted)]),
            "uniformity": uniformity(queries),
            "effective_rank": effective_rank(queries),
            "norm": vectors.norm(dim=-1).mean().item(),
            "spread": spread(queries),
            "hubness": hubness(best),
            **{f"rank_{q}": float(np.quantile(places, q / 100)) for q in QUANTILES},
            "gallery": one.candidates,
        })  # fmt: skip
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]} if rows else {}
