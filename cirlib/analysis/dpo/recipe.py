"""Does preference tuning add anything after InfoNCE? The fine-tuned Q-Former, trained on with the same negatives."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import torch

from cirlib.analysis.dpo.context import RunContext
from cirlib.analysis.dpo.embedded_splits import embed_splits, score_splits
from cirlib.analysis.dpo.grid import with_changes
from cirlib.analysis.dpo.runs import measured_run
from cirlib.retrieval.ranks import Ranks
from cirlib.retrieval.scoring import Scored, compare, mean_recall, summarise
from cirlib.study.parameters import DPO

START = "InfoNCE (the fine-tuned Q-Former)"
OBJECTIVES = {
    "then DPO on mined pairs": "dpo",
    "then InfoNCE on the same negatives": "info_nce_mined",
    "then InfoNCE in-batch": "info_nce_in_batch",
}
RATES = {"full": (1e-5, 5e-5), "default": (1e-5,), "small": (1e-5,)}


def recipe_params(params: DPO, objective: str, lr: float) -> DPO:
    """A second training of the fused model; its negatives are drawn from the fifty hardest, as in 03.

    >>> recipe_params(DPO(), "dpo", 1e-5).start
    'finetuned'
    """
    edits = None if params.grid == "full" else 4 * params.grid_edits
    changes = {
        "fusion": "qformer", "start": "finetuned", "objective": objective, "trains": "query_tower", "sampling": "band",
        "range_min": 0, "range_max": 50, "lr": lr, "epochs": 1, "edits": edits, "batch_size": 64, "repetition": 0,
        "num_negatives": min(params.num_negatives, 50),
    }  # fmt: skip
    return with_changes(params, changes)


def run_recipe(context: RunContext, params: DPO) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Each objective at its best rate on dev: a row a method for the figure, and the paired tests between them.

    >>> run_recipe(context, DPO(grid="small"))  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    cirlib.study.errors.StageError: qformer needs best_run.json, which is missing: run `dvc repro qformer` first
    """
    start = context.encoder(recipe_params(params, "dpo", RATES[params.grid][0]), frozen=True).eval()
    dev, scored = (
        score_splits(embed_splits(start, parts, context.evaluation), context.evaluation, START)
        for parts in (context.splits.dev, context.splits.reported)
    )
    rows, methods = [{"method": START, "dev/recall@10": mean_recall(dev, 10), "command": ""}], list(scored)
    for method, objective in OBJECTIVES.items():
        tried = [recipe_params(params, objective, lr) for lr in RATES[params.grid]]
        records = [measured_run(context, one, with_dev=True) for one in tried]
        best = max(records, key=lambda record: record["dev/recall@10"])
        methods += [_scored(one, best, method) for one in scored]
        rows.append({"method": method, **{name: best[name] for name in ("lr", "dev/recall@10", "seconds", "command")}})
    means = summarise(methods, (10,)).query("category == 'mean'").set_index("method")
    table = pd.DataFrame(rows, columns=["method", "lr", "dev/recall@10", "seconds", "command"])
    table = table.join(means[["value", "ci_low", "ci_high", "queries", "gallery", "chance"]], on="method")
    others = [one for one in methods if one.method != START]
    tests = [
        compare(methods, START, seed=context.study.seed),
        compare(others, next(iter(OBJECTIVES)), seed=context.study.seed),
    ]
    return table, pd.concat(tests, ignore_index=True)


def _scored(like: Scored, record: dict, method: str) -> Scored:
    """A record's ranks on the queries of ``like``."""
    above, tied = (torch.tensor(record[name][like.category]) for name in ("above", "tied"))
    return replace(like, method=method, ranks=Ranks(above, tied))
