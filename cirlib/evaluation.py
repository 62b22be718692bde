"""Methods scored on benchmarks under a stated protocol: ranks a query, and one table row a number."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cirlib.benchmarks import Benchmark, join_captions
from cirlib.metrics import Ranks, bootstrap_ci, chance_recall, holm, paired_test, recall_at_k, target_ranks
from cirlib.params import Evaluation

KS = (1, 5, 10, 50)
TOP = 5  # retrieved images kept of each query, for pictures
COLUMNS = (
    "method", "category", "metric", "value", "ci_low", "ci_high", "queries", "gallery", "chance", "protocol", "complete"
)  # fmt: skip


@dataclass(frozen=True)
class Scored:
    """One method on the queries of one category."""

    method: str
    category: str
    benchmark: Benchmark
    ranks: Ranks
    protocol: str
    reference_removed: bool
    top: list[list[str]]  # the ids of the best images of each query, best first

    def recall(self, k: int) -> np.ndarray:
        """Recall@k of each query, (N,) in [0, 1]; ties count their expectation."""
        return recall_at_k(self.ranks, k).numpy()

    @property
    def candidates(self) -> int:
        """Images a query is ranked among."""
        return len(self.benchmark.gallery) - self.reference_removed


def protocol_name(evaluation: Evaluation) -> str:
    """How a number was measured, in words: ``original gallery, reference removed, captions joined: and``."""
    gallery = evaluation.gallery.replace("_", " ")
    return f"{gallery} gallery, reference {evaluation.reference}, captions joined: {evaluation.captions}"


def query_texts(benchmark: Benchmark, style: str) -> tuple[list[str], np.ndarray]:
    """The texts of all queries, flat, and for each text the query (row) it belongs to."""
    joined = [join_captions(triplet.captions, style) for triplet in benchmark.triplets]
    rows = np.repeat(np.arange(len(joined)), [len(texts) for texts in joined])
    return [text for texts in joined for text in texts], rows


def average_texts(features: Tensor, rows: np.ndarray, queries: int) -> Tensor:
    """Features (texts, D) averaged over the texts of each query and normalised, (N, D)."""
    index = torch.from_numpy(rows)
    total = torch.zeros(queries, features.shape[1]).index_add_(0, index, features)
    return torch.nn.functional.normalize(total, dim=-1)


def score(
    method: str, category: str, queries: Tensor, gallery: Tensor, benchmark: Benchmark, evaluation: Evaluation
) -> Scored:
    """Ranks of the targets of ``benchmark``'s queries.

    Args:
        queries: (N, D), row for row the benchmark's triplets.
        gallery: (M, D), or (M, T, D) token sets of which the best counts; row for row the benchmark's gallery.
    """
    row = benchmark.gallery_index
    targets = [row[triplet.targets[0]] for triplet in benchmark.triplets]
    removed = evaluation.reference == "removed"
    exclude = [row[triplet.reference] for triplet in benchmark.triplets] if removed else None
    ranks = target_ranks(queries, gallery, targets, exclude=exclude)
    top = [[benchmark.gallery[i] for i in best] for best in top_rows(queries, gallery, exclude, TOP)]
    return Scored(method, category, benchmark, ranks, protocol_name(evaluation), removed, top)


def top_rows(queries: Tensor, gallery: Tensor, exclude: Sequence[int] | None, k: int) -> list[list[int]]:
    """The k best gallery rows of each query, best first; ``exclude`` (N) is left out of each query's list."""
    best: list[list[int]] = []
    for start in range(0, len(queries), 256):
        part = queries[start : start + 256]
        scores = torch.stack([part @ g.T for g in gallery.unbind(1)]).amax(0) if gallery.ndim == 3 else part @ gallery.T
        if exclude is not None:
            scores[torch.arange(len(part)), torch.tensor(exclude[start : start + 256])] = -torch.inf
        best += scores.topk(min(k, scores.shape[1] - (exclude is not None))).indices.tolist()  # (b, k)
    return best


def summarise(scored: Sequence[Scored], ks: Sequence[int] = KS) -> pd.DataFrame:
    """One row a number: recall@k per method and category, and the mean over categories, with 95 % intervals."""
    rows = [_row(one.method, one.category, k, [one]) for one in scored for k in ks]
    for method in dict.fromkeys(one.method for one in scored):
        parts = [one for one in scored if one.method == method]
        rows += [_row(method, "mean", k, parts) for k in ks]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _row(method: str, category: str, k: int, parts: Sequence[Scored]) -> dict:
    values = [part.recall(k) for part in parts]
    groups = np.repeat(np.arange(len(parts)), [len(v) for v in values])
    low, high = bootstrap_ci(np.concatenate(values), groups=groups)
    return {
        "method": method,
        "category": category,
        "metric": f"recall@{k}",
        "value": float(np.mean([v.mean() for v in values])),
        "ci_low": low,
        "ci_high": high,
        "queries": sum(len(v) for v in values),
        "gallery": round(np.mean([part.candidates for part in parts])),
        "chance": float(np.mean([chance_recall(k, part.candidates) for part in parts])),
        "protocol": parts[0].protocol,
        "complete": all(part.benchmark.complete for part in parts),
    }


