"""Files of scores: they come back unchanged, or say which command makes them again."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from cirlib.benchmarks import Benchmark, BenchmarkError, Triplet
from cirlib.retrieval.result_files import read_ranks, write_results
from cirlib.retrieval.scoring import SUMMARY_COLUMNS, score, summarise
from cirlib.study.parameters import Evaluation

REMOVED = Evaluation()


@pytest.fixture
def scored(make_scored):
    """Two methods on hats and shoes, whose benchmarks they share."""
    parts = [make_scored(m, c, a) for m, c, a in (("sum", "hat", [0, 4, 9, 30]), ("sum", "shoe", [0, 60]))]
    return parts + [replace(one, method="qformer") for one in parts]


def assert_same(got: list, expected: list) -> None:
    for a, b in zip(got, expected, strict=True):
        assert (a.method, a.category, a.top, a.protocol) == (b.method, b.category, b.top, b.protocol)
        assert (a.ranks.above == b.ranks.above).all() and (a.ranks.tied == b.ranks.tied).all()
        assert a.benchmark is b.benchmark and a.reference_removed == b.reference_removed
        assert {m: v.tolist() for m, v in a.extra.items()} == {m: v.tolist() for m, v in b.extra.items()}


@pytest.mark.parametrize("name", ["cirr", "circo"])
def test_what_cirr_and_circo_are_scored_by_comes_back_too(name, tmp_path):
    triplets = [Triplet(str(i), "a", ("x",), (target,), None, ("b", "c", "d")) for i, target in enumerate("bc")]
    benchmark = Benchmark(name, "val", triplets, list("abcd"), dict.fromkeys("abcd", "no file"))
    scored = [score("m", name, torch.randn(2, 8), torch.randn(4, 8), benchmark, REMOVED)]
    write_results(scored, tmp_path)
    got = read_ranks(tmp_path / "ranks.csv", {name: benchmark}, REMOVED)
    assert_same(got, scored)
    assert got[0].extra and summarise(got).equals(summarise(scored))


def test_names_that_look_like_something_else_come_back_as_they_were(make_scored, make_benchmark, tmp_path):
    """Numbers, what a CSV reader takes for missing, and file names with spaces and quotes."""
    ids = ["007", "NA", "nan", "red hat (1)", "it's", 'a "b"']
    benchmark = make_benchmark([("007", "NA", "x"), ("nan", "it's", "y")], ids, "2024")
    odd = replace(make_scored("null", "2024", [3, 0]), benchmark=benchmark, top=[["NA"], ids[2:]])
    write_results([odd], tmp_path)
    assert_same(read_ranks(tmp_path / "ranks.csv", {"2024": benchmark}, REMOVED), [odd])


def test_results_are_a_table_and_ranks_that_come_back(scored, tmp_path):
    summary = write_results(scored, tmp_path)
    got = read_ranks(tmp_path / "ranks.csv", {one.category: one.benchmark for one in scored}, REMOVED)
    assert_same(got, scored)
    assert summarise(got).equals(summary)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "summary.csv"), summary.round(6), check_dtype=False)


def test_nothing_scored_gives_empty_files_that_read_back_empty(tmp_path):
    summary = write_results([], tmp_path)
    assert summary.columns.tolist() == list(SUMMARY_COLUMNS)
    assert len(summary) == len(pd.read_csv(tmp_path / "summary.csv")) == 0
    assert read_ranks(tmp_path / "ranks.csv", {}, REMOVED) == []


def test_ranks_of_another_protocol_are_not_taken_for_this_runs(scored, tmp_path):
    write_results(scored, tmp_path)
    other = REMOVED.model_copy(update={"captions": "first"})
    with pytest.raises(BenchmarkError, match=r"was measured under another protocol .* than this run's"):
        read_ranks(tmp_path / "ranks.csv", {one.category: one.benchmark for one in scored}, other)


@pytest.mark.parametrize("damage", ["half", "other query", "other category"])
def test_ranks_that_are_cut_off_or_of_other_data_say_which_command_makes_them(scored, tmp_path, damage):
    file = tmp_path / "zero_shot" / "ranks.csv"
    file.parent.mkdir()
    write_results(scored, file.parent)
    benchmarks = {one.category: one.benchmark for one in scored}
    text = file.read_text()
    if damage == "other category":
        benchmarks = {"hat": benchmarks["hat"]}
    else:
        cut = text[: text.index("qformer") - 20]  # in the middle of a row of the first method
        file.write_text(cut if damage == "half" else text.replace("hat-query-0", "hat-query-9"))
    with pytest.raises(BenchmarkError, match=r"ranks\.csv is cut off or was measured on other data.*--force zero_shot"):
        read_ranks(file, benchmarks, REMOVED)
