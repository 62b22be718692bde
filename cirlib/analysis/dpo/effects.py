"""What each level of a switch is worth: differences between runs that are alike in all else, with intervals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from cirlib.analysis.dpo.grid import IN_BATCH, SWITCHES
from cirlib.retrieval.ranks import Ranks, bootstrap_ci, recall_at_k

COLUMNS = ["factor", "level", "against", "difference", "ci_low", "ci_high", "q25", "q75", "settings"]


def effects(records: Sequence[Mapping], k: int = 10) -> pd.DataFrame:
    """Of every switch, what each level adds to the paper's level in mean recall@k.

    Settings that are alike in the other switches are compared one by one and averaged; of the objective, whose
    in-batch form reads no mined negatives, the negatives' levels are averaged first.

    Returns:
        difference, its 95 % interval, the quartiles of the single settings' differences, and how many there are. The
        interval is normal: its variance is that of the mean difference over queries (within categories) plus that of
        repeating a run, pooled over all settings that were repeated.
    """
    hits = [_hits(record, k) for record in records]
    weights = _weights(records[0])
    noise = _noise(records, hits, weights)
    rows = []
    for factor, levels in SWITCHES.items():
        against, *others = levels
        groups = _grouped(records, hits, factor)
        rows += [
            {
                "factor": factor,
                "level": level,
                "against": against,
                **_difference(groups, level, against, weights, noise),
            }
            for level in others
            if any({level, against} <= group.keys() for group in groups.values())
        ]
    return pd.DataFrame(rows, columns=COLUMNS)


def recall_interval(record: Mapping, k: int = 10) -> tuple[float, float]:
    """The 95 % bootstrap interval of one run's mean recall@k, queries drawn anew within their categories."""
    sizes = [len(ranks) for ranks in record["above"].values()]
    return bootstrap_ci(_hits(record, k), groups=np.repeat(np.arange(len(sizes)), sizes))


def _hits(record: Mapping, k: int) -> np.ndarray:
    """Recall@k of each query, category after category, (Q,)."""
    parts = [
        recall_at_k(Ranks(torch.tensor(record["above"][c]), torch.tensor(record["tied"][c])), k).numpy()
        for c in record["above"]
    ]
    return np.concatenate(parts)


def _weights(record: Mapping) -> np.ndarray:
    """How much each query counts in the mean over categories, (Q,), sum 1."""
    sizes = [len(ranks) for ranks in record["above"].values()]
    return np.concatenate([np.full(size, 1 / (size * len(sizes))) for size in sizes])


def _grouped(records: Sequence[Mapping], hits: Sequence[np.ndarray], factor: str) -> dict[tuple, dict[str, list]]:
    """Setting of the other switches → level of ``factor`` → hits of each run, (Q,)."""
    groups: dict[tuple, dict[str, list]] = defaultdict(lambda: defaultdict(list))
    rest = [name for name in SWITCHES if name != factor and not (factor == "objective" and name == "negatives")]
    for record, hit in zip(records, hits, strict=True):
        if factor == "negatives" and record["objective"] == IN_BATCH:
            continue
        groups[tuple(record[name] for name in rest)][record[factor]].append(hit)
    return groups


def _difference(groups: Mapping, level: str, against: str, weights: np.ndarray, noise: float) -> dict[str, float]:
    pairs = [(group[level], group[against]) for group in groups.values() if {level, against} <= group.keys()]
    by_query = np.mean([np.mean(own, 0) - np.mean(theirs, 0) for own, theirs in pairs], 0)  # (Q,)
    single = [float(weights @ (np.mean(own, 0) - np.mean(theirs, 0))) for own, theirs in pairs]
    repeats = sum(1 / len(own) + 1 / len(theirs) for own, theirs in pairs) / len(pairs) ** 2
    difference = float(weights @ by_query)
    half = 1.96 * np.sqrt(_query_variance(by_query, weights) + noise * repeats)
    return {
        "difference": difference,
        "ci_low": difference - half,
        "ci_high": difference + half,
        "q25": float(np.quantile(single, 0.25)),
        "q75": float(np.quantile(single, 0.75)),
        "settings": len(pairs),
    }


def _query_variance(values: np.ndarray, weights: np.ndarray) -> float:
    """The variance of the weighted mean over queries drawn anew within their categories (equal weight = category)."""
    total = 0.0
    for weight in np.unique(weights):
        part = values[weights == weight]
        total += weight**2 * len(part) * part.var(ddof=1) if len(part) > 1 else 0.0
    return total


def _noise(records: Sequence[Mapping], hits: Sequence[np.ndarray], weights: np.ndarray) -> float:
    """The variance of recall from repeating a run, pooled over the settings that were repeated; 0 where none was."""
    runs: dict[tuple, list[float]] = defaultdict(list)
    for record, hit in zip(records, hits, strict=True):
        runs[tuple(record[name] for name in SWITCHES)].append(float(weights @ hit))
    squares = [(len(run) - 1, np.var(run, ddof=1)) for run in runs.values() if len(run) > 1]
    freedom = sum(count for count, _ in squares)
    return sum(count * variance for count, variance in squares) / freedom if freedom else 0.0
