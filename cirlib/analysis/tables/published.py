"""The paper's claims and other publications on FashionIQ beside what this study measured."""

from pathlib import Path

import pandas as pd

from cirlib.study.method_registry import METHODS, find_method

PUBLISHED = Path(__file__).with_name("published.csv")
FASHIONIQ = "fashioniq"  # the study whose numbers stand beside the published ones
ON_FASHIONIQ = ("fashioniq_sprc", "sprc_released")  # further studies of the same data


def paper_vs_ours(summary: pd.DataFrame, study: str) -> pd.DataFrame:
    """Every published row, then every method of ours: measured, or without a number where it was not run.

    Methods that run where they are asked for are there where they ran.

    Published numbers are FashionIQ's; ``data`` names the study or benchmark of ours, and only equal data compares.

    Returns:
        ``source`` (paper, published, ours), ``method``, ``trained`` (on triplets or preferences; else zero-shot),
        ``data``, ``recall@10`` and ``recall@50`` (means of the categories, fractions of 1) with ``…/ci_low`` and
        ``…/ci_high`` of ours, ``recall@10/from`` and ``…/to`` where only a range was published,
        ``<category>/recall@10``, ``protocol``, ``complete``.

    >>> table = paper_vs_ours(pd.DataFrame(columns=["method", "metric"]), "fashioniq")
    >>> table.loc[table["source"] == "ours", "protocol"].unique().tolist()
    ['not run']
    """
    published = pd.read_csv(PUBLISHED, true_values=["yes"], false_values=["no"]).assign(data=FASHIONIQ, complete=True)
    run = list(dict.fromkeys(summary["method"]))
    always = [method.name for method in METHODS.values() if method.made_by is None or method.name in run]
    rows = [
        _ours(summary, method, FASHIONIQ if study in ON_FASHIONIQ else study)
        for method in dict.fromkeys([*always, *run])
    ]
    return pd.concat([published, pd.DataFrame(rows)], ignore_index=True)


def _ours(summary: pd.DataFrame, method: str, study: str) -> dict:
    row = {"source": "ours", "method": find_method(method).label, "data": study, "protocol": "not run"}
    row["trained"] = find_method(method).trained
    own = summary[(summary["method"] == method) & summary["metric"].isin(("recall@10", "recall@50"))]
    for one in own.to_dict("records"):
        if one["category"] == "mean":
            row |= {one["metric"]: one["value"], "protocol": one["protocol"], "complete": one["complete"]}
            row |= {f"{one['metric']}/{end}": one[end] for end in ("ci_low", "ci_high")}
        elif one["metric"] == "recall@10":
            row[f"{one['category']}/recall@10"] = one["value"]
    if row.get("complete") is False:
        row["protocol"] += ", incomplete"
    return row
