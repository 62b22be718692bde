"""What the stages of a study measured, brought together: one summary, every query's ranks, the best methods."""

from collections.abc import Mapping

import pandas as pd

from cirlib.benchmarks import Benchmark
from cirlib.retrieval.result_files import read_ranks
from cirlib.retrieval.scoring import Scored
from cirlib.study.files import load_table
from cirlib.study.method_registry import find_method
from cirlib.study.provenance import require_same
from cirlib.study.stage import Stage

STAGES = ("zero_shot", "qformer", "dpo")  # those that score


def read_summaries(stage: Stage) -> pd.DataFrame:
    """The summaries of the study's stages one after the other.

    StageError: one has not run, or was computed with other parameters.

    >>> read_summaries(stage)
    Traceback (most recent call last):
    cirlib.study.errors.StageError: qformer needs results/small/provenance/zero_shot.json, which is missing: ...
    """
    for name in STAGES:
        require_same(stage, name)
    files = [stage.require(stage.results(name) / "summary.csv", name) for name in STAGES]
    return pd.concat([load_table(file) for file in files], ignore_index=True)


def read_scored(stage: Stage, parts: Mapping[str, Benchmark]) -> list[Scored]:
    """Every method of the study on the reported queries ``parts``, a category each.

    >>> read_scored(stage, prepared.splits.reported)
    Traceback (most recent call last):
    cirlib.study.errors.StageError: qformer needs results/small/zero_shot/ranks.csv, which is missing: ...
    """
    files = [stage.require(stage.results(name) / "ranks.csv", name) for name in STAGES]
    return [one for file in files for one in read_ranks(file, parts, stage.study.evaluation)]


def headline(summary: pd.DataFrame) -> dict[str, float]:
    """Recall@10 in percent of the methods that tell the study in short, by the names that tables give them.

    >>> rows = {"method": ["sum", "slerp"], "category": "mean", "metric": "recall@10", "value": [0.2, 0.3]}
    >>> headline(pd.DataFrame(rows))
    {'sum': 20.0}
    """
    means = recall_by_method(summary)
    return {name: round(100 * float(value), 1) for name, value in means.items() if find_method(name).headline}


def best_method(summary: pd.DataFrame) -> str:
    """The method with the highest mean recall@10.

    >>> rows = {"method": ["sum", "slerp"], "category": "mean", "metric": "recall@10", "value": [0.2, 0.3]}
    >>> best_method(pd.DataFrame(rows))
    'slerp'
    """
    return str(recall_by_method(summary).idxmax())


def best_of_families(summary: pd.DataFrame) -> dict[str, str]:
    """Family → its best method in the study; families without one are left out.

    >>> rows = {"method": ["sum", "slerp"], "category": "mean", "metric": "recall@10", "value": [0.2, 0.3]}
    >>> best_of_families(pd.DataFrame(rows))
    {'zero-shot': 'slerp'}
    """
    return recall_by_method(summary).groupby(lambda name: find_method(name).family, sort=False).idxmax().to_dict()


def recall_by_method(summary: pd.DataFrame) -> pd.Series:
    """Recall@10 of each method, mean of the categories, in [0, 1].

    >>> rows = {"method": ["sum", "slerp"], "category": "mean", "metric": "recall@10", "value": [0.2, 0.3]}
    >>> recall_by_method(pd.DataFrame(rows)).to_dict()
    {'sum': 0.2, 'slerp': 0.3}
    """
    return summary[(summary["category"] == "mean") & (summary["metric"] == "recall@10")].set_index("method")["value"]
