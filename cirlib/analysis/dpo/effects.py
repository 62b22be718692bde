"""What each level of a switch is worth: differences between runs that are alike in all else, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from cirlib.analysis.dpo.grid import IN_BATCH, SWITCHES
from cirlib.retrieval.ranks import Ranks
from cirlib.retrieval.recall_and_precision import recall_at_k
from cirlib.retrieval.statistics import bootstrap_ci


def effects(records: Sequence[Mapping], k: int = 10) -> pd.DataFrame:
    """Of every switch, what each level adds to the paper's level in mean recall@k.

    Settings that are alike in the other switches are compared one by one and averaged; of the objective, whose
    in-batch form reads no mined negatives, the negatives' levels are averaged first.

    Returns:
        difference, its 95 % interval, the quartiles of the single settings' differences, and how many there are. The
        interval is normal: its variance is that of the mean difference over queries (within categories) plus that of
        repeating a run, pooled over all settings that were repeated.

    >>> run = {name: next(iter(levels)) for name, levels in SWITCHES.items()} | {"tied": {"hat": [0, 0]}}
    >>> table = effects([run | {"above": {"hat": [99, 99]}}, run | {"fusion": "sum", "above": {"hat": [0, 99]}}])
    >>> table[["factor", "level", "difference"]].values.tolist()
    [['fusion', 'sum', 0.5]]
    """
    hits = np.stack([_hits(record, k) for record in records])  # (R, Q)
    sizes = [len(ranks) for ranks in records[0]["above"].values()]
    weights = np.concatenate([np.full(size, 1 / (size * len(sizes))) for size in sizes])  # (Q,) of a query in the mean
    labels = pd.DataFrame([{name: record[name] for name in SWITCHES} for record in records])
    noise = _repetition_variance(labels, hits @ weights)
    rows = []
    for factor, (against, *others) in SWITCHES.items():
        rest = [name for name in SWITCHES if name != factor and (factor, name) != ("objective", "negatives")]
        read = labels[labels["objective"] != IN_BATCH] if factor == "negatives" else labels
        runs = read.groupby([*rest, factor], sort=False).groups  # setting → numbers of its runs
        for level in others:
            pairs = [(setting, (*setting[:-1], against)) for setting in runs if setting[-1] == level]
            pairs = [(hits[runs[own]], hits[runs[other]]) for own, other in pairs if other in runs]
            if pairs:
                row = {"factor": factor, "level": level, "against": against}
                rows.append(row | _difference(pairs, weights, noise))
    return pd.DataFrame(rows)


def recall_interval(record: Mapping, k: int = 10) -> tuple[float, float]:
    """The 95 % bootstrap interval of one run's mean recall@k, queries drawn anew within their categories.

    >>> recall_interval({"above": {"hat": [0, 0]}, "tied": {"hat": [0, 0]}})
    (1.0, 1.0)
    """
    sizes = [len(ranks) for ranks in record["above"].values()]
    return bootstrap_ci(_hits(record, k), groups=np.repeat(np.arange(len(sizes)), sizes))


def _hits(record: Mapping, k: int) -> np.ndarray:
    """Recall@k of each query, category after category, (Q,)."""
    above, tied = (torch.tensor(np.concatenate([*record[name].values()])) for name in ("above", "tied"))
    return recall_at_k(Ranks(above, tied), k).numpy()


def _difference(pairs: list[tuple[np.ndarray, np.ndarray]], weights: np.ndarray, noise: float) -> dict[str, float]:
    """Of the hits (R, Q) of runs with a level and of those without it, a pair of them for each setting."""
    by_setting = np.stack([own.mean(0) - other.mean(0) for own, other in pairs])  # (S, Q)
    by_query = by_setting.mean(0)  # (Q,)
    repeats = sum(1 / len(own) + 1 / len(other) for own, other in pairs) / len(pairs) ** 2
    difference = float(weights @ by_query)
    half = 1.96 * np.sqrt(_query_variance(by_query, weights) + noise * repeats)
    return {
        "difference": difference,
        "ci_low": difference - half,
        "ci_high": difference + half,
        "q25": float(np.quantile(by_setting @ weights, 0.25)),
        "q75": float(np.quantile(by_setting @ weights, 0.75)),
        "settings": len(pairs),
    }


def _query_variance(values: np.ndarray, weights: np.ndarray) -> float:
    """The variance of the weighted mean over queries drawn anew within their categories (equal weight = category)."""
    parts = [(weight, values[weights == weight]) for weight in np.unique(weights)]
    return sum(weight**2 * len(part) * part.var(ddof=1) for weight, part in parts if len(part) > 1)


def _repetition_variance(labels: pd.DataFrame, recalls: np.ndarray) -> float:
    """The variance of recall from repeating a run, pooled over the settings that were repeated; 0 where none was."""
    runs = pd.Series(recalls).groupby([labels[name] for name in SWITCHES]).agg(["count", "var"]).dropna()
    freedom = (runs["count"] - 1).sum()
    return float(((runs["count"] - 1) * runs["var"]).sum() / freedom) if freedom else 0.0
