"""The closing sentences say what the numbers say, and no more."""

import pandas as pd
import pytest

from cirlib.analysis.failures.query_table import by_kind, query_table
from cirlib.analysis.failures.reasons import NEAR_MISS, reason_table
from cirlib.analysis.tables.stage_findings import NOTHING, failure_finding, trained_finding, zero_shot_finding
from cirlib.retrieval.scoring import summarise
from cirlib.study.units import percent

HIT, MISS = 0, 50


@pytest.fixture
def hats(make_scored):
    """Makes a method that finds the first so many of 30 hats."""
    return lambda method, found: make_scored(method, "hat", [HIT] * found + [MISS] * (30 - found))


def test_the_order_of_fashioniq_is_said_only_where_each_step_is_sure(hats):
    def said(image: int, text: int, both: int) -> str:
        parts = [hats("image_only", image), hats("text_only", text), hats("sum", both)]
        return zero_shot_finding(parts).splitlines()[-1]

    named = "image only (6.7 %) < text only (33.3 %) < weighted sum (66.7 %)"
    assert said(2, 10, 20) == f"FashionIQ's order holds: {named}."
    unsure = said(2, 10, 11)
    assert unsure.startswith("The order is FashionIQ's") and "weighted sum may differ by chance" in unsure
    assert "does not hold here" in said(10, 2, 20) and "does not hold here" in said(2, 10, 10)


def test_the_best_zero_shot_method_is_named_with_its_interval_and_the_others_with_their_differences(hats):
    best, other, *more = zero_shot_finding([hats("text_only", 3), hats("sum", 18)]).splitlines()
    assert best.startswith("Best is weighted sum: 60.0 % [") and best.endswith("recall@10, guessing gives 10.0 %.")
    assert other.startswith("Text only: −50.0 points [−") and other.endswith("p < 0.001.") and not more
    assert zero_shot_finding([hats("sum", 18)]).count("\n") == 0


@pytest.mark.parametrize(
    ("found", "expected", "ends"),
    [
        (28, "+60.0 points", "p < 0.001."),
        (11, "+3.3 points", "which may be chance."),
        (1, "−30.0 points", "p = 0.004."),
    ],
)
def test_a_trained_method_is_better_worse_or_not_told_from_the_best_zero_shot_one(hats, found, expected, ends):
    parts = [hats("text_only", 2), hats("sum", 10), hats("qformer", found)]
    said = trained_finding(parts, "qformer").splitlines()[1]
    assert said.startswith(f"Against weighted sum, the best zero-shot method: {expected} [")
    assert said.endswith(ends)


def test_without_a_method_nothing_is_said(hats):
    assert zero_shot_finding([]) == trained_finding([], "qformer") == NOTHING
    assert trained_finding([hats("sum", 3)], "qformer") == NOTHING
    assert trained_finding([hats("qformer", 3)], "qformer").endswith("There is no zero-shot method to compare with.")


def test_failures_name_the_weakest_kind_and_the_commonest_reasons(make_scored):
    captions = [("is blue",)] * 40 + [("is longer",)] * 20
    scored = make_scored("sum", "hat", [HIT] * 36 + [MISS] * 22 + [HIT] * 2, captions=captions)
    queries = query_table([scored]).assign(reason=["other"] * 58 + [NEAR_MISS] * 2)
    queries.loc[40:50, "reason"] = NEAR_MISS
    kinds, why = by_kind(queries), reason_table(queries)
    first, second, third = failure_finding(queries, kinds, why).splitlines()
    table = summarise([scored], (10,)).iloc[-1]
    share = f"{percent(table['value'], ' %')} [{percent(table['ci_low'])}, {percent(table['ci_high'])}]"
    assert first == f"Weighted sum finds {share} of the 60 queries among its first ten."
    assert second.startswith("Weakest is ") and second.endswith(
        f"its interval lies below the {percent(table['value'], ' %')} of all."
    )
    assert third.startswith(f"Of its 11 misses most are: {NEAR_MISS} (50.0 % [")
    one_miss = pd.DataFrame({"group": ["belt"], "queries": [1], "value": [0.0], "ci_low": [0.0], "ci_high": [0.975]})
    assert failure_finding(queries, pd.concat([one_miss, kinds], ignore_index=True), why).splitlines()[1] == second
    close = pd.DataFrame({"group": ["length"], "queries": [9], "value": [0.6], "ci_low": [0.3], "ci_high": [0.8]})
    assert "the gap may be chance." in failure_finding(queries, close, why)


def test_where_nothing_is_missed_no_reason_is_given(make_scored):
    queries = query_table([make_scored("sum", "hat", [HIT] * 8)]).assign(reason=NEAR_MISS)
    assert "miss" not in failure_finding(queries, by_kind(queries), reason_table(queries))
    assert failure_finding(queries.head(0), by_kind(queries), reason_table(queries)) == NOTHING
