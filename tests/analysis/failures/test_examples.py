"""Queries chosen as picture rows, and methods against each other query by query."""

from __future__ import annotations

import pandas as pd
import pytest

from cirlib.analysis.failures.examples import (
    edit_text,
    example_rows,
    fixed_rows,
    median_rows,
    picture_row,
    select_method,
    worst_rows,
)
from cirlib.analysis.failures.exchanges import best_of_families, exchanges, per_query
from cirlib.study.errors import ParameterError


def test_the_categories_of_one_method_are_found(make_scored):
    parts = [make_scored(m, c, [0]) for m in ("sum", "qformer") for c in ("hat", "shoe")]
    assert select_method(parts, "qformer") == parts[2:]


def test_an_unknown_method_names_those_there_are(make_scored):
    parts = [make_scored(m, c, [0]) for m in ("sum", "qformer") for c in ("hat", "shoe")]
    with pytest.raises(ParameterError) as caught:
        select_method(parts, "sun")
    assert str(caught.value) == "parameter 'method': no method 'sun' in this study, allowed: sum, qformer"


def test_a_picture_row_says_what_was_asked_found_and_wanted(make_scored):
    one = make_scored("m", "hat", [0, 40, 9], tied=[0, 0, 3], captions=[("a",), ("b",), ("is longer",)])
    row, path = picture_row(one, 2), one.benchmark.path
    assert (row.reference, row.target) == (path("hat-2"), path("hat-3"))
    assert row.text == "is longer"
    assert row.results == [path("hat-4"), path("hat-3")]
    assert row.correct == [False, True]
    assert (row.rank, row.title) == (11, "hat")


def test_the_same_words_twice_are_shown_once(make_scored):
    captions = [("is red", "is longer"), ("has a belt", "has a belt")]
    triplets = make_scored("m", "hat", [0, 0], captions=captions).benchmark.triplets
    assert [edit_text(triplet) for triplet in triplets] == ["is red and is longer", "has a belt"]


def test_examples_are_drawn_from_every_category_and_by_the_seed(make_scored):
    parts = [make_scored("m", category, list(range(30))) for category in ("hat", "shoe")]
    rows = example_rows(parts, 5, seed=1)
    assert [row.title for row in rows] == ["hat", "shoe", "hat", "shoe", "hat"]
    assert example_rows(parts, 5, seed=1) == rows
    assert example_rows(parts, 5, seed=2) != rows
    assert len({row.rank for row in rows}) > 1


def test_the_worst_and_the_median_are_of_all_categories(make_scored):
    parts = [make_scored("m", "hat", [0, 50, 3]), make_scored("m", "shoe", [70, 7])]
    assert [row.rank for row in worst_rows(parts, 2)] == [71, 51]
    assert [row.rank for row in median_rows(parts, 3)] == [4, 8, 51]
    assert [row.rank for row in median_rows(parts, 99)] == [1, 4, 8, 51, 71]


def test_fixed_is_what_one_finds_and_the_other_missed_the_furthest_first(make_scored):
    before, after = make_scored("sum", "hat", [5, 20, 60, 70]), make_scored("qformer", "hat", [0, 9, 3, 12])
    rows = fixed_rows([after], [before], 5)
    assert [(row.rank, row.title) for row in rows] == [(4, "hat: rank 61 before"), (10, "hat: rank 21 before")]
    assert len(fixed_rows([after], [before], 1)) == 1
    assert fixed_rows([before], [after], 5) == []


def test_exchanges_count_who_finds_what_and_test_the_difference(make_scored):
    first = make_scored("sum", "hat", [0, 0, 50, 50, 50, 50])
    second = make_scored("qformer", "hat", [0, 50, 0, 0, 0, 50])
    (row,) = exchanges([first, second], ["sum", "qformer"]).to_dict("records")
    assert [row[name] for name in ("both", "only_first", "only_second", "neither")] == [1, 1, 3, 1]
    assert row["difference"] == pytest.approx(2 / 6)
    assert 0 < row["p"] <= 1 and row["p_holm"] == row["p"]


def test_with_one_method_there_is_nothing_to_exchange(make_scored):
    assert exchanges([make_scored("sum", "hat", [0])], ["sum"]).empty


def test_every_query_has_its_rank_by_every_method(make_scored):
    parts = [make_scored("sum", "hat", [4, 20]), make_scored("qformer", "hat", [0, 9])]
    table = per_query(parts, ["sum", "qformer"])
    assert table[["sum", "qformer"]].values.tolist() == [[5, 1], [21, 10]]
    assert table["kinds"].tolist() == ["colour", "colour"]


def test_the_best_of_each_family_is_by_mean_recall_and_families_may_lack():
    rows = [("sum", 0.3), ("slerp", 0.4), ("qformer", 0.6), ("qformer_hard_negatives", 0.5)]
    summary = pd.DataFrame(rows, columns=["method", "value"]).assign(category="mean", metric="recall@10")
    assert best_of_families(summary) == {"zero-shot": "slerp", "Q-Former": "qformer"}
