"""Files for the CIRR and CIRCO test servers."""

from __future__ import annotations

import json

import pytest

from cirlib.benchmarks import Benchmark, BenchmarkError, Triplet, load_benchmark
from cirlib.retrieval.server_files import write_circo, write_cirr

NAMES = [f"test1-{i}" for i in range(60)]
NUMBERS = [str(i) for i in range(100, 160)]


@pytest.fixture
def cirr():
    triplets = [
        Triplet("7", NAMES[0], ("a",), (), None, tuple(NAMES[1:6])),
        Triplet("3", NAMES[9], ("b",), (), None, tuple(NAMES[10:15])),
    ]
    return Benchmark("cirr", "test1", triplets, NAMES, dict.fromkeys(NAMES, "no file"))


@pytest.fixture
def circo():
    triplets = [Triplet(str(i), NUMBERS[i], ("a",), (), None) for i in range(2)]
    return Benchmark("circo", "test", triplets, NUMBERS, dict.fromkeys(NUMBERS, "no file"))


@pytest.fixture
def recall():
    return {"3": NAMES[10:60], "7": NAMES[1:51]}


def test_cirr_recall_is_written_in_the_servers_format(tmp_path, cirr, recall):
    write_cirr(tmp_path / "new" / "recall.json", recall, "recall", cirr)
    written = json.loads((tmp_path / "new" / "recall.json").read_text())
    assert written == {"version": "rc2", "metric": "recall", "7": NAMES[1:51], "3": NAMES[10:60]}
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["recall.json"]


def test_cirr_subset_recall_is_written_in_the_servers_format(tmp_path, cirr):
    ranked = {"7": NAMES[3:6], "3": (NAMES[12], NAMES[10], NAMES[14])}
    write_cirr(tmp_path / "subset.json", ranked, "recall_subset", cirr)
    written = json.loads((tmp_path / "subset.json").read_text())
    assert written["metric"] == "recall_subset"
    assert written["3"] == [NAMES[12], NAMES[10], NAMES[14]]


def test_circo_is_written_with_numbers_and_may_hold_the_reference(tmp_path, circo):
    write_circo(tmp_path / "circo.json", {"0": NUMBERS[:50], "1": NUMBERS[10:]}, circo)
    written = json.loads((tmp_path / "circo.json").read_text())
    assert written == {"0": list(range(100, 150)), "1": list(range(110, 160))}


def test_a_ranking_of_the_real_test_split_is_accepted(real_data, tmp_path):
    test = load_benchmark("cirr", real_data("cirr"), split="test1")
    top = {t.id: [i for i in test.gallery[:51] if i != t.reference][:50] for t in test.triplets}
    write_cirr(tmp_path / "recall.json", top, "recall", test)
    write_cirr(tmp_path / "subset.json", {t.id: t.subset[:3] for t in test.triplets}, "recall_subset", test)
    assert len(json.loads((tmp_path / "recall.json").read_text())) == 4_148 + 2
    assert len(json.loads((tmp_path / "subset.json").read_text())) == 4_148 + 2


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"3": NAMES[10:59]}, "Query '3': 49 images, expected exactly 50"),
        ({"3": [NAMES[10], *NAMES[10:59]]}, "Query '3': 'test1-10' appears more than once"),
        ({"3": ["x", *NAMES[10:59]]}, "Query '3': 'x' is not in the gallery"),
        ({"3": NAMES[9:59]}, "Query '3': the list holds the query's own reference 'test1-9'"),
        ({"8": NAMES[10:60]}, "1 lists are of no query of cirr test1, the first is '8'"),
    ],
)
def test_bad_cirr_lists_are_refused_and_nothing_is_written(tmp_path, cirr, recall, change, sentence):
    with pytest.raises(BenchmarkError, match=sentence):
        write_cirr(tmp_path / "recall.json", {**recall, **change}, "recall", cirr)
    assert list(tmp_path.iterdir()) == []


def test_a_query_without_a_list_is_refused_by_name(tmp_path, cirr, circo, recall):
    del recall["7"]
    with pytest.raises(BenchmarkError, match="1 of 2 queries have no list, the first is '7'"):
        write_cirr(tmp_path / "recall.json", recall, "recall", cirr)
    with pytest.raises(BenchmarkError, match="2 of 2 queries have no list, the first is '0'"):
        write_circo(tmp_path / "circo.json", {}, circo)


def test_a_subset_list_holds_members_of_the_subset_only(tmp_path, cirr):
    with pytest.raises(BenchmarkError, match="Query '7': 'test1-20' is not in the query's subset"):
        write_cirr(tmp_path / "s.json", {"7": NAMES[18:21][::-1], "3": NAMES[10:13]}, "recall_subset", cirr)


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (NUMBERS[:49], "Query '1': 49 images, expected exactly 50"),
        ([*NUMBERS[:49], "5"], "Query '1': '5' is not in the gallery"),
        ([*NUMBERS[:49], NUMBERS[0]], "Query '1': '100' appears more than once"),
    ],
)
def test_bad_circo_lists_are_refused(tmp_path, circo, images, sentence):
    with pytest.raises(BenchmarkError, match=sentence):
        write_circo(tmp_path / "circo.json", {"0": NUMBERS[:50], "1": images}, circo)


def test_the_wrong_benchmark_an_incomplete_one_or_an_unknown_metric_is_refused(tmp_path, cirr, circo, recall):
    with pytest.raises(BenchmarkError, match="The benchmark is 'circo': expected 'cirr'"):
        write_cirr(tmp_path / "r.json", recall, "recall", circo)
    with pytest.raises(BenchmarkError, match="Unknown metric 'map': allowed are recall, recall_subset"):
        write_cirr(tmp_path / "r.json", recall, "map", cirr)
    partial = Benchmark("cirr", "test1", cirr.triplets, NAMES, cirr.images, complete=False)
    with pytest.raises(BenchmarkError, match="cirr test1 is incomplete"):
        write_cirr(tmp_path / "r.json", recall, "recall", partial)


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path, cirr, recall, monkeypatch):
    path = tmp_path / "recall.json"
    path.write_text("old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_cirr(path, recall, "recall", cirr)
    assert [p.name for p in tmp_path.iterdir()] == ["recall.json"]
    assert path.read_text() == "old"
