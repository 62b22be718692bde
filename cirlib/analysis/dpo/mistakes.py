"""How to get below chance: plausible mistakes, each a small run with its curve, measured on the dev part of train."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import pandas as pd
import torch
from tqdm.auto import tqdm

from cirlib.analysis.dpo.context import RunContext
from cirlib.analysis.dpo.dual_encoder import DualEncoder
from cirlib.analysis.dpo.embedded_splits import EmbeddedSplit, embed_splits, embedding_statistics, score_splits
from cirlib.analysis.dpo.grid import at_grid_size
from cirlib.analysis.dpo.preferences import NO_CORRUPTION, Corruption
from cirlib.analysis.dpo.runs import train_preferences
from cirlib.retrieval.ranks import Ranks
from cirlib.retrieval.scoring import Scored, mean_recall
from cirlib.study.parameters import DPO

Reading = Callable[[EmbeddedSplit, Scored], Ranks]  # the ranks that a mistake reads from a category


@dataclass(frozen=True)
class Mistake:
    """What goes wrong, in training (``corruption``, ``changes``) or when the ranking is read (``reading``)."""

    name: str
    reading: Reading
    corruption: Corruption = NO_CORRUPTION
    changes: tuple[tuple[str, float], ...] = ()


def _as_they_are(e: EmbeddedSplit, scored: Scored) -> Ranks:
    return scored.ranks


def _reversed(e: EmbeddedSplit, scored: Scored) -> Ranks:
    """A similarity sorted as if it were a distance."""
    above, tied = scored.ranks.above, scored.ranks.tied
    return Ranks(scored.candidates - 1 - above - tied, tied)


def _other_order(e: EmbeddedSplit, scored: Scored) -> Ranks:
    """Images answer under the ids of others: features and ids were written in different orders."""
    order = torch.randperm(len(e.gallery), generator=torch.Generator().manual_seed(0))
    return _counted(replace(e, gallery=e.gallery[order]).cosines, e)


def _ties_by_expectation(e: EmbeddedSplit, scored: Scored) -> Ranks:
    """Scores through a sigmoid into float16, where they saturate; all orders of those that tie are as likely."""
    return _counted(torch.sigmoid(100 * e.cosines).half(), e)


def _ties_as_misses(e: EmbeddedSplit, scored: Scored) -> Ranks:
    """The same saturated scores, the target placed behind all that tie with it."""
    ranks = _ties_by_expectation(e, scored)
    return Ranks(ranks.above + ranks.tied, torch.zeros_like(ranks.tied))


def _counted(scores: torch.Tensor, e: EmbeddedSplit) -> Ranks:
    """Ranks of the targets by ``scores`` (N, M), the references removed."""
    own = scores.gather(1, torch.tensor(e.targets)[:, None])  # (N, 1)
    scores[torch.arange(len(scores)), e.references] = -torch.inf
    return Ranks((scores > own).sum(1), (scores == own).sum(1) - 1)


def mistakes(params: DPO) -> list[Mistake]:
    """Every mistake, the run without one first.

    >>> mistakes(DPO())[1].name
    'chosen and rejected swapped'
    """
    raw = (("beta", params.beta * 100),)
    collapse = (("lr", params.lr * 30), *raw)
    swapped = Corruption(swapped=True)
    return [
        Mistake("none: as the paper describes it", _as_they_are),
        Mistake("chosen and rejected swapped", _as_they_are, swapped),
        Mistake("unnormalised queries, β 100 times too large", _as_they_are, Corruption(raw=True), raw),
        Mistake("collapsed: lr 30 times, β 100 times too large", _as_they_are, changes=collapse),
        Mistake("the same collapse, on the negatives (swapped)", _as_they_are, swapped, collapse),
        Mistake("similarity sorted as a distance", _reversed),
        Mistake("gallery ids in another order than the features", _other_order),
        Mistake("saturated scores, ties count as misses", _ties_as_misses),
        Mistake("saturated scores, ties by expectation", _ties_by_expectation),
    ]


def run_mistakes(context: RunContext, params: DPO, every: int) -> pd.DataFrame:
    """Columns mistake, step, recall@10, chance, hubness, alignment; what only reads wrongly shares one run.

    >>> small = DPO(grid_edits=4, num_negatives=2, trains="query_projection")
    >>> run_mistakes(context, small, every=9)["step"].unique().tolist()
    [0, 2]
    """
    small = at_grid_size(params)
    groups: dict[tuple, list[Mistake]] = {}
    for mistake in mistakes(small):
        groups.setdefault((mistake.corruption, mistake.changes), []).append(mistake)
    rows: list[dict] = []
    for (corruption, changes), group in tqdm(groups.items(), desc="mistakes", unit="run"):

        def measure(encoder: DualEncoder, group: list[Mistake] = group) -> dict:
            embedded = embed_splits(encoder, context.splits.dev, context.evaluation)
            scored = score_splits(embedded, context.evaluation, "dev")
            return {"read": _read(group, embedded, scored), **embedding_statistics(embedded, scored)}

        changed = small.model_copy(update=dict(changes))
        run = train_preferences(context, changed, every=every, measure=measure, corruption=corruption)
        rows += [
            {"mistake": name, **record, "recall@10": recall}
            for record in run.track
            for name, recall in record["read"].items()
        ]
    table = pd.DataFrame(rows)[["mistake", "step", "recall@10", "chance", "hubness", "alignment"]]
    order = {mistake.name: place for place, mistake in enumerate(mistakes(small))}
    return table.sort_values("mistake", key=lambda names: names.map(order), kind="stable", ignore_index=True)


def _read(group: list[Mistake], embedded: Mapping[str, EmbeddedSplit], scored: list[Scored]) -> dict[str, float]:
    """Recall@10 as each mistake reads it."""
    return {
        mistake.name: mean_recall(
            [replace(one, ranks=mistake.reading(embedded[one.category], one)) for one in scored], 10
        )
        for mistake in group
    }
