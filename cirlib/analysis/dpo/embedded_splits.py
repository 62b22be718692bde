"""A split under a model: embedded once, scored, and its geometry told."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cirlib.analysis.dpo.dual_encoder import DualEncoder
from cirlib.benchmarks import Benchmark, query_texts
from cirlib.retrieval.cirr_circo import chance
from cirlib.retrieval.ranks import Ranks
from cirlib.retrieval.scoring import Scored, average_texts, mean_recall, score
from cirlib.retrieval.similarity import similarity
from cirlib.study.parameters import Evaluation


@dataclass(frozen=True)
class EmbeddedSplit:
    """A category under a model, with its scores."""

    scored: Scored
    raw: Tensor  # queries (N, D), not normalised
    queries: Tensor  # (N, D) normalised
    gallery: Tensor  # (M, D) or (M, T, D) normalised

    def rows(self) -> tuple[list[int], list[int]]:
        """The gallery rows of each query's target and of its reference."""
        row, triplets = self.scored.benchmark.gallery_index, self.scored.benchmark.triplets
        return [row[triplet.targets[0]] for triplet in triplets], [row[triplet.reference] for triplet in triplets]

    def read(self, reading: str) -> Scored:
        """The scores as they are, or with ranks as one of the mistaken ``READINGS`` of the grid finds them."""
        ranks, candidates = self.scored.ranks, self.scored.candidates
        if reading == "distance":  # a similarity sorted as if it were one
            ranks = Ranks(candidates - 1 - ranks.above - ranks.tied, ranks.tied)
        elif reading == "order":  # images answer under the ids of others
            order = torch.randperm(len(self.gallery), generator=torch.Generator().manual_seed(0))
            ranks = self._ranks(similarity(self.queries, self.gallery[order]))
        elif reading in ("ties", "misses"):  # a sigmoid in float16 saturates; all orders of a tie are as likely
            ranks = self._ranks(torch.sigmoid(100 * similarity(self.queries, self.gallery)).half())
            if reading == "misses":  # or the target comes last
                ranks = Ranks(ranks.above + ranks.tied, torch.zeros_like(ranks.tied))
        return replace(self.scored, ranks=ranks)

    def _ranks(self, scores: Tensor) -> Ranks:
        """Of the targets by ``scores`` (N, M), the references removed."""
        targets, references = self.rows()
        own = scores.gather(1, torch.tensor(targets)[:, None])  # (N, 1)
        scores[torch.arange(len(scores)), references] = -torch.inf
        return Ranks((scores > own).sum(1), (scores == own).sum(1) - 1)


def embed_splits(
    encoder: DualEncoder, parts: Mapping[str, Benchmark], evaluation: Evaluation, method: str = "retrieval_dpo"
) -> list[EmbeddedSplit]:
    """Every category under a model; several texts of a query are averaged, then normalised.

    >>> splits = embed_splits(context.encoder(context.study.dpo), context.splits.reported, context.evaluation)
    >>> [len(one.queries) for one in splits]
    [3, 3]
    """
    embedded = []
    for category, part in parts.items():
        texts, rows = query_texts(part, evaluation.captions)
        references = [part.triplets[row].reference for row in rows]
        raw = encoder.embed_queries(references, texts, normalize=False)
        if len(texts) > len(part.triplets):
            raw = average_texts(F.normalize(raw, dim=-1), rows, len(part.triplets))
        queries, gallery = F.normalize(raw, dim=-1), encoder.embed_images(part.gallery)
        scored = score(method, category, queries, gallery, part, evaluation)
        embedded.append(EmbeddedSplit(scored, raw, queries, gallery))
    return embedded


def embedding_statistics(embedded: Sequence[EmbeddedSplit]) -> dict[str, float]:
    """Recall@10, chance and the geometry of a model, means over categories.

    Returns:
        alignment: mean squared distance of query and target (its best token), 0 to 4 (Wang & Isola 2020, eq. 1, α = 2).
        uniformity: log of the mean of exp(−2 ‖x − y‖²) over pairs of queries (eq. 2, t = 2), 0 for one point to about
        −4. effective_rank: exp of the entropy of the queries' singular values, 1 to D (Roy & Vetterli 2007). spread:
        1 − ‖mean query‖, 0 for one direction. norm: of raw queries. hubness: share of all top-10 places that the ten
        most retrieved images take. rank_10 … rank_90: quantiles of the target's rank among ``gallery`` candidates.

    >>> splits = embed_splits(context.encoder(context.study.dpo), context.splits.dev, context.evaluation)
    >>> embedding_statistics(splits)["chance"]
    1.0
    """
    rows, scored = [_statistics(one) for one in embedded], [one.scored for one in embedded]
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    guessed = float(np.mean([chance("recall@10", one.benchmark, one.candidates) for one in scored]))
    return {"recall@10": mean_recall(scored, 10), "chance": guessed, **means}


def _statistics(e: EmbeddedSplit) -> dict[str, float]:
    queries, targets = e.queries, e.gallery[e.rows()[0]]  # (N, D) and (N, D) or (N, T, D)
    if targets.ndim == 3:
        targets = targets[torch.arange(len(targets)), (targets @ queries[..., None])[..., 0].argmax(1)]
    values = torch.linalg.svdvals(queries - queries.mean(0))
    best = similarity(queries, e.gallery).topk(min(10, len(e.gallery)), dim=1).indices  # (N, k)
    places = best.unique(return_counts=True)[1].sort(descending=True).values[: best.shape[1]]  # of the most retrieved
    return {
        "alignment": (queries - targets).square().sum(-1).mean().item(),
        "uniformity": torch.pdist(queries).square().mul(-2).exp().mean().log().item(),
        "effective_rank": torch.special.entr(values / values.sum().clamp(min=1e-12)).sum().exp().item(),
        "norm": e.raw.norm(dim=-1).mean().item(),
        "spread": 1 - queries.mean(0).norm().item(),
        "hubness": places.sum().item() / best.numel(),
        **{f"rank_{q}": float(np.quantile(e.scored.target_ranks, q / 100)) for q in (10, 25, 50, 75, 90)},
        "gallery": e.scored.candidates,
    }
