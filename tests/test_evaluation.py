"""Scoring methods on benchmarks: tables against numbers worked out by hand, and files that come back unchanged."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch

from cirlib.evaluation import (
    COLUMNS,
    average_texts,
    compare,
    metrics_tree,
    protocol_name,
    query_texts,
    read_ranks,
    recalls_by_method,
    result_table,
    score,
    summarise,
    top_rows,
    write_ranks,
    write_results,
)
from cirlib.params import Evaluation

REMOVED, KEPT = Evaluation(), Evaluation(reference="kept")


@pytest.fixture
def scored(make_scored):
    """Two methods on hats (4 queries, 100 candidates) and shoes (2 queries, 50 candidates)."""
    return [
        make_scored("sum", "hat", [0, 4, 9, 30]),
        make_scored("sum", "shoe", [0, 60], size=51),
        make_scored("qformer", "hat", [0, 0, 0, 10]),
        make_scored("qformer", "shoe", [9, 3], tied=[1, 0], size=51),
    ]


def value(table: pd.DataFrame, method: str, category: str, metric: str, column: str = "value"):
    row = table[(table["method"] == method) & (table["category"] == category) & (table["metric"] == metric)]
    assert len(row) == 1
    return row[column].item()


# ------------------------------------------------------------------ scoring


def unit(*angles: float) -> torch.Tensor:
    """Vectors in the plane at these angles (degrees)."""
    radians = torch.deg2rad(torch.tensor(angles))
    return torch.stack([radians.cos(), radians.sin()], 1)


@pytest.fixture
def fan(make_benchmark):
    """Five images at 0°, 20°, … 80°; query 0 from a to c, query 1 from e to a."""
    return make_benchmark([("a", "c", "is x"), ("e", "a", "is y")], list("abcde")), unit(0, 20, 40, 60, 80)


def test_the_reference_is_ranked_or_not_as_the_protocol_says(fan):
    benchmark, gallery = fan
    queries = unit(3, 75)  # nearest: a b c d e; e d c b a
    kept = score("m", "hat", queries, gallery, benchmark, KEPT)
    assert kept.ranks.above.tolist() == [2, 4]
    assert kept.top == [list("abcde"), list("edcba")]
    assert kept.candidates == 5
    removed = score("m", "hat", queries, gallery, benchmark, REMOVED)
    assert removed.ranks.above.tolist() == [1, 3]
    assert removed.top == [list("bcde"), list("dcba")]
    assert removed.candidates == 4
    assert (removed.method, removed.category) == ("m", "hat")
    assert removed.protocol == "original gallery, reference removed, captions joined: and"


def test_recall_counts_ties_by_expectation(make_scored):
    one = make_scored("m", "hat", [0, 9, 8, 10], tied=[0, 1, 3, 5])
    np.testing.assert_allclose(one.recall(10), [1, 1 / 2, 2 / 4, 0])
    np.testing.assert_allclose(one.recall(1), [1, 0, 0, 0])


def test_an_image_of_several_tokens_scores_by_its_best(make_benchmark):
    benchmark = make_benchmark([("a", "b", "is x")], ["a", "b", "c"])
    gallery = torch.stack([unit(0, 180), unit(170, 50), unit(60, 200)])  # best at 45°: 45, 5 and 15 degrees away
    one = score("m", "hat", unit(45), gallery, benchmark, KEPT)
    assert one.ranks.above.tolist() == [0]
    assert one.top == [["b", "c", "a"]]


@pytest.mark.parametrize("tokens", [None, 3])
@pytest.mark.parametrize("excluding", [True, False])
def test_the_best_rows_are_those_of_a_full_sort(tokens, excluding):
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(300, 6, generator=generator)  # more than are scored at once
    gallery = torch.randn(*((9, tokens) if tokens else (9,)), 6, generator=generator)
    exclude = [i % 9 for i in range(300)] if excluding else None
    got = top_rows(queries, gallery, exclude, 5)
    for i, query in enumerate(queries):
        scores = [max(float(query @ token) for token in image.reshape(-1, 6)) for image in gallery]
        order = sorted(range(9), key=lambda row: -scores[row])
        assert got[i] == [row for row in order if not excluding or row != i % 9][:5]


def test_an_excluded_image_is_in_no_list_however_small_the_gallery():
    assert top_rows(unit(0, 50), unit(0, 30, 60), [0, 2], 5) == [[1, 2], [1, 0]]
    assert top_rows(unit(0), unit(60, 30), None, 5) == [[1, 0]]


def test_texts_are_listed_with_the_query_they_belong_to(make_benchmark):
    benchmark = make_benchmark([("a", "b", "is red", "is big."), ("b", "a", "is new", "is new")], ["a", "b"])
    texts, rows = query_texts(benchmark, "both_orders")
    assert texts == ["is red and is big", "is big and is red", "is new and is new"]
    assert rows.tolist() == [0, 0, 1]
    texts, rows = query_texts(benchmark, "and")
    assert texts == ["Is red and is big", "Is new and is new"]
    assert rows.tolist() == [0, 1]


def test_the_texts_of_a_query_are_averaged_and_have_unit_length():
    got = average_texts(unit(0, 60, 100), np.array([0, 0, 1]), 2)
    torch.testing.assert_close(got, unit(30, 100))


def test_a_protocol_is_said_in_words():
    rules = Evaluation(gallery="val_split", reference="kept", captions="template")
    assert protocol_name(rules) == "val split gallery, reference kept, captions joined: template"


# ------------------------------------------------------------------ tables


def test_the_summary_is_what_is_worked_out_by_hand(scored):
    table = summarise(scored)
    assert table.columns.tolist() == list(COLUMNS)
    assert len(table) == 2 * 3 * 4  # methods, hat and shoe and mean, four k
    expected = {
        ("sum", "hat"): [1 / 4, 2 / 4, 3 / 4, 1],
        ("sum", "shoe"): [1 / 2, 1 / 2, 1 / 2, 1 / 2],
        ("sum", "mean"): [3 / 8, 1 / 2, 5 / 8, 3 / 4],
        ("qformer", "hat"): [3 / 4, 3 / 4, 3 / 4, 1],
        ("qformer", "shoe"): [0, 1 / 2, 3 / 4, 1],  # the tie counts a half at 10
        ("qformer", "mean"): [3 / 8, 5 / 8, 3 / 4, 1],
    }
    for (method, category), values in expected.items():
        for k, wanted in zip((1, 5, 10, 50), values, strict=True):
            assert value(table, method, category, f"recall@{k}") == pytest.approx(wanted)
    assert [value(table, "sum", c, "recall@10", "queries") for c in ("hat", "shoe", "mean")] == [4, 2, 6]
    assert [value(table, "sum", c, "recall@10", "gallery") for c in ("hat", "shoe", "mean")] == [100, 50, 75]
    chances = [value(table, "sum", c, "recall@10", "chance") for c in ("hat", "shoe", "mean")]
    assert chances == pytest.approx([0.1, 0.2, 0.15])
    assert value(table, "sum", "shoe", "recall@50", "chance") == 1
    assert table["complete"].all()


def test_intervals_hold_their_value_and_have_no_width_where_nothing_varies(scored):
    table = summarise(scored)
    assert (table["ci_low"] <= table["value"] + 1e-12).all()
    assert (table["value"] <= table["ci_high"] + 1e-12).all()
    assert value(table, "sum", "hat", "recall@50", "ci_low") == value(table, "sum", "hat", "recall@50", "ci_high") == 1
    assert value(table, "sum", "hat", "recall@10", "ci_low") < 0.75 < value(table, "sum", "hat", "recall@10", "ci_high")


def test_a_mean_with_one_incomplete_category_is_incomplete(make_scored):
    parts = [make_scored("m", "hat", [0]), make_scored("m", "shoe", [3], complete=False)]
    table = summarise(parts, ks=(10,))
    assert dict(zip(table["category"], table["complete"], strict=True)) == {"hat": True, "shoe": False, "mean": False}


def test_recalls_of_a_method_are_its_categories_one_after_the_other(scored):
    recalls = recalls_by_method(scored, 10)
    assert list(recalls) == ["sum", "qformer"]
    np.testing.assert_allclose(recalls["sum"], [1, 1, 1, 0, 1, 0])
    np.testing.assert_allclose(recalls["qformer"], [1, 1, 1, 0, 0.5, 1])


def test_methods_are_compared_query_by_query(scored):
    table = compare(scored, "sum")
    assert table["method"].tolist() == ["qformer"]
    assert table["against"].tolist() == ["sum"]
    assert table["metric"].tolist() == ["recall@10"]
    assert table["difference"].item() == pytest.approx((-0.5 + 1) / 6)
    # of the four ways to sign the changes 1/2 and 1, all are at least 1/2 away from nought
    assert table["p"].item() == pytest.approx(1)


def test_a_difference_on_every_query_is_told_from_chance_and_corrected_for_the_tests_made(make_scored):
    parts = [
        make_scored("base", "hat", [50] * 12),
        make_scored("better", "hat", [0] * 12),
        make_scored("same", "hat", [50] * 12),
        make_scored("worse at one", "hat", [50] * 12),
    ]
    table = compare(parts, "base", seed=1).set_index("method")
    assert table.loc["better", "difference"] == 1
    assert 2 / 2**12 / 3 < table.loc["better", "p"] < 3 * 2 / 2**12  # exact: 2 of 4,096 sign patterns
    assert table.loc["better", "p_holm"] == pytest.approx(3 * table.loc["better", "p"])
    assert table.loc["same", ["difference", "p", "p_holm"]].tolist() == [0, 1, 1]


def test_a_method_compared_with_no_other_gives_no_rows(make_scored):
    assert len(compare([make_scored("only", "hat", [0, 3])], "only")) == 0


def test_the_tree_for_metrics_is_rounded_and_by_method(scored):
    tree = metrics_tree(summarise(scored))
    assert list(tree) == ["sum", "qformer"]
    assert tree["sum"]["mean/recall@10"] == 0.625
    assert len(tree["qformer"]) == 12
    third = summarise([scored[0]], ks=(10,)).assign(value=1 / 3)
    assert set(metrics_tree(third)["sum"].values()) == {0.333333}


def test_the_table_for_reading_has_percent_with_its_interval_and_chance(scored):
    table = result_table(summarise(scored))
    assert table.index.tolist() == ["sum", "qformer", "chance"]
    assert table.columns.tolist() == ["recall@1", "recall@5", "recall@10", "recall@50"]
    assert table.loc["qformer", "recall@10"].startswith("75.0 [")
    assert table.loc["chance"].tolist() == ["1.5", "7.5", "15", "75"]
    hats = result_table(summarise(scored), "hat")
    assert hats.loc["sum", "recall@50"] == "100.0 [100.0, 100.0]"


# ------------------------------------------------------------------ files


def assert_same(got: list, expected: list) -> None:
    assert [(one.method, one.category) for one in got] == [(one.method, one.category) for one in expected]
    for a, b in zip(got, expected, strict=True):
        assert a.ranks.above.tolist() == b.ranks.above.tolist()
        assert a.ranks.tied.tolist() == b.ranks.tied.tolist()
        assert (a.top, a.protocol, a.reference_removed) == (b.top, b.protocol, b.reference_removed)
        assert a.benchmark is b.benchmark


def test_ranks_written_come_back(scored, tmp_path):
    write_ranks(scored, tmp_path / "ranks.csv")
    # every method shares its category's benchmark, as those of a study do
    benchmarks = {one.category: one.benchmark for one in scored[2:]}
    got = read_ranks(tmp_path / "ranks.csv", benchmarks, REMOVED)
    expected = [type(one)(**{**vars(one), "benchmark": benchmarks[one.category]}) for one in scored]
    assert_same(got, expected)
    assert summarise(got).equals(summarise(scored))


def test_the_ranks_file_has_a_row_a_query(scored, tmp_path):
    write_ranks(scored[:1], tmp_path / "ranks.csv")
    lines = (tmp_path / "ranks.csv").read_text().splitlines()
    assert lines[0] == "method,category,query,target,above,tied,top"
    assert lines[1] == "sum,hat,hat-query-0,hat-1,0,0,hat-2 hat-1"
    assert len(lines) == 5


def test_names_that_look_like_something_else_come_back_as_they_were(make_scored, make_benchmark, tmp_path):
    """Numbers, what a CSV reader takes for missing, and file names with spaces and quotes."""
    ids = ["007", "NA", "nan", "red hat (1)", "it's", 'a "b"']
    one = make_scored("null", "2024", [3, 0])
    benchmark = make_benchmark([("007", "NA", "x"), ("nan", "it's", "y")], ids, "2024")
    odd = type(one)(**{**vars(one), "benchmark": benchmark, "top": [["NA"], ids[2:]]})
    write_ranks([odd], tmp_path / "ranks.csv")
    assert_same(read_ranks(tmp_path / "ranks.csv", {"2024": benchmark}, REMOVED), [odd])


def test_results_are_a_table_a_tree_and_ranks(scored, tmp_path):
    summary = write_results(scored, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.json", "ranks.csv", "summary.csv"]
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "summary.csv"), summary.round(6), check_dtype=False)
    tree = json.loads((tmp_path / "metrics.json").read_text())
    assert tree["qformer"]["shoe/recall@5"] == 0.5


def test_nothing_scored_gives_empty_files_that_read_back_empty(tmp_path):
    summary = write_results([], tmp_path)
    assert summary.columns.tolist() == list(COLUMNS)
    assert len(summary) == len(pd.read_csv(tmp_path / "summary.csv")) == 0
    assert json.loads((tmp_path / "metrics.json").read_text()) == {}
    assert read_ranks(tmp_path / "ranks.csv", {}, REMOVED) == []
    assert recalls_by_method([], 10) == {}
