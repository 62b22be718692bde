"""What a level of a switch is worth, for each fusion by itself: differences between runs alike in all else."""

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import pandas as pd
import torch
from scipy.stats import t as student

from cirlib.analysis.dpo.grid import IN_BATCH, SWITCHES
from cirlib.retrieval.ranks import Ranks
from cirlib.retrieval.recall_and_precision import recall_at_k
from cirlib.retrieval.statistics import bootstrap_ci

WITHIN = {"change": "negatives", "objective": "trains", "negatives": "trains", "trains": "negatives"}
COLUMNS = ("factor", "level", "against", "fusion", "within")
COLUMNS += ("start", "difference", "ci_low", "ci_high", "settings", "runs")
START, ON = "own start", " on "  # an objective is held against DPO "on" a kind of negatives
SECOND = "the fine-tuned Q-Former"
Cell = tuple[str, ...]  # what is alike in repetitions of a run: a level of each switch; what trains comes last


def effects(records: Sequence[Mapping], starts: Mapping[str, Mapping]) -> pd.DataFrame:
    """Simple effects on mean recall@10, one fusion at a time, within a level of the switch that turns their sign.

    ``change``: of DPO from the model that it started from, by what trains, within a kind of negatives. The other
    factors are differences from the study's level (the first in ``SWITCHES``): of the objective within what trains,
    from DPO on one kind of negatives at a time, which an in-batch objective does not read; of the negatives within what
    trains; of what trains within the negatives. Settings of the fourth switch are averaged.

    Args:
        records: of the factorial's runs, by :func:`~cirlib.analysis.dpo.runs.measured_run`, with their labels.
        starts: fusion → :func:`~cirlib.analysis.dpo.runs.measured_start`.

    Returns:
        :data:`COLUMNS`. ``start``: the fusion's recall@10 before any preference. ``difference`` with the 95 % interval
        of Student's t, of the variance over queries (those of an image family drawn together, within categories) plus
        that of repeating a run, pooled over all settings that were repeated, towers and projections apart; over queries
        only where none was. ``settings`` averaged, and the ``runs`` that they took.

    >>> run = {name: next(iter(levels)) for name, levels in SWITCHES.items()} | {"tied": {"hat": [0, 0]}}
    >>> start = {"above": {"hat": [99, 99]}, "tied": {"hat": [0, 0]}, "families": {"hat": ["a", "b"]}}
    >>> table = effects([run | {"above": {"hat": [0, 99]}}], {"text_only": start})
    >>> table[["factor", "level", "against", "difference"]].values.tolist()
    [['change', 'query_tower', 'own start', 0.5]]
    """
    grid, rows = _Grid(records, starts, tuple(SWITCHES)), []
    for factor, other in WITHIN.items():
        first, *levels = SWITCHES["trains" if factor == "change" else factor]
        kinds = [{"negatives": kind} for kind in SWITCHES["negatives"]] if factor == "objective" else [{}]
        for kind, fusion in product(kinds, starts):
            for level, within in product([first] * (factor == "change") + levels, SWITCHES[other]):
                fixed = {"fusion": fusion, other: within} | kind
                pairs = grid.changes(level, fixed) if factor == "change" else grid.pairs(factor, level, fixed)
                if pairs:
                    against = START if factor == "change" else ON.join([first, *kind.values()])
                    begun = float(grid.weights @ grid.starts[fusion])
                    rows.append((factor, level, against, fusion, within, begun, *grid.difference(fusion, pairs)))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def second_trainings(records: Sequence[Mapping], start: Mapping) -> pd.DataFrame:
    """What a second training adds to ``start``, and other objectives to the first one, query by query.

    Args:
        records: of :func:`~cirlib.analysis.dpo.runs.measured_run`, on dev too, labelled with their ``method``.

    Returns:
        method, against, difference with the interval of :func:`effects`, runs; value, start (mean recall@10 after and
        before), dev/recall@10 and seconds, means of the runs.

    >>> run = {"method": "DPO", "trains": "query_tower", "seconds": 1, "dev/recall@10": 0.4, "recall@10": 0.5}
    >>> start = {"above": {"hat": [9, 99]}, "tied": {"hat": [0, 0]}, "recall@10": 0.5}
    >>> start["families"] = {"hat": ["a", "b"]}
    >>> second_trainings([run | start], start)[["against", "difference"]].values.tolist()
    [['the fine-tuned Q-Former', 0.0]]
    """
    grid, frame = _Grid(records, {"qformer": start}, ("method", "trains")), pd.DataFrame(records)
    first, *_ = grid.cells
    pairs = [(cell, None) for cell in grid.cells] + [(cell, first) for cell in grid.cells if cell != first]
    rows = []
    for cell, other in pairs:
        means = frame.loc[frame["method"] == cell[0], ["recall@10", "dev/recall@10", "seconds"]].mean()
        difference, low, high, _, runs = grid.difference("qformer", [(cell, other)])
        row = {"method": cell[0], "against": other[0] if other else SECOND, "difference": difference}
        row |= {"ci_low": low, "ci_high": high, "runs": runs, "value": means["recall@10"], "start": start["recall@10"]}
        rows.append(row | means[["dev/recall@10", "seconds"]].to_dict())
    return pd.DataFrame(rows)


