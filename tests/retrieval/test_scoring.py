"""Scoring methods on benchmarks: tables against numbers worked out by hand, and files that come back unchanged."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from cirlib.benchmarks import Benchmark, BenchmarkError, Triplet, load_benchmark, query_texts
from cirlib.retrieval.measures import CIRR_MEAN
from cirlib.retrieval.ranks import chance_average_precision
from cirlib.retrieval.scoring import (
    COLUMNS,
    average_texts,
    compare,
    metrics_tree,
    protocol_name,
    read_ranks,
    result_table,
    score,
    summarise,
    top_rows,
    write_ranks,
    write_results,
)
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


def test_categories_are_paired_by_their_names_not_their_order(scored):
    table = compare([*scored[:2], *scored[:1:-1]], "sum")
    pd.testing.assert_frame_equal(table, compare(scored, "sum"))


def test_what_cannot_be_paired_is_refused(scored, make_scored):
    with pytest.raises(ValueError, match=r"no method 'slerp' to compare with, there are sum, qformer"):
        compare(scored, "slerp")
    with pytest.raises(ValueError, match="qformer has the categories hat, sum has hat, shoe"):
        compare(scored[:3], "sum")
    kept = [replace(one, protocol="original gallery, reference kept") for one in scored[2:]]
    with pytest.raises(ValueError, match="qformer was scored with original gallery, reference kept, sum with"):
        compare([*scored[:2], *kept], "sum")


def test_a_category_twice_or_named_as_the_average_is_refused(scored, make_scored):
    with pytest.raises(ValueError, match="category 'hat' is there twice for 'sum'"):
        summarise([*scored, scored[0]])
    with pytest.raises(ValueError, match="category 'mean' is the name of the average"):
        summarise([make_scored("m", "mean", [0])])


def test_methods_are_compared_query_by_query(scored):
    table = compare(scored, "sum")
    assert table["method"].tolist() == ["qformer"]
    assert table["against"].tolist() == ["sum"]
    assert table["metric"].tolist() == ["recall@10"]
    assert table["difference"].item() == pytest.approx(
        (-0.5 + 1) / 2 / 2
    )  # nought on hats; as the means of the summary differ
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


# ------------------------------------------------------------------ CIRR and CIRCO


@pytest.fixture
def cirr():
    """Seven images at 0°, 10°, … 60°: query 0 from a to c among b … f, query 1 from g to b among the same."""
    subset = tuple("bcdef")
    triplets = [
        Triplet("12", "a", ("is x",), ("c",), None, subset),
        Triplet("10", "g", ("is y",), ("b",), None, subset),
    ]
    return Benchmark("cirr", "val", triplets, list("abcdefg"), dict.fromkeys("abcdefg", "no file"))


@pytest.fixture
def circo():
    """Seventy images; query 0 wants three of them, query 1 one."""
    ids = [str(i) for i in range(70)]
    triplets = [
        Triplet("0", "69", ("is x",), ("0", "2", "60"), None),
        Triplet("1", "0", ("is y",), ("30",), None),
    ]
    return Benchmark("circo", "val", triplets, ids, dict.fromkeys(ids, "no file"))


def test_cirr_has_subset_recall_and_the_mean_that_methods_are_ordered_by(cirr):
    one = score("m", "cirr", unit(12, 33), unit(*range(0, 70, 10)), cirr, REMOVED)
    # query 0 at 12°: b, (a out), c; query 1 at 33°: d, e, c, f, b: its subset has the same order
    assert one.ranks.above.tolist() == [1, 4]
    values = {m: one.values(m).tolist() for m in one.metrics}
    assert values == {
        "recall@1": [0, 0],
        "recall@5": [1, 1],
        "recall@10": [1, 1],
        "recall@50": [1, 1],
        "recall_subset@1": [0, 0],
        "recall_subset@2": [1, 0],
        "recall_subset@3": [1, 0],
        CIRR_MEAN: [0.5, 0.5],
    }
    table = summarise([one])
    assert value(table, "m", "cirr", "recall_subset@2") == 0.5
    assert value(table, "m", "mean", CIRR_MEAN) == 0.5
    assert value(table, "m", "cirr", "recall_subset@2", "chance") == pytest.approx(2 / 5)
    assert value(table, "m", "cirr", "recall_subset@2", "gallery") == 5
    assert value(table, "m", "cirr", CIRR_MEAN, "chance") == pytest.approx((5 / 6 + 1 / 5) / 2)
    assert value(table, "m", "cirr", CIRR_MEAN, "gallery") == 6


def test_circo_has_average_precision_over_all_targets(circo):
    scores = torch.arange(70, 0, -1.0)  # image 0 is best
    gallery = torch.stack([scores, scores], 1)
    one = score("m", "circo", torch.eye(2), gallery, circo, KEPT)
    first = [(1 + 2 / 3) / 3] * 4  # hits at 1 and 3; the third comes after 50
    np.testing.assert_allclose([one.values(f"map@{k}")[0] for k in (5, 10, 25, 50)], first)
    np.testing.assert_allclose([one.values(f"map@{k}")[1] for k in (5, 10, 25, 50)], [0, 0, 0, 1 / 31])
    assert one.recall(1).tolist() == [1, 0]
    assert [len(images) for images in one.top] == [5, 5]
    table = summarise([one])
    chances = [chance_average_precision(10, wanted, 70) for wanted in (3, 1)]
    assert value(table, "m", "circo", "map@10", "chance") == pytest.approx(np.mean(chances))
    removed = score("m", "circo", torch.eye(2), gallery, circo, REMOVED)
    np.testing.assert_allclose(removed.values("map@50")[1], 1 / 30)


def test_a_gallery_smaller_than_k_has_the_precision_of_all_of_it(circo):
    small = Benchmark("circo", "val", [Triplet("0", "a", ("x",), ("b", "c"), None)], list("abc"), {})
    one = score("m", "circo", torch.ones(1, 1), torch.tensor([[3.0], [1.0], [2.0]]), small, KEPT)
    assert one.values("map@50").tolist() == [pytest.approx((1 / 2 + 2 / 3) / 2)]


def test_recall_alone_can_be_asked_for_on_every_benchmark(cirr):
    one = score("m", "cirr", unit(12, 33), unit(*range(0, 70, 10)), cirr, REMOVED)
    assert summarise([one], (10,))["metric"].tolist() == ["recall@10", "recall@10"]


def test_methods_are_compared_by_several_metrics_with_one_correction(cirr):
    gallery = unit(*range(0, 70, 10))
    scored = [score(m, "cirr", unit(*q), gallery, cirr, REMOVED) for m, q in {"a": (20, 10), "b": (12, 33)}.items()]
    table = compare(scored, "b", ["recall@1", "recall_subset@1", CIRR_MEAN])
    assert table["metric"].tolist() == ["recall@1", "recall_subset@1", CIRR_MEAN]
    assert table["difference"].tolist() == [1, 1, 0.5]
    assert (table["p_holm"] == (3 * table["p"]).clip(upper=1)).all()


@pytest.mark.parametrize("reference", ["kept", "removed"])
def test_cirr_on_the_real_annotations_equals_a_full_sort(real_data, reference):
    benchmark = load_benchmark("cirr", real_data("cirr"))
    rng = np.random.default_rng(0)
    queries, gallery = rng.standard_normal((4181, 12)), rng.standard_normal((2297, 12))
    rules = Evaluation(reference=reference)
    one = score("m", "cirr", torch.from_numpy(queries), torch.from_numpy(gallery), benchmark, rules)
    order, names = np.argsort(-(queries @ gallery.T)), np.array(benchmark.gallery)
    hits = {f"{name}@{k}": [] for name, ks in (("recall", (1, 5, 10, 50)), ("recall_subset", (1, 2, 3))) for k in ks}
    for triplet, ranked in zip(benchmark.triplets, names[order], strict=True):
        images = [i for i in ranked if reference == "kept" or i != triplet.reference]
        members = [i for i in images if i in triplet.subset]
        for metric, found in hits.items():
            k = int(metric.split("@")[1])
            found.append(triplet.targets[0] in (members if "subset" in metric else images)[:k])
    for metric, found in hits.items():
        assert one.values(metric).tolist() == found
    wanted = np.mean([hits["recall@5"], hits["recall_subset@1"]], 0)
    np.testing.assert_array_equal(one.values(CIRR_MEAN), wanted)


def test_circo_on_the_real_annotations_equals_a_full_sort(real_data, write_json, tmp_path):
    records = json.loads((real_data("circo") / "annotations" / "val.json").read_text())
    images = {i for r in records for i in (r["reference_img_id"], *r["gt_img_ids"])} | set(range(300))
    write_json(tmp_path / "annotations" / "val.json", records)
    info = {"images": [{"id": i} for i in sorted(images)]}
    write_json(tmp_path / "annotations" / "image_info_unlabeled2017.json", info)
    benchmark = load_benchmark("circo", tmp_path)
    rng = np.random.default_rng(0)
    queries, gallery = rng.standard_normal((220, 12)), rng.standard_normal((len(images), 12))
    one = score("m", "circo", torch.from_numpy(queries), torch.from_numpy(gallery), benchmark, KEPT)
    order = np.argsort(-(queries @ gallery.T))
    for row, triplet in enumerate(benchmark.triplets):
        relevant = np.isin(np.array(benchmark.gallery)[order[row]], triplet.targets)
        for k in (5, 10, 25, 50):  # as CIRCO's own evaluation has it
            precision = np.cumsum(relevant[:k]) / np.arange(1, k + 1) * relevant[:k]
            assert one.values(f"map@{k}")[row] == pytest.approx(precision.sum() / min(k, len(triplet.targets)))


# ------------------------------------------------------------------ files


def assert_same(got: list, expected: list) -> None:
    assert [(one.method, one.category) for one in got] == [(one.method, one.category) for one in expected]
    for a, b in zip(got, expected, strict=True):
        assert a.ranks.above.tolist() == b.ranks.above.tolist()
        assert a.ranks.tied.tolist() == b.ranks.tied.tolist()
        assert (a.top, a.protocol, a.reference_removed) == (b.top, b.protocol, b.reference_removed)
        assert a.benchmark is b.benchmark
        assert {m: v.tolist() for m, v in a.extra.items()} == {m: v.tolist() for m, v in b.extra.items()}


def test_ranks_written_come_back(scored, tmp_path):
    write_ranks(scored, tmp_path / "ranks.csv")
    # every method shares its category's benchmark, as those of a study do
    benchmarks = {one.category: one.benchmark for one in scored[2:]}
    got = read_ranks(tmp_path / "ranks.csv", benchmarks, REMOVED)
    expected = [type(one)(**{**vars(one), "benchmark": benchmarks[one.category]}) for one in scored]
    assert_same(got, expected)
    assert summarise(got).equals(summarise(scored))


def test_what_cirr_and_circo_are_scored_by_comes_back_too(cirr, circo, tmp_path):
    generator = torch.Generator().manual_seed(0)
    for benchmark in (cirr, circo):
        features = torch.randn(2 + len(benchmark.gallery), 8, generator=generator)
        scored = [score("m", benchmark.name, features[:2], features[2:], benchmark, REMOVED)]
        write_ranks(scored, tmp_path / "ranks.csv")
        got = read_ranks(tmp_path / "ranks.csv", {benchmark.name: benchmark}, REMOVED)
        assert_same(got, scored)
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


@pytest.mark.parametrize("damage", ["half", "other query", "other category"])
def test_ranks_that_are_cut_off_or_of_other_data_say_which_command_makes_them(scored, tmp_path, damage):
    file = tmp_path / "zero_shot" / "ranks.csv"
    file.parent.mkdir()
    write_ranks(scored, file)
    benchmarks = {one.category: one.benchmark for one in scored}
    text = file.read_text()
    if damage == "other category":
        benchmarks = {"hat": benchmarks["hat"]}
    else:
        cut = text[: text.index("qformer") - 20]  # in the middle of a row of the first method
        file.write_text(cut if damage == "half" else text.replace("hat-query-0", "hat-query-9"))
    with pytest.raises(BenchmarkError, match=r"ranks\.csv is cut off or was measured on other data.*--force zero_shot"):
        read_ranks(file, benchmarks, REMOVED)
