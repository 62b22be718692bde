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


@dataclass(frozen=True)
class Mistake:
    """What goes wrong, in training (``corruption``, ``changes``: parameter, factor) or when ranks are read."""

    name: str
    corruption: Corruption = NO_CORRUPTION
    changes: tuple[tuple[str, float], ...] = ()
    reading: Callable[[EmbeddedSplit, Scored], Ranks] = lambda e, scored: scored.ranks


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
    targets, references = e.rows()
    own = scores.gather(1, torch.tensor(targets)[:, None])  # (N, 1)
    scores[torch.arange(len(scores)), references] = -torch.inf
    return Ranks((scores > own).sum(1), (scores == own).sum(1) - 1)


SWAPPED, BETA = Corruption(swapped=True), ("beta", 100)
COLLAPSE = (("lr", 30), BETA)
MISTAKES = (
    Mistake("none: as the paper describes it"),
    Mistake("chosen and rejected swapped", SWAPPED),
    Mistake("unnormalised queries, β 100 times too large", Corruption(raw=True), (BETA,)),
    Mistake("collapsed: lr 30 times, β 100 times too large", changes=COLLAPSE),
    Mistake("the same collapse, on the negatives (swapped)", SWAPPED, COLLAPSE),
    Mistake("similarity sorted as a distance", reading=_reversed),
    Mistake("gallery ids in another order than the features", reading=_other_order),
    Mistake("saturated scores, ties count as misses", reading=_ties_as_misses),
    Mistake("saturated scores, ties by expectation", reading=_ties_by_expectation),
)


def run_mistakes(context: RunContext, params: DPO, every: int) -> pd.DataFrame:
    """Columns mistake, step, recall@10, chance, hubness, alignment; what only reads wrongly shares one run.

    >>> small = DPO(grid_edits=4, num_negatives=2, trains="query_projection")
    >>> run_mistakes(context, small, every=9)["step"].unique().tolist()
    [0, 2]
    """
    small, rows = at_grid_size(params), []
    runs = dict.fromkeys((mistake.corruption, mistake.changes) for mistake in MISTAKES)
    for corruption, changes in tqdm(runs, desc="mistakes", unit="run"):
        group = [mistake for mistake in MISTAKES if (mistake.corruption, mistake.changes) == (corruption, changes)]

        def measure(encoder: DualEncoder, group: list[Mistake] = group) -> dict:
            embedded = embed_splits(encoder, context.splits.dev, context.evaluation)
            scored = score_splits(embedded, context.evaluation, "dev")
            return {"read": _read(group, embedded, scored), **embedding_statistics(embedded, scored)}

        changed = small.model_copy(update={name: getattr(small, name) * factor for name, factor in changes})
        run = train_preferences(context, changed, every=every, measure=measure, corruption=corruption)
        for record in run.track:
            rows += [{**record, "mistake": name, "recall@10": recall} for name, recall in record["read"].items()]
    table = pd.DataFrame(rows)[["mistake", "step", "recall@10", "chance", "hubness", "alignment"]]
    names = [mistake.name for mistake in MISTAKES]
    return table.sort_values("mistake", key=lambda column: column.map(names.index), kind="stable", ignore_index=True)


def _read(group: list[Mistake], embedded: Mapping[str, EmbeddedSplit], scored: list[Scored]) -> dict[str, float]:
    """Recall@10 as each mistake reads it."""
    readings = {}
    for mistake in group:
        read = [replace(one, ranks=mistake.reading(embedded[one.category], one)) for one in scored]
        readings[mistake.name] = mean_recall(read, 10)
    return readings