def recall_interval(record: Mapping, families: Mapping[str, Sequence[int]]) -> tuple[float, float]:
    """The 95 % interval of one run's mean recall@10, families of queries drawn anew within their categories.

    >>> [round(end, 2) for end in recall_interval({"above": {"hat": [0, 9]}, "tied": {"hat": [0, 0]}}, {"hat": [0, 1]})]
    [0.16, 1.0]
    """
    groups = [category for category, own in families.items() for _ in own]
    return bootstrap_ci(_hits(record), groups=groups, clusters=np.concatenate([*families.values()]))


class _Grid:
    """The hits (R, Q) of every cell that was run, R repetitions by Q queries, and how much repeating varies."""

    def __init__(self, records: Sequence[Mapping], starts: Mapping[str, Mapping], alike: tuple[str, ...]) -> None:
        families = next(iter(starts.values()))["families"]
        sizes = [len(part) for part in families.values()]
        self.weights = np.concatenate([np.full(size, 1 / (size * len(sizes))) for size in sizes])  # (Q,) in the mean
        self.category = np.repeat(np.arange(len(sizes)), sizes)  # (Q,)
        names = [f"{category} {family}" for category, part in families.items() for family in part]
        self.cluster = np.unique(names, return_inverse=True)[1]  # (Q,)
        self.starts = {fusion: _hits(start) for fusion, start in starts.items()}
        runs: dict[Cell, list[np.ndarray]] = {}
        for record in records:
            runs.setdefault(tuple(record[name] for name in alike), []).append(_hits(record))
        self.cells = {cell: np.stack(hits) for cell, hits in runs.items()}
        self.noise = {kind: self._noise(kind) for kind in (False, True)}

    def _noise(self, projection: bool) -> tuple[float, int]:
        """The variance of a run's mean recall between repetitions, and its degrees of freedom."""
        own = [hits @ self.weights for cell, hits in self.cells.items() if _is_projection(cell) == projection]
        freedom = sum(len(means) - 1 for means in own)
        return sum(((means - means.mean()) ** 2).sum() for means in own) / max(1, freedom), freedom

    def changes(self, trains: str, fixed: Mapping[str, str]) -> list[tuple[Cell, None]]:
        """DPO's cell with ``fixed`` levels, to hold against the start."""
        cell = (fixed["fusion"], "dpo sigmoid", fixed["negatives"], trains)
        return [(cell, None)] if cell in self.cells else []

    def pairs(self, factor: str, level: str, fixed: Mapping[str, str]) -> list[tuple[Cell, Cell]]:
        """The cells of ``level`` with ``fixed`` levels, each with the cell of the study's level that is alike."""
        against, found = next(iter(SWITCHES[factor])), []
        for cell in self.cells:
            labels = dict(zip(SWITCHES, cell, strict=True))
            if labels | fixed | {factor: against} == labels:  # a cell of the study's level
                other = labels | {factor: level} | ({"negatives": "in-batch"} if level in IN_BATCH else {})
                found.append((tuple(other.values()), cell))
        return [pair for pair in found if pair[0] in self.cells]

    def difference(
        self, fusion: str, pairs: Sequence[tuple[Cell, Cell | None]]
    ) -> tuple[float, float, float, int, int]:
        """The mean difference of ``pairs`` (None: the start), its interval, their number, the runs they took."""
        shares: dict[Cell | None, float] = {}
        for own, other in pairs:
            shares[own] = shares.get(own, 0) + 1 / len(pairs)
            shares[other] = shares.get(other, 0) - 1 / len(pairs)
        hits = {cell: self.cells[cell] if cell else self.starts[fusion][None] for cell in shares}
        by_query = sum(share * hits[cell].mean(0) for cell, share in shares.items())  # (Q,)
        over_queries, clusters = self._query_variance(by_query)
        parts = {True: 0.0, False: 0.0}  # the variance of repeating, of projections and of towers
        for cell in filter(None, shares):
            kind = _is_projection(cell)
            parts[kind] += shares[cell] ** 2 * self.noise[kind][0] / len(hits[cell])
        total, mean = over_queries + sum(parts.values()), float(self.weights @ by_query)
        freedom = {kind: max(1, freedom) for kind, (_, freedom) in self.noise.items()}
        shrunk = over_queries**2 / max(1, clusters - 1) + sum(parts[kind] ** 2 / freedom[kind] for kind in parts)
        half = float(student.ppf(0.975, total**2 / shrunk) * np.sqrt(total)) if total else 0.0  # Satterthwaite 1946
        runs = sum(len(hits[cell]) for cell in shares if cell)
        return mean, mean - half, mean + half, len(pairs), runs

    def _query_variance(self, by_query: np.ndarray) -> tuple[float, int]:
        """Of the weighted mean of values (Q,), those of a cluster drawn together; the number of clusters."""
        means = np.bincount(self.category, by_query) / np.bincount(self.category)
        totals = np.bincount(self.cluster, self.weights * (by_query - means[self.category]))
        return float((totals**2).sum() * len(totals) / max(1, len(totals) - 1)), len(totals)


def _is_projection(cell: Cell) -> bool:
    return "projection" in cell[-1]


def _hits(record: Mapping) -> np.ndarray:
    """Recall@10 of each query, category after category, (Q,)."""
    above, tied = (torch.tensor(np.concatenate([*record[name].values()])) for name in ("above", "tied"))
    return recall_at_k(Ranks(above, tied), 10).numpy()
