"""Tables for reading: every fraction in per cent, every difference in points, an interval beside its number."""

import pandas as pd

from cirlib.study.method_registry import labels
from cirlib.study.units import percent, points

PERCENT = ("value", "chance", "start", "satisfies_edit", "differs_in_one")  # and whatever is a recall
POINTS = ("difference", "change")


def percent_table(table: pd.DataFrame) -> pd.DataFrame:
    """``table`` as text: columns of fractions become "… (%)" or "… (points)", an interval goes into its number's cell.

    The interval ``ci_low``, ``ci_high`` is of the column before it, ``x/ci_low``, ``x/ci_high`` of ``x``. Gaps are "–".
    Methods have the names that the figures give them.

    >>> percent_table(pd.DataFrame({"method": ["sum"], "value": [0.5], "ci_low": [0.4], "ci_high": [0.6], "p": [2e-5]}))
             method          value (%)      p
    0  weighted sum  50.0 [40.0, 60.0]  2e-05
    """
    shown: dict[str, pd.Series] = {}
    names = list(table)
    table = table if len(table) else table.astype(object)  # no rows have no numbers to format
    for place, name in enumerate(names):
        if name.endswith(("ci_low", "ci_high")):
            continue
        cells, head = table[name], name.replace("_", " ")
        differs = name in POINTS
        if differs or name in PERCENT or "recall@" in name:
            write, head = (points, f"{head} (points)") if differs else (percent, f"{head} (%)")
        elif cells.dtype.kind == "f":
            write = "{:.4g}".format
        else:
            write = str
        low = "ci_low" if names[place + 1 : place + 2] == ["ci_low"] else f"{name}/ci_low"
        text = cells.map(write).replace(labels())
        if low in names:
            text += " [" + table[low].map(write) + ", " + table[low.replace("low", "high")].map(write) + "]"
        shown[head] = text.where(cells.notna(), "–")
    return pd.DataFrame(shown)
