"""What each level of a switch is worth: differences between runs that are alike in all else, with intervals."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from cirlib.analysis.dpo.grid import SWITCHES
from cirlib.analysis.dpo.preferences import IN_BATCH
from cirlib.retrieval.ranks import Ranks
from cirlib.retrieval.recall_and_precision import recall_at_k
from cirlib.retrieval.statistics import bootstrap_ci


def effects(records: Sequence[Mapping]) -> pd.DataFrame:
    """Of every switch, what each level adds to the paper's level in mean recall@10.

    Settings that are alike in the other switches are compared one by one and averaged; of the objective, whose
    in-batch form reads no mined negatives, the negatives' levels are averaged first.

    Returns:
        difference; its normal 95 % interval, of the variance over queries (within categories) plus that of repeating a
        run, pooled over all settings that were repeated; the quartiles of the settings' differences; their number.

    >>> run = {name: next(iter(levels)) for name, levels in SWITCHES.items()} | {"tied": {"hat": [0, 0]}}
    >>> table = effects([run | {"above": {"hat": [99, 99]}}, run | {"fusion": "sum", "above": {"hat": [0, 99]}}])
    >>> table[["factor", "level", "difference"]].values.tolist()
    [['fusion', 'sum', 0.5]]
    """
    hits = np.stack([_hits(record) for record in records])  # (R, Q)
    sizes = [len(ranks) for ranks in records[0]["above"].values()]
    weights = np.concatenate([np.full(size, 1 / (size * len(sizes))) for size in sizes])  # (Q,) of a query in the mean
    labels = pd.DataFrame([{name: record[name] for name in SWITCHES} for record in records])
    repeated = pd.Series(hits @ weights).groupby([labels[name] for name in SWITCHES]).agg(["count", "var"]).dropna()
    freedom, rows = repeated["count"] - 1, []
    noise = (freedom * repeated["var"]).sum() / max(1, freedom.sum())
    for factor, (against, *others) in SWITCHES.items():
        rest = [name for name in SWITCHES if name != factor and (factor, name) != ("objective", "negatives")]
        read = labels[labels["objective"] != IN_BATCH] if factor == "negatives" else labels
        runs = read.groupby([*rest, factor], sort=False).groups  # setting → numbers of its runs
        for level in others:
            pairs = [(setting, (*setting[:-1], against)) for setting in runs if setting[-1] == level]
            pairs = [(hits[runs[own]], hits[runs[other]]) for own, other in pairs if other in runs]
            if pairs:
                difference = _difference(pairs, weights, noise)
                rows.append({"factor": factor, "level": level, "against": against, **difference})
    return pd.DataFrame(rows)


def recall_interval(record: Mapping) -> tuple[float, float]:
    """The 95 % bootstrap interval of one run's mean recall@10, queries drawn anew within their categories.

    >>> recall_interval({"above": {"hat": [0, 0]}, "tied": {"hat": [0, 0]}})
    (1.0, 1.0)
    """
    sizes = [len(ranks) for ranks in record["above"].values()]
    return bootstrap_ci(_hits(record), groups=np.repeat(np.arange(len(sizes)), sizes))


def _hits(record: Mapping) -> np.ndarray:
    """Recall@10 of each query, category after category, (Q,)."""
    above, tied = (torch.tensor(np.concatenate([*record[name].values()])) for name in ("above", "tied"))
    return recall_at_k(Ranks(above, tied), 10).numpy()


def _difference(pairs: list[tuple[np.ndarray, np.ndarray]], weights: np.ndarray, noise: float) -> dict[str, float]:
    """Of the hits (R, Q) of runs with a level and of those without it, a pair of them for each setting."""
    by_setting = np.stack([own.mean(0) - other.mean(0) for own, other in pairs])  # (S, Q)
    by_query = by_setting.mean(0)  # (Q,)
    parts = [(weight, by_query[weights == weight]) for weight in np.unique(weights)]
    # of the weighted mean over queries drawn anew within their categories
    variance = sum(weight**2 * len(part) * part.var(ddof=1) for weight, part in parts if len(part) > 1)
    repeats = sum(1 / len(own) + 1 / len(other) for own, other in pairs) / len(pairs) ** 2
    difference, half = float(weights @ by_query), 1.96 * np.sqrt(variance + noise * repeats)
    q25, q75 = np.quantile(by_setting @ weights, (0.25, 0.75)).tolist()
    ends = {"ci_low": difference - half, "ci_high": difference + half}
    return {"difference": difference, **ends, "q25": q25, "q75": q75, "settings": len(pairs)}
