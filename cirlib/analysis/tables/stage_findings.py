"""What a stage found, in sentences computed from its numbers: per cent, points, 95 % intervals, paired tests."""

from collections.abc import Sequence

import pandas as pd

from cirlib.retrieval.scoring import Scored, compare, summarise
from cirlib.retrieval.statistics import bootstrap_ci
from cirlib.study.method_registry import ZERO_SHOT, find_method, method_label
from cirlib.study.units import percent, points

ALPHA = 0.05  # a difference with a larger p-value is said to be no surer than chance
ORDER = ("image_only", "text_only", "sum")  # of recall on FashionIQ, upwards
NOTHING = "No method was scored: there is nothing to say."


def zero_shot_finding(scored: Sequence[Scored], seed: int = 0) -> str:
    """The best zero-shot method beside chance and the others, and whether image only < text only < sum holds.

    >>> print(zero_shot_finding([make_scored("sum", "hat", [0] * 9), make_scored("text_only", "hat", [50] * 9)]))
    Best is weighted sum: 100.0 % [66.4, 100.0] recall@10, guessing gives 10.0 %.
    Text only: −100.0 points [−100.0, −32.7], p = 0.004.
    """
    if not scored:
        return NOTHING
    means = _means(scored)
    best = str(means["value"].idxmax())
    said = [f"Best is {method_label(best)}: {_number(means.loc[best])}."]
    if len(means) > 1:
        said += [f"{method_label(row.method).capitalize()}: {_difference(row)}." for row in _tests(scored, best, seed)]
    if set(ORDER) <= set(means.index):
        said.append(_order([one for one in scored if one.method in ORDER], means["value"], seed))
    return "\n".join(said)


def trained_finding(scored: Sequence[Scored], method: str, seed: int = 0) -> str:
    """A method against the best zero-shot one, in points, by the paired test.

    >>> parts = [make_scored("sum", "hat", [50] * 9), make_scored("qformer", "hat", [0] * 9)]
    >>> print(trained_finding(parts, "qformer"))
    Q-Former: 100.0 % [66.4, 100.0] recall@10, guessing gives 10.0 %.
    Against weighted sum, the best zero-shot method: +100.0 points [+32.7, +100.0], p = 0.004.
    """
    means = _means(scored) if scored else pd.DataFrame()
    if method not in means.index:
        return NOTHING
    said = f"{method_label(method)}: {_number(means.loc[method])}."
    zero_shot = [name for name in means.index if find_method(name).family == ZERO_SHOT]
    if not zero_shot:
        return f"{said} There is no zero-shot method to compare with."
    best = str(means.loc[zero_shot, "value"].idxmax())
    (test,) = _tests([one for one in scored if one.method in (method, best)], best, seed)
    return f"{said}\nAgainst {method_label(best)}, the best zero-shot method: {_difference(test)}."


def failure_finding(queries: pd.DataFrame, kinds: pd.DataFrame, reasons: pd.DataFrame) -> str:
    """The kind of edit in which a method is weakest, and the commonest reasons of its misses.

    Weakest is the kind whose interval ends lowest, not the lowest number, which the smallest groups have by chance.

    Args:
        queries: the method's rows of :func:`~cirlib.analysis.failures.query_table.query_table`; kinds and reasons:
            of them, from ``by_kind`` and ``reason_table``.

    >>> kinds = pd.DataFrame({"group": ["length"], "queries": 9, "value": 0.2, "ci_low": 0.1, "ci_high": 0.4})
    >>> queries = pd.DataFrame({"method": "sum", "category": "hat", "recall": [0] * 9 + [1] * 9, "family": range(18)})
    >>> print(failure_finding(queries, kinds, pd.DataFrame({"method": [], "reason": [], "misses": [], "value": []})))
    Weighted sum finds 50.0 % [25.2, 74.8] of the 18 queries among its first ten.
    Weakest is length: 20.0 % [10.0, 40.0] of 9 queries; its interval lies below the 50.0 % of all.
    """
    if queries.empty:
        return NOTHING
    overall, total = queries.groupby("category")["recall"].mean().mean(), len(queries)
    low, high = bootstrap_ci(queries["recall"], groups=list(queries["category"]), clusters=list(queries["family"]))
    name = method_label(queries["method"].iloc[0])
    name = name[:1].upper() + name[1:]
    said = [f"{name} finds {_with_interval(overall, low, high)} of the {total:,} queries among its first ten."]
    if len(kinds):
        worst = kinds.loc[kinds["ci_high"].idxmin()]
        below = worst["ci_high"] < overall
        where = "lies below" if below else "holds"
        sure = f"its interval {where} the {percent(overall, ' %')} of all" + (
            "" if below else ": the gap may be chance"
        )
        share = _with_interval(worst["value"], worst["ci_low"], worst["ci_high"])
        said.append(f"Weakest is {worst['group']}: {share} of {worst['queries']:,} queries; {sure}.")
    own = reasons[reasons["misses"] > 0].sort_values("value", ascending=False, kind="stable")
    if len(own):
        parts = [f"{r.reason} ({_with_interval(r.value, r.ci_low, r.ci_high)})" for r in own.head(2).itertuples()]
        said.append(f"Of its {reasons['misses'].sum():,} misses most are: {', then '.join(parts)}.")
    return "\n".join(said)


def _order(scored: Sequence[Scored], value: pd.Series, seed: int) -> str:
    """Whether the three methods' recall goes up in ``ORDER``, each step told from chance."""
    steps = {row.method: row for row in _tests(scored, "text_only", seed)}
    rises = [-steps["image_only"].difference, steps["sum"].difference]
    unsure = [method_label(name) for name in ("image_only", "sum") if steps[name].p_holm > ALPHA]
    named = " < ".join(f"{method_label(name)} ({percent(value[name], ' %')})" for name in ORDER)
    if min(rises) <= 0:
        return f"FashionIQ's order, {named}, does not hold here."
    if unsure:
        return f"The order is FashionIQ's, {named}, but text only and {' and '.join(unsure)} may differ by chance."
    return f"FashionIQ's order holds: {named}."


def _means(scored: Sequence[Scored]) -> pd.DataFrame:
    """Recall@10 of each method, mean of the categories, with its interval and chance."""
    summary = summarise(scored, (10,))
    return summary[summary["category"] == "mean"].set_index("method")


def _tests(scored: Sequence[Scored], against: str, seed: int) -> list:
    """The rows of :func:`compare`."""
    return list(compare(scored, against, seed=seed).itertuples())


def _number(row: pd.Series) -> str:
    share = _with_interval(row["value"], row["ci_low"], row["ci_high"])
    return f"{share} recall@10, guessing gives {percent(row['chance'], ' %')}"


def _difference(test: tuple) -> str:
    p = "p < 0.001" if test.p_holm < 0.001 else f"p = {test.p_holm:.3f}"
    chance = ", which may be chance" if test.p_holm > ALPHA else ""
    return f"{points(test.difference)} points [{points(test.ci_low)}, {points(test.ci_high)}], {p}{chance}"


def _with_interval(value: float, low: float, high: float) -> str:
    return f"{percent(value, ' %')} [{percent(low)}, {percent(high)}]"
