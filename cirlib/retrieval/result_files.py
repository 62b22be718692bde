"""What stages write of their scores and later ones read: ``summary.csv`` and ``ranks.csv``."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from cirlib.benchmarks import Benchmark, BenchmarkError
from cirlib.retrieval.ranks import Ranks
from cirlib.retrieval.scoring import Scored, protocol_name, summarise
from cirlib.study.files import write_table
from cirlib.study.parameters import Evaluation

RANK_COLUMNS = ("method", "category", "query", "target", "above", "tied", "top")


def write_results(scored: Sequence[Scored], folder: Path) -> pd.DataFrame:
    """Writes ``summary.csv`` and ``ranks.csv`` into ``folder``; gives the summary.

    ``ranks.csv`` has a row a query: its target's rank, the best ids (quoted), and what CIRR and CIRCO are scored by.

    >>> write_results([make_scored("sum", "hat", [0, 9])], folder)["value"].tolist()[:4]  # recall@1, 5, 10 and 50
    [0.5, 0.5, 1.0, 1.0]
    >>> (folder / "ranks.csv").read_text().splitlines()[2]
    'sum,hat,hat-query-1,hat-2,9,0,hat-3 hat-2'
    """
    summary = summarise(scored)
    write_table(summary.round(6), folder / "summary.csv")
    frames = [pd.DataFrame(columns=list(RANK_COLUMNS))] if not scored else []
    for one in scored:
        queries, targets = zip(*((t.id, t.targets[0]) for t in one.benchmark.triplets), strict=True)
        counts, top = (one.ranks.above.numpy(), one.ranks.tied.numpy()), [shlex.join(ids) for ids in one.top]
        columns = (one.method, one.category, queries, targets, *counts, top)
        frames.append(pd.DataFrame({**dict(zip(RANK_COLUMNS, columns, strict=True)), **one.extra}))
    write_table(pd.concat(frames), folder / "ranks.csv")
    return summary


def read_ranks(path: Path, benchmarks: Mapping[str, Benchmark], evaluation: Evaluation) -> list[Scored]:
    """The ``ranks.csv`` of :func:`write_results`, back on the same benchmarks.

    A BenchmarkError where it, or the ``summary.csv`` beside it, is of others or of another protocol.

    >>> summary = write_results([one := make_scored("sum", "hat", [3])], folder)
    >>> read_ranks(folder / "ranks.csv", {"hat": one.benchmark}, Evaluation())[0].target_ranks
    [4]
    """
    removed, scored, protocol = evaluation.reference == "removed", [], protocol_name(evaluation)
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        measured = set(pd.read_csv(path.with_name("summary.csv"), dtype=str)["protocol"])
        for (method, category), part in table.groupby(["method", "category"], sort=False):
            benchmark = benchmarks[category]
            if part["query"].tolist() != [triplet.id for triplet in benchmark.triplets]:
                raise ValueError("other queries")
            ranks = Ranks(*(torch.from_numpy(part[name].to_numpy(np.int64)) for name in ("above", "tied")))
            top = [shlex.split(ids) for ids in part["top"]]
            extra = {metric: part[metric].to_numpy(np.float64) for metric in part.columns[len(RANK_COLUMNS) :]}
            scored.append(Scored(method, category, benchmark, ranks, protocol, removed, top, extra))
    except (ValueError, KeyError, TypeError) as error:
        raise BenchmarkError(
            f"{path} is cut off or was measured on other data than the study's: run `dvc repro --force "
            f"{path.parent.name}`."
        ) from error
    if scored and protocol not in measured:
        raise BenchmarkError(
            f"{path} was measured under another protocol ({', '.join(measured)}) than this run's ({protocol}): "
            "change it for the whole study, with `dvc exp run -S evaluation.…=…`."
        )
    return scored
