"""What a run of 04 found, in sentences computed from its tables: never more than its intervals say."""

import pandas as pd

from cirlib.analysis.dpo.effects import ON
from cirlib.retrieval.statistics import against_chance
from cirlib.study.method_registry import method_label
from cirlib.study.units import percent, points

REASONS = {  # factor of `effects`: the paper's reason
    "objective": "**A margin loss misaligned with top-K.**",
    "negatives": "**Poor negatives.**",
    "trains": "**Frozen layers.**",
}
WORDS = {
    "dpo": "DPO",
    "info_nce_mined": "InfoNCE on the same negatives",
    "info_nce_in_batch": "in-batch InfoNCE",
    "recall_in_batch": "the recall@k surrogate in-batch",
    "top": "top-k negatives",
    "random": "random negatives",
    "margin": "negatives behind the target by a margin",
    "remined": "re-mined negatives",
    "query_tower": "query tower",
    "query_projection": "query projection",
    "qformer": method_label("qformer_pretrained"),  # as a fusion: the grid starts from models that saw no triplet
}


def findings(summary: pd.DataFrame, effects: pd.DataFrame, mistakes: pd.DataFrame, recipe: pd.DataFrame) -> str:
    """Markdown: the study's own runs, each of the paper's four reasons, what is below chance, what helps.

    Args:
        summary: of :func:`~cirlib.retrieval.scoring.summarise`, with ``text_only`` and the runs of Retrieval-DPO.
        effects, mistakes, recipe: of :class:`~cirlib.analysis.dpo.experiment.Experiment`; empty where not run.

    >>> columns = ["method", "category", "metric", "value", "ci_low", "ci_high", "queries", "chance"]
    >>> rows = [["text_only", 0.1, 0.08, 0.12], ["retrieval_dpo", 0.01, 0.001, 0.03]]
    >>> summary = [[name, "mean", "recall@10", *values, 900, 0.01] for name, *values in rows]
    >>> print(findings(pd.DataFrame(summary, columns=columns), *[pd.DataFrame()] * 3)[:71])
    **The study's own runs.** Recall@10 is 10.0 % [8.0, 12.0] with the text
    """
    parts = [_own_runs(summary)]
    if len(effects):
        parts += [_fusion(effects), *(_reason(factor, effects) for factor in REASONS)]
        parts.append(
            "All intervals are 95 %, over image families of queries and over repeated runs, and not corrected for "
            "being many: one in twenty would miss the truth."
        )
    if len(mistakes):
        parts.append(_mistakes(mistakes))
    if len(recipe):
        parts.append(_recipe(recipe))
    return "\n\n".join(parts)


def _interval(row: pd.Series) -> str:
    return f"{percent(row['value'])} % [{percent(row['ci_low'])}, {percent(row['ci_high'])}]"


def _change(row: pd.Series) -> str:
    return f"{points(row['difference'])} [{points(row['ci_low'])}, {points(row['ci_high'])}]"


def _own_runs(summary: pd.DataFrame) -> str:
    means = summary[(summary["category"] == "mean") & (summary["metric"] == "recall@10")].set_index("method")
    said = [f"Recall@10 is {_interval(means.loc['text_only'])} with the text alone, before any preference"]
    for name in (name for name in means.index if name.startswith("retrieval_dpo")):
        row = means.loc[name]
        test = against_chance(row["value"] * row["queries"], min(row["chance"], 1 - 1e-9), int(row["queries"]))
        said.append(
            f"{_interval(row)} with {method_label(name)} ({test.verdict}; guessing gives {percent(row['chance'])} %)"
        )
    return f"**The study's own runs.** {'; '.join(said)}. One training each: `make seeds` repeats them."


def _fusion(effects: pd.DataFrame) -> str:
    changes, lines = effects[effects["factor"] == "change"], []
    for fusion, own in changes.groupby("fusion", sort=False):
        cells = [f"{_change(row)} ({_word(row['level'])}, {_word(row['within'])})" for _, row in own.iterrows()]
        start = f"{_named(fusion)} starts at {percent(own['start'].iloc[0])} %"
        lines.append(f"- {start}; DPO changes it by {'; '.join(cells)}")
    head = "**Missing fusion.** Recall@10 of each fusion before any preference, and what DPO changes in points:"
    return "\n".join([head, *lines])


def _reason(factor: str, effects: pd.DataFrame) -> str:
    """Every level of a switch: where it is better, where worse, and in how many places that cannot be told."""
    rows, lines = effects[effects["factor"] == factor], []
    for (against, level), own in rows.groupby(["against", "level"], sort=False):
        said = []
        for word, part in (("better", own[own["ci_low"] > 0]), ("worse", own[own["ci_high"] < 0])):
            cells = [f"{_change(row)} ({_named(row['fusion'])}, {_word(row['within'])})" for _, row in part.iterrows()]
            said += [f"{word}: {'; '.join(cells)}"] if cells else []
        unclear = ((own["ci_low"] <= 0) & (own["ci_high"] >= 0)).sum()
        said += [f"cannot be told from no difference in {unclear} of {len(own)} places"] if unclear else []
        lines.append(f"- {_word(level)} against {ON.join(map(_word, against.split(ON)))}: {'. '.join(said)}")
    return "\n".join([f"{REASONS[factor]} Differences in points of recall@10:", *lines])


def _mistakes(mistakes: pd.DataFrame) -> str:
    """Each mistake's verdict, where all its repetitions agree."""
    said: dict[str, list[str]] = {}
    for name, own in mistakes.groupby("mistake", sort=False):
        verdict = own["verdict"].iloc[0] if own["verdict"].nunique() == 1 else "differs between repetitions"
        hits = " and ".join(f"{round(hits, 1):g}" for hits in own["hits"])
        said.setdefault(verdict, []).append(f"{name} ({hits} hits)")
    queries, chance = int(mistakes["queries"].iloc[0]), mistakes["chance"].mean()
    head = (
        f"**Below chance.** Of {queries:,} queries guessing hits {queries * chance:.1f} on average; by exact intervals:"
    )
    return "\n".join([head, *(f"- {verdict}: {'; '.join(names)}" for verdict, names in said.items())])


def _recipe(recipe: pd.DataFrame) -> str:
    lines = [f"- {row['method']} against {row['against']}: {_change(row)}" for _, row in recipe.iterrows()]
    head = f"**A second training.** From {percent(recipe['start'].iloc[0])} %, in points of recall@10:"
    return "\n".join([head, *lines])


def _named(fusion: str) -> str:
    return WORDS.get(fusion) or method_label(fusion)


def _word(level: str) -> str:
    kind = level.removeprefix("dpo ")
    return WORDS.get(level) or (f"DPO with {kind} loss" if kind != level else level.replace("_", " "))