def compare(scored: Sequence[Scored], against: str, k: int = 10, seed: int = 0) -> pd.DataFrame:
    """Every other method against ``against``: difference in recall@k and a paired test, Holm-corrected."""
    recalls = recalls_by_method(scored, k)
    base = recalls.pop(against)
    tests = {method: paired_test(values, base, seed=seed) for method, values in recalls.items()}
    corrected = holm([test.p_value for test in tests.values()]) if tests else []
    rows = [
        {
            "method": m,
            "against": against,
            "metric": f"recall@{k}",
            "difference": t.difference,
            "p": t.p_value,
            "p_holm": p,
        }
        for (m, t), p in zip(tests.items(), corrected, strict=True)
    ]
    return pd.DataFrame(rows)


def recalls_by_method(scored: Sequence[Scored], k: int) -> dict[str, np.ndarray]:
    """Method → recall@k of every query, categories one after the other."""
    methods = dict.fromkeys(one.method for one in scored)
    return {m: np.concatenate([one.recall(k) for one in scored if one.method == m]) for m in methods}


def metrics_tree(summary: pd.DataFrame) -> dict[str, dict[str, float]]:
    """The summary for ``dvc metrics``: method → ``mean/recall@10`` → value, rounded to six digits."""
    tree: dict[str, dict[str, float]] = {}
    for row in summary.itertuples():
        tree.setdefault(row.method, {})[f"{row.category}/{row.metric}"] = round(row.value, 6)
    return tree


def write_ranks(scored: Sequence[Scored], path: Path) -> None:
    """A CSV with a row a query: method, category, query, target, images above and tied, the best ids (quoted)."""
    columns = ["method", "category", "query", "target", "above", "tied", "top"]
    frames = [
        pd.DataFrame(
            {
                "method": one.method,
                "category": one.category,
                "query": [triplet.id for triplet in one.benchmark.triplets],
                "target": [triplet.targets[0] for triplet in one.benchmark.triplets],
                "above": one.ranks.above.numpy(),
                "tied": one.ranks.tied.numpy(),
                "top": [shlex.join(ids) for ids in one.top],
            }
        )
        for one in scored
    ]
    pd.concat(frames or [pd.DataFrame(columns=columns)]).to_csv(path, index=False)


def read_ranks(path: Path, benchmarks: Mapping[str, Benchmark], evaluation: Evaluation) -> list[Scored]:
    """What :func:`write_ranks` wrote, back on the same benchmarks."""
    scored = []
    names = ("method", "category", "query", "target", "top")
    table = pd.read_csv(path, dtype=dict.fromkeys(names, str), keep_default_na=False)
    for (method, category), part in table.groupby(["method", "category"], sort=False):
        ranks = Ranks(torch.tensor(part["above"].to_numpy()), torch.tensor(part["tied"].to_numpy()))
        removed, top = evaluation.reference == "removed", [shlex.split(ids) for ids in part["top"]]
        protocol = protocol_name(evaluation)
        scored.append(Scored(method, category, benchmarks[category], ranks, protocol, removed, top))
    return scored


def write_results(scored: Sequence[Scored], folder: Path) -> pd.DataFrame:
    """Writes ``summary.csv``, ``metrics.json`` and ``ranks.csv`` into ``folder``; gives the summary."""
    summary = summarise(scored)
    summary.round(6).to_csv(folder / "summary.csv", index=False)
    (folder / "metrics.json").write_text(json.dumps(metrics_tree(summary), indent=2) + "\n")
    write_ranks(scored, folder / "ranks.csv")
    return summary


def result_table(summary: pd.DataFrame, category: str = "mean") -> pd.DataFrame:
    """The summary for reading: a row a method, a column a metric, percent with its 95 % interval."""
    part = summary[summary["category"] == category]
    text = [f"{100 * r.value:.1f} [{100 * r.ci_low:.1f}, {100 * r.ci_high:.1f}]" for r in part.itertuples()]
    table = part.assign(text=text).pivot(index="method", columns="metric", values="text")
    chance = part.groupby("metric")["chance"].first().map(lambda value: f"{100 * value:.2g}")
    table = table.loc[list(dict.fromkeys(part["method"])), list(dict.fromkeys(part["metric"]))]
    return pd.concat([table, chance.rename("chance").to_frame().T[table.columns]])
