"""A method's recall by what is asked, and its misses."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from cirlib.analysis.failures.groups import (
    best_method,
    by_kind,
    by_likeness,
    by_number,
    by_words,
    miss_table,
    unclassified,
)


@pytest.fixture
def scored(make_scored):
    """Hats: red found, red and longer missed, longer tied at the edge; shoes: a logo far down, a belt found."""
    hats = make_scored(
        "m", "hat", [0, 40, 9], tied=[0, 0, 3], captions=[("is red",), ("is red", "is longer"), ("is longer",)]
    )
    shoes = make_scored("m", "shoe", [70, 3], captions=[("has a logo",), ("has a belt", "has a belt")])
    return [hats, shoes]


def values(table: pd.DataFrame) -> dict[str, float]:
    return dict(zip(table["group"], table["value"], strict=True))


def test_recall_by_kind_counts_a_query_in_each_of_its_kinds(scored):
    table = by_kind(scored)
    assert values(table) == {
        "colour": 0.5, "length": pytest.approx((0 + 1 / 4) / 2), "graphic": 0, "detail": 1,
        "comparison": pytest.approx((0 + 1 / 4) / 2), "several at once": 0,
    }  # fmt: skip
    assert table["group"].tolist() == ["colour", "length", "graphic", "detail", "comparison", "several at once"]
    assert table["queries"].tolist() == [2, 2, 1, 1, 2, 1]
    assert ((table["ci_low"] <= table["value"]) & (table["value"] <= table["ci_high"])).all()
    assert table["chance"].tolist() == [0.1] * 6  # 10 of 101 less the reference


def test_another_k_counts_other_hits_and_has_another_chance(scored):
    table = by_kind(scored, k=50)
    assert values(table) == {
        "colour": 1, "length": 1, "graphic": 0, "detail": 1, "comparison": 1, "several at once": 1
    }  # fmt: skip
    assert set(table["chance"]) == {0.5}


def test_recall_by_the_number_of_things_changed(make_scored):
    captions = [("is nicer",), ("is red",), ("is red and longer",), ("red, long, with a belt, a logo, a collar",)]
    table = by_number([make_scored("m", "hat", [0, 40, 0, 40], captions=captions)])
    assert values(table) == {"0": 1, "1": 0, "2": 1, "4 or more": 0}


def test_recall_by_words_is_in_fifths_of_the_queries_and_equal_lengths_stay_together(make_scored):
    captions = [("red " * (1 + number % 7),) for number in range(70)]
    above = [0 if number % 7 < 3 else 40 for number in range(70)]
    table = by_words([make_scored("m", "hat", above, captions=captions)])
    assert table["queries"].sum() == 70 and len(table) <= 5
    assert table["group"].iloc[0].startswith("1") and table["group"].iloc[-1].endswith("7")
    assert table["value"].iloc[0] == 1 and table["value"].iloc[-1] == 0


def test_where_all_edits_are_as_long_there_is_one_group(make_scored):
    table = by_words([make_scored("m", "hat", [0, 40], captions=[("is red",), ("is blue",)])])
    assert values(table) == {"2": 0.5}


def test_recall_by_likeness_puts_unlike_pairs_first(make_scored, make_store, tmp_path):
    one = make_scored("m", "hat", [40] * 5 + [0] * 5, size=12)
    angles = torch.cumsum(torch.tensor([0, *[1.2] * 5, *[0.1] * 6]), 0)  # unlike neighbours, then like ones
    features = torch.stack([angles.cos(), angles.sin()], 1)
    table = by_likeness([one], make_store(tmp_path / "clip", one.benchmark.gallery, features))
    assert table["value"].iloc[0] == 0 and table["value"].iloc[-1] == 1
    lows = [float(group.split(" to ")[0]) for group in table["group"]]
    assert lows == sorted(lows) and lows[0] == pytest.approx(0.36, abs=0.01)


def test_misses_are_the_queries_not_surely_among_the_first_the_worst_on_top(scored):
    table = miss_table(scored, [["a", "b", "c"], ["d", "e"]])
    assert table["query"].tolist() == ["shoe-query-0", "hat-query-1", "hat-query-2"]
    assert table["rank"].tolist() == [71, 41, 11]  # 9 above and the middle of 3 tied
    assert table["reason"].tolist() == ["d", "b", "c"]
    assert table["kinds"].tolist() == ["graphic", "colour, length, comparison, several at once", "length, comparison"]
    first = table.iloc[1]
    assert first["captions"] == "is red / is longer"
    assert (first["reference"], first["target"], first["top"]) == ("hat-1", "hat-2", "hat-3 hat-2")


def test_where_nothing_is_missed_the_table_is_empty_but_has_its_columns(make_scored):
    table = miss_table([make_scored("m", "hat", [0, 9])], [["", ""]])
    assert len(table) == 0
    assert {"category", "query", "kinds", "reason", "rank", "captions"} <= set(table.columns)


def test_the_share_of_edits_without_a_known_word_is_of_all_queries(make_scored):
    assert unclassified([make_scored("m", "hat", [0, 0], captions=[("is nicer",), ("is red",)])]) == 0.5


def test_the_best_method_has_the_highest_mean():
    rows = [
        ("a", "mean", "recall@10", 0.3), ("b", "mean", "recall@10", 0.5), ("c", "hat", "recall@10", 0.9),
        ("c", "mean", "recall@10", 0.4), ("a", "mean", "recall@50", 0.9),
    ]  # fmt: skip
    summary = pd.DataFrame(rows, columns=["method", "category", "metric", "value"])
    assert best_method(summary) == "b"
    assert best_method(summary, "recall@50") == "a"
    assert best_method(summary, among=["a", "c"]) == "c"
