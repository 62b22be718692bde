"""A split under a model: embedded once, then scored, and its geometry told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cirlib.analysis.dpo.dual_encoder import DualEncoder
from cirlib.benchmarks import Benchmark, query_texts
from cirlib.retrieval.scoring import Scored, average_texts, score, summarise
from cirlib.retrieval.similarity import similarity
from cirlib.study.parameters import Evaluation

QUANTILES = (10, 25, 50, 75, 90)  # of the targets' ranks


@dataclass(frozen=True)
class EmbeddedSplit:
    """A category under a model: query vectors (N, D) not normalised, gallery (M, D) or (M, T, D) normalised."""

    benchmark: Benchmark
    raw: Tensor
    gallery: Tensor

    @property
    def queries(self) -> Tensor:
        """Normalised, (N, D)."""
        return F.normalize(self.raw, dim=-1)

    @property
    def cosines(self) -> Tensor:
        """Of every query with every image, (N, M); the best token counts."""
        return similarity(self.queries, self.gallery)

    def rows(self) -> tuple[list[int], list[int]]:
        """The gallery rows of each query's target and of its reference."""
        row, triplets = self.benchmark.gallery_index, self.benchmark.triplets
        return [row[triplet.targets[0]] for triplet in triplets], [row[triplet.reference] for triplet in triplets]


def embed_splits(
    encoder: DualEncoder, parts: Mapping[str, Benchmark], evaluation: Evaluation
) -> dict[str, EmbeddedSplit]:
    """Every category's queries and gallery; several texts of a query are averaged, then normalised.

    >>> list(embed_splits(context.encoder(context.study.dpo), context.splits.dev, context.evaluation))
    ['hat', 'shoe']
    """
    embedded = {}
    for category, part in parts.items():
        texts, rows = query_texts(part, evaluation.captions)
        references = [part.triplets[row].reference for row in rows]
        vectors = encoder.embed_queries(references, texts, normalize=False)
        if len(texts) > len(part.triplets):
            vectors = average_texts(F.normalize(vectors, dim=-1), rows, len(part.triplets))
        embedded[category] = EmbeddedSplit(part, vectors, encoder.embed_images(part.gallery))
    return embedded


def score_splits(embedded: Mapping[str, EmbeddedSplit], evaluation: Evaluation, method: str) -> list[Scored]:
    """A model on every category.

    >>> embedded = embed_splits(context.encoder(context.study.dpo), context.splits.reported, context.evaluation)
    >>> [len(one.ranks.above) for one in score_splits(embedded, context.evaluation, "text_only")]
    [3, 3]
    """
    return [score(method, category, e.queries, e.gallery, e.benchmark, evaluation) for category, e in embedded.items()]


def embedding_statistics(embedded: Mapping[str, EmbeddedSplit], scored: Sequence[Scored]) -> dict[str, float]:
    """Recall@10, chance and the geometry of a model, means over categories; {} where nothing was scored.

    Returns:
        alignment: mean squared distance of query and target (its best token), 0 to 4 (Wang & Isola 2020, eq. 1, α = 2).
        uniformity: log of the mean of exp(−2 ‖x − y‖²) over pairs of queries (eq. 2, t = 2), 0 for one point to about
        −4. effective_rank: exp of the entropy of the queries' singular values, 1 to D (Roy & Vetterli 2007). spread:
        1 − ‖mean query‖, 0 for one direction. norm: of raw queries. hubness: share of all top-10 places that the ten
        most retrieved images take. rank_10 … rank_90: quantiles of the target's rank among ``gallery`` candidates.

    >>> embedding_statistics({}, [])
    {}
    """
    if not scored:
        return {}
    rows = [_statistics(embedded[one.category], one) for one in scored]
    mean = summarise(scored, (10,)).iloc[-1]
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    return {"recall@10": float(mean["value"]), "chance": float(mean["chance"]), **means}


def _statistics(e: EmbeddedSplit, scored: Scored) -> dict[str, float]:
    queries, cosines, targets = e.queries, e.cosines, e.gallery[e.rows()[0]]  # targets: (N, D) or (N, T, D)
    if targets.ndim == 3:
        targets = targets[torch.arange(len(targets)), (targets @ queries[..., None])[..., 0].argmax(1)]
    values = torch.linalg.svdvals(queries - queries.mean(0))
    best = cosines.topk(min(10, cosines.shape[1]), dim=1).indices  # (N, k)
    places = best.unique(return_counts=True)[1].sort(descending=True).values[: best.shape[1]]  # of the most retrieved
    return {
        "alignment": (queries - targets).square().sum(-1).mean().item(),
        "uniformity": torch.pdist(queries).square().mul(-2).exp().mean().log().item(),
        "effective_rank": torch.special.entr(values / values.sum().clamp(min=1e-12)).sum().exp().item(),
        "norm": e.raw.norm(dim=-1).mean().item(),
        "spread": 1 - queries.mean(0).norm().item(),
        "hubness": places.sum().item() / best.numel(),
        **{f"rank_{q}": float(np.quantile(scored.target_ranks, q / 100)) for q in QUANTILES},
        "gallery": scored.candidates,
    }
