"""Does preference tuning add anything after InfoNCE? The fine-tuned Q-Former, trained on with the same negatives."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import torch

from cirlib.analysis.dpo.context import RunContext
from cirlib.analysis.dpo.grid import with_changes
from cirlib.analysis.dpo.runs import command, embed_parts, measure, score_embedded
from cirlib.retrieval.ranks import Ranks
from cirlib.retrieval.scoring import Scored, compare, mean_recall, summarise
from cirlib.study.parameters import DPO

OBJECTIVES = {
    "then DPO on mined pairs": {"objective": "dpo"},
    "then InfoNCE on the same negatives": {"objective": "info_nce_mined"},
    "then InfoNCE in-batch": {"objective": "info_nce_in_batch"},
}
START = "InfoNCE (the fine-tuned Q-Former)"
RATES = {"full": (1e-5, 5e-5), "default": (1e-5,), "small": (1e-5,)}


def recipe_params(params: DPO, objective: str, lr: float) -> DPO:
    """A second training of the fused model; its negatives are drawn from the fifty hardest, as in 03."""
    small = params.grid != "full"
    changes = {
        "fusion": "qformer", "start": "finetuned", "trains": "query_tower", "sampling": "band", "range_min": 0,
        "range_max": 50, "lr": lr, "epochs": 1, "edits": 4 * params.grid_edits if small else None,
        "batch_size": 64, "repetition": 0, "num_negatives": min(params.num_negatives, 50), **OBJECTIVES[objective],
    }  # fmt: skip
    return with_changes(params, changes)


def run_recipe(context: RunContext, params: DPO) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Each objective at its best rate on dev: a row a method for the figure, and the paired tests between them."""
    prepared = context.prepared
    evaluation, splits = prepared.stage.study.evaluation, prepared.splits
    start = context.encoder(recipe_params(params, next(iter(OBJECTIVES)), RATES[params.grid][0]), frozen=True).eval()
    scored = score_embedded(embed_parts(start, splits.reported, evaluation), evaluation, START)
    dev = mean_recall(score_embedded(embed_parts(start, splits.dev, evaluation), evaluation, START), 10)
    rows = [{"method": START, "lr": float("nan"), "dev/recall@10": dev, "seconds": float("nan"), "command": ""}]
    methods = list(scored)
    for objective in OBJECTIVES:
        tried = [recipe_params(params, objective, lr) for lr in RATES[params.grid]]
        records = [measure(context, one, keep_dev=True) for one in tried]
        best = max(range(len(tried)), key=lambda i: records[i]["dev/recall@10"])
        methods += [_scored(one, records[best], objective) for one in scored]
        rows.append({
            "method": objective, "lr": tried[best].lr, "dev/recall@10": records[best]["dev/recall@10"],
            "seconds": records[best]["seconds"], "command": command(prepared.stage.study, tried[best]),
        })  # fmt: skip
    means = summarise(methods, (10,)).query("category == 'mean'").set_index("method")
    table = pd.DataFrame(rows).join(means[["value", "ci_low", "ci_high", "queries", "gallery", "chance"]], on="method")
    tests = pd.concat([
        compare(methods, START, seed=prepared.stage.study.seed),
        compare([m for m in methods if m.method != START], "then DPO on mined pairs", seed=prepared.stage.study.seed),
    ], ignore_index=True)  # fmt: skip
    return table, tests


def _scored(like: Scored, record: dict, method: str) -> Scored:
    """A record's ranks on the queries of ``like``."""
    above, tied = (torch.tensor(record[name][like.category]) for name in ("above", "tied"))
    return replace(like, method=method, ranks=Ranks(above, tied))
