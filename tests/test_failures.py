"""Where a method fails: what an edit speaks of, which queries are missed, and the rows shown as pictures."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from cirlib.failures import (
    best_method,
    edit_kinds,
    edit_text,
    example_rows,
    kind_table,
    miss_table,
    of_method,
    picture_row,
    worst_figure,
    worst_misses,
    write_metrics,
)
from cirlib.params import ParameterError

# ------------------------------------------------------------------ what an edit speaks of


@pytest.mark.parametrize(
    ("caption", "kinds"),
    [
        ("is red", ["colour"]),
        ("Is BLUE and White", ["colour"]),
        ("is darker and more colorful", ["colour"]),
        ("is grey", ["colour"]),
        ("is tired", ["other"]),  # red inside another word
        ("has a floral print", ["pattern"]),
        ("has polka dots", ["pattern"]),
        ("is striped black", ["colour", "pattern"]),
        ("has zigzag lines", ["pattern"]),
        ("is sleeveless", ["sleeves"]),
        ("has thin straps", ["sleeves"]),
        ("has longer sleeves", ["sleeves"]),
        ("has long-sleeves", ["sleeves"]),
        ("has short lace sleeves", ["sleeves", "detail"]),
        ("is longer with short sleeves", ["sleeves", "length"]),
        ("is longer and sleeveless", ["sleeves", "length"]),
        ("is a short sleeveless dress", ["sleeves", "length"]),
        ("has a v-neck", ["neckline"]),
        ("has a vneckline and a collar", ["neckline"]),
        ("is shorter", ["length"]),
        ("is knee length", ["length"]),
        ("is cropped", ["length"]),
        ("is more fitted", ["fit"]),
        ("is a-line", ["fit"]),
        ("is a line", ["other"]),
        ("has a different logo", ["graphic"]),
        ("has writing on it", ["graphic"]),
        ("has buttons and a belt", ["detail"]),
        ("is tied", ["detail"]),
        ("is nicer", ["other"]),
        ("", ["other"]),
    ],
)
def test_the_words_of_an_edit_give_its_kinds(caption, kinds):
    assert edit_kinds([caption]) == kinds


def test_the_kinds_of_all_captions_count_once_each():
    assert edit_kinds(["is red with a logo", "is bright red", "has a belt"]) == ["colour", "graphic", "detail"]
    assert edit_kinds([]) == ["other"]


def test_the_words_of_one_caption_do_not_run_into_the_next():
    assert edit_kinds(["is long", "sleeves are red"]) == ["colour", "sleeves", "length"]


# ------------------------------------------------------------------ tables


@pytest.fixture
def scored(make_scored):
    """Hats: red found, red and longer missed, longer tied at the edge; shoes: a logo far down, a belt found."""
    hats = make_scored(
        "m", "hat", [0, 40, 9], tied=[0, 0, 3], captions=[("is red",), ("is red", "is longer"), ("is longer",)]
    )
    shoes = make_scored("m", "shoe", [70, 3], captions=[("has a logo",), ("has a belt", "has a belt")])
    return [hats, shoes]


def test_recall_by_kind_counts_a_query_in_each_of_its_kinds(scored):
    table = kind_table(scored)
    values = dict(zip(table["kind"], table["value"], strict=True))
    assert values == {"graphic": 0, "length": pytest.approx((0 + 1 / 4) / 2), "colour": 0.5, "detail": 1}
    assert dict(zip(table["kind"], table["queries"], strict=True)) == {
        "graphic": 1, "length": 2, "colour": 2, "detail": 1,
    }  # fmt: skip
    assert table["kind"].tolist() == ["graphic", "length", "colour", "detail"]  # the worst first
    assert ((table["ci_low"] <= table["value"]) & (table["value"] <= table["ci_high"])).all()
    assert table.loc[table["kind"] == "detail", ["ci_low", "ci_high"]].values.tolist() == [[1, 1]]


def test_another_k_counts_other_hits(scored):
    values = kind_table(scored, k=50).set_index("kind")["value"]
    assert values.to_dict() == {"graphic": 0, "colour": 1, "length": 1, "detail": 1}


def test_misses_are_the_queries_not_surely_among_the_first_the_worst_on_top(scored):
    table = miss_table(scored)
    assert table["query"].tolist() == ["shoe-query-0", "hat-query-1", "hat-query-2"]
    assert table["rank"].tolist() == [71, 41, 11]  # 9 above and the middle of 3 tied
    assert table["category"].tolist() == ["shoe", "hat", "hat"]
    assert table["kinds"].tolist() == ["graphic", "colour, length", "length"]
    first = table.iloc[1]
    assert first["captions"] == "is red / is longer"
    assert (first["reference"], first["target"], first["top"]) == ("hat-1", "hat-2", "hat-3 hat-2")


def test_where_nothing_is_missed_the_table_is_empty_but_has_its_columns(make_scored):
    table = miss_table([make_scored("m", "hat", [0, 9])])
    assert len(table) == 0
    assert table.columns.tolist() == [
        "category", "query", "kinds", "rank", "captions", "reference", "target", "top",
    ]  # fmt: skip


def test_the_metrics_name_method_misses_and_recall_by_kind(scored, tmp_path):
    write_metrics("m", kind_table(scored), miss_table(scored), tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text()) == {
        "method": "m",
        "misses": 3,
        "recall@10": {"colour": 0.5, "detail": 1.0, "graphic": 0.0, "length": 0.125},
    }


# ------------------------------------------------------------------ methods


def test_the_best_method_has_the_highest_mean():
    rows = [
        ("a", "mean", "recall@10", 0.3), ("b", "mean", "recall@10", 0.5), ("c", "hat", "recall@10", 0.9),
        ("c", "mean", "recall@10", 0.4), ("a", "mean", "recall@50", 0.9),
    ]  # fmt: skip
    summary = pd.DataFrame(rows, columns=["method", "category", "metric", "value"])
    assert best_method(summary) == "b"
    assert best_method(summary, "recall@50") == "a"


def test_the_categories_of_one_method_are_found(make_scored):
    parts = [make_scored(m, c, [0]) for m in ("sum", "qformer") for c in ("hat", "shoe")]
    assert of_method(parts, "qformer") == parts[2:]


def test_an_unknown_method_names_those_there_are(make_scored):
    parts = [make_scored(m, c, [0]) for m in ("sum", "qformer") for c in ("hat", "shoe")]
    with pytest.raises(ParameterError) as caught:
        of_method(parts, "sun")
    assert str(caught.value) == "parameter 'method': no method 'sun' in this study, allowed: sum, qformer"


# ------------------------------------------------------------------ pictures


def test_a_picture_row_says_what_was_asked_found_and_wanted(scored):
    row = picture_row(scored[0], 2)
    path = scored[0].benchmark.path
    assert (row.reference, row.target) == (path("hat-2"), path("hat-3"))
    assert row.text == "is longer"
    assert row.results == [path("hat-4"), path("hat-3")]
    assert row.correct == [False, True]
    assert (row.rank, row.title) == (11, "hat")


def test_the_same_words_twice_are_shown_once(scored):
    assert edit_text(scored[0].benchmark.triplets[1]) == "is red and is longer"
    assert edit_text(scored[1].benchmark.triplets[1]) == "has a belt"


def test_the_worst_misses_of_a_kind_come_worst_first(make_scored):
    captions = [("is red",)] * 4 + [("is longer",)]
    part = make_scored("m", "hat", [20, 9, 60, 10, 99], captions=captions)
    assert [row.rank for row in worst_misses([part], "colour", 5)] == [61, 21, 11]
    assert [row.rank for row in worst_misses([part], "colour", 2)] == [61, 21]
    assert [row.rank for row in worst_misses([part], "length", 2)] == [100]
    assert worst_misses([part], "fit", 2) == []


def rows_in(figure) -> int:
    return sum(axes.get_label() == "edit" for axes in figure.axes)


def texts_in(figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def test_the_figure_shows_the_worst_of_each_kind_and_no_query_twice(make_scored):
    captions = [("is red", "is longer"), ("is longer",), ("is red",), ("has a belt",)]
    part = make_scored("m", "hat", [90, 20, 30, 0], captions=captions)
    kinds = kind_table([part])
    figure = worst_figure([part], kinds, per_kind=1)
    assert rows_in(figure) == 2  # a belt is never missed, and the query of two kinds stands once
    titles = [text for text in texts_in(figure) if text in ("colour", "length", "detail")]
    assert titles == kinds["kind"].tolist()[:2]
    ranks = [text for text in texts_in(figure) if text.startswith("target: rank ")]
    other = {"colour": "target: rank 21", "length": "target: rank 31"}[titles[0]]
    assert ranks == ["target: rank 91", other]
    assert rows_in(worst_figure([part], kinds, per_kind=9)) == 3


def test_without_misses_a_sentence_stands_for_the_figure(make_scored):
    part = make_scored("m", "hat", [0, 9])
    figure = worst_figure([part], kind_table([part]), per_kind=1)
    assert texts_in(figure) == ["Every target is among the first ten."]


def test_examples_are_drawn_from_every_category_and_by_the_seed(make_scored):
    parts = [make_scored("m", category, list(range(30))) for category in ("hat", "shoe")]
    rows = example_rows(parts, 5, seed=1)
    assert [row.title for row in rows] == ["hat", "shoe", "hat", "shoe", "hat"]
    assert example_rows(parts, 5, seed=1) == rows
    assert example_rows(parts, 5, seed=2) != rows
    assert len({row.rank for row in rows}) > 1
