"""How to get below chance: plausible mistakes, each a small run with its curve, measured on the dev part of train."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from cirlib.analysis.dpo.context import RunContext
from cirlib.analysis.dpo.dual_encoder import DualEncoder
from cirlib.analysis.dpo.grid import base
from cirlib.analysis.dpo.runs import Corruption, Embedded, describe, embed_parts, score_embedded, train_preferences
from cirlib.models.qformer import mean_token
from cirlib.retrieval.ranks import Ranks
from cirlib.retrieval.scoring import Scored, mean_recall
from cirlib.study.parameters import DPO

NO_CORRUPTION = Corruption()
Reading = Callable[[Mapping[str, Embedded], list[Scored]], float]


@dataclass(frozen=True)
class Mistake:
    """What goes wrong, in training (``corruption``, ``changes``) or when the ranking is read (``reading``: recall@10)."""

    name: str
    reading: Reading
    corruption: Corruption = NO_CORRUPTION
    changes: tuple[tuple[str, float], ...] = ()


def recall(embedded: Mapping[str, Embedded], scored: list[Scored]) -> float:
    """Recall@10 as it should be read."""
    return mean_recall(scored, 10)


def reversed_order(embedded: Mapping[str, Embedded], scored: list[Scored]) -> float:
    """A similarity sorted as if it were a distance."""
    turned = [Ranks(one.candidates - 1 - one.ranks.above - one.ranks.tied, one.ranks.tied) for one in scored]
    return mean_recall([replace(one, ranks=ranks) for one, ranks in zip(scored, turned, strict=True)], 10)


def other_order(embedded: Mapping[str, Embedded], scored: list[Scored]) -> float:
    """Images answer under the ids of others: features and ids were written in different orders."""
    return float(np.mean([_hits_in_another_order(e) for e in embedded.values()]))


def ties_as_misses(embedded: Mapping[str, Embedded], scored: list[Scored]) -> float:
    """Scores through a sigmoid into float16, where they saturate, and the target placed behind all that tie with it."""
    return _saturated(embedded, scored, missed=True)


def ties_by_expectation(embedded: Mapping[str, Embedded], scored: list[Scored]) -> float:
    """The same saturated scores, ties read as what they are: the mean over all orders of the tied."""
    return _saturated(embedded, scored, missed=False)


def mistakes(params: DPO) -> list[Mistake]:
    """Every mistake, the run without one first."""
    collapse = (("lr", params.lr * 30), ("beta", params.beta * 100))
    raw = (("beta", params.beta * 100),)
    return [
        Mistake("none: as the paper describes it", recall),
        Mistake("chosen and rejected swapped", recall, Corruption(swapped=True)),
        Mistake("unnormalised queries, β 100 times too large", recall, Corruption(raw=True), raw),
        Mistake("collapsed: lr 30 times, β 100 times too large", recall, changes=collapse),
        Mistake("the same collapse, on the negatives (swapped)", recall, Corruption(swapped=True), collapse),
        Mistake("similarity sorted as a distance", reversed_order),
        Mistake("gallery ids in another order than the features", other_order),
        Mistake("saturated scores, ties count as misses", ties_as_misses),
        Mistake("saturated scores, ties by expectation", ties_by_expectation),
    ]


def run_mistakes(context: RunContext, params: DPO, every: int) -> pd.DataFrame:
    """Columns mistake, step, recall@10, chance, hubness, alignment; what only reads wrongly shares one run."""
    small, dev, evaluation = base(params), context.prepared.splits.dev, context.prepared.stage.study.evaluation
    runs: dict[tuple, list[Mistake]] = {}
    for mistake in mistakes(small):
        runs.setdefault((mistake.corruption, mistake.changes), []).append(mistake)
    rows = []
    for (corruption, changes), group in tqdm(runs.items(), desc="mistakes", unit="run"):

        def look(encoder: DualEncoder, group=group) -> dict:
            embedded = embed_parts(encoder, dev, evaluation)
            scored = score_embedded(embedded, evaluation, "dev")
            readings = {mistake.name: mistake.reading(embedded, scored) for mistake in group}
            return {"readings": readings, **describe(embedded, scored)}

        outcome = train_preferences(
            context, small.model_copy(update=dict(changes)), every=every, look=look, corruption=corruption
        )
        rows += [
            {**record, "mistake": name, "recall@10": reading}
            for record in outcome.track
            for name, reading in record["readings"].items()
        ]
    table = pd.DataFrame(rows)[["mistake", "step", "recall@10", "chance", "hubness", "alignment"]]
    order = [mistake.name for mistake in mistakes(small)]
    return table.sort_values(["mistake", "step"], key=lambda c: c.map(order.index) if c.name == "mistake" else c,
                             ignore_index=True)  # fmt: skip


def _hits_in_another_order(e: Embedded) -> float:
    """Recall@10 where each id stands for the features of another row, the reference's removed."""
    scores, row = _scores(e), e.benchmark.gallery_index
    order = torch.randperm(len(row), generator=torch.Generator().manual_seed(0))
    wanted = order[[row[t.targets[0]] for t in e.benchmark.triplets]]  # (N,)
    scores[torch.arange(len(scores)), order[[row[t.reference] for t in e.benchmark.triplets]]] = -torch.inf
    own = scores.gather(1, wanted[:, None])  # (N, 1)
    return ((scores > own).sum(1) < 10).float().mean().item()


def _saturated(embedded: Mapping[str, Embedded], scored: list[Scored], missed: bool) -> float:
    hits = []
    for e, one in zip(embedded.values(), scored, strict=True):
        squashed = torch.sigmoid(100 * _scores(e)).half()  # (N, M)
        row = e.benchmark.gallery_index
        own = squashed.gather(1, torch.tensor([[row[t.targets[0]]] for t in e.benchmark.triplets]))
        squashed[torch.arange(len(squashed)), [row[t.reference] for t in e.benchmark.triplets]] = -torch.inf
        above, tied = (squashed > own).sum(1), (squashed == own).sum(1) - 1  # (N,) both
        ranks = Ranks(above + tied, torch.zeros_like(tied)) if missed else Ranks(above, tied)
        hits.append(replace(one, ranks=ranks).recall(10).mean())
    return float(np.mean(hits))


def _scores(e: Embedded) -> Tensor:
    return F.normalize(e.raw, dim=-1) @ mean_token(e.gallery).T  # (N, M)
