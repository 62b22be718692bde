"""Scoring methods on benchmarks: ranks and tables against numbers worked out by hand."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from cirlib.retrieval.scoring import SUMMARY_COLUMNS, average_texts, compare, result_table, score, summarise
from cirlib.retrieval.statistics import clopper_pearson
from cirlib.study.parameters import Evaluation

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
    assert (kept.target_ranks, removed.target_ranks) == ([3, 5], [2, 4])


def test_the_texts_of_a_query_are_averaged_and_have_unit_length():
    got = average_texts(unit(0, 60, 100), np.array([0, 0, 1]), 2)
    torch.testing.assert_close(got, unit(30, 100))


def test_the_summary_is_what_is_worked_out_by_hand(scored):
    table = summarise(scored)
    assert table.columns.tolist() == list(SUMMARY_COLUMNS)
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
    ends = [value(table, "sum", "hat", "recall@50", end) for end in ("ci_low", "ci_high")]
    assert tuple(ends) == clopper_pearson(4, 4)
    assert value(table, "sum", "hat", "recall@10", "ci_low") < 0.75 < value(table, "sum", "hat", "recall@10", "ci_high")


def test_a_mean_with_one_incomplete_category_is_incomplete(make_scored):
    table = summarise([make_scored("m", "hat", [0]), make_scored("m", "shoe", [3], complete=False)], ks=(10,))
    assert table["complete"].tolist() == [True, False, False]


def test_categories_are_paired_by_their_names_not_their_order(scored):
    table = compare([*scored[:2], *scored[:1:-1]], "sum")
    pd.testing.assert_frame_equal(table, compare(scored, "sum"))


def test_what_cannot_be_paired_is_refused(scored):
    with pytest.raises(ValueError, match=r"no method 'slerp' to compare with, there are sum, qformer"):
        compare(scored, "slerp")
    kept = [replace(one, protocol="original gallery, reference kept") for one in scored[2:]]
    for others in (scored[2:3], kept, [replace(one, benchmark=scored[0].benchmark) for one in scored[2:]]):
        with pytest.raises(ValueError, match="qformer and sum must have the same categories, queries and protocol"):
            compare([*scored[:2], *others], "sum")


def test_a_category_twice_is_refused(scored):
    with pytest.raises(ValueError, match="category 'hat' of 'sum' is there twice"):
        summarise([*scored, scored[0]])


def test_methods_are_compared_query_by_query(scored):
    table = compare(scored, "sum")
    assert table[["method", "against", "metric"]].values.tolist() == [["qformer", "sum", "recall@10"]]
    assert table["difference"].item() == pytest.approx(0.125)  # as the means of the summary differ
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


def test_the_table_for_reading_has_percent_with_its_interval_and_chance(scored):
    table = result_table(summarise(scored))
    assert table.index.tolist() == ["weighted sum", "Q-Former", "chance"]
    assert table.columns.tolist() == ["recall@1", "recall@5", "recall@10", "recall@50"]
    assert table.loc["Q-Former", "recall@10"].startswith("75.0 [")
    assert table.loc["chance"].tolist() == ["1.5", "7.5", "15", "75"]
    hats = result_table(summarise(scored), "hat")
    assert hats.loc["weighted sum", "recall@50"] == "100.0 [39.8, 100.0]"
