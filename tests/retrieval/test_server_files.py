"""Files for the test servers of CIRR and CIRCO: their published formats, from ranked ids and from embeddings."""

import json
from dataclasses import replace

import pytest
import torch

from cirlib.benchmarks import Benchmark, Triplet, load_benchmark
from cirlib.retrieval.run_files import RunError, read_run
from cirlib.retrieval.server_files import write_server_files

IDS = [str(n) for n in range(100, 170)]


@pytest.fixture
def cirr():
    """Three queries without targets, as a test split has them; each with a subset of five."""
    triplets = [Triplet(str(n), IDS[n], ("x",), (), None, tuple(IDS[n + 1 : n + 6])) for n in (20, 0, 10)]
    return Benchmark("cirr", "test1", triplets, IDS, dict.fromkeys(IDS, "no file"))


@pytest.fixture
def embeddings():
    generator = torch.Generator().manual_seed(0)
    return {"queries": torch.randn(3, 8, generator=generator), "gallery": torch.randn(70, 8, generator=generator)}


def order(embeddings, benchmark) -> dict[str, list[str]]:
    """Every query's ranking by a full sort, its reference left out."""
    scores = embeddings["queries"] @ embeddings["gallery"].T
    return {
        t.id: [IDS[i] for i in row.argsort(descending=True).tolist() if IDS[i] != t.reference]
        for t, row in zip(benchmark.triplets, scores, strict=True)
    }


def test_cirrs_files_hold_the_best_fifty_and_the_best_three_of_the_subset(cirr, embeddings, tmp_path):
    files = write_server_files(embeddings, cirr, tmp_path / "new")
    recall, subset = (json.loads(file.read_text()) for file in files)
    assert [file.name for file in files] == ["recall.json", "recall_subset.json"]
    ranked = order(embeddings, cirr)
    first = {t.id: [image for image in ranked[t.id] if image in t.subset][:3] for t in cirr.triplets}
    assert recall == {"version": "rc2", "metric": "recall", **{query: images[:50] for query, images in ranked.items()}}
    assert subset == {"version": "rc2", "metric": "recall_subset", **first}
    theirs = write_server_files(ranked, cirr, tmp_path / "lists")
    assert [file.read_text() for file in files] == [file.read_text() for file in theirs]
    assert read_run(files[0], cirr, removed=True) == [recall[t.id] for t in cirr.triplets]  # it is a run itself


def test_circos_file_has_numbers_and_keeps_the_reference(cirr, embeddings, tmp_path):
    (file,) = write_server_files(embeddings, replace(cirr, name="circo", split="test"), tmp_path)
    best = (embeddings["queries"] @ embeddings["gallery"].T).topk(50).indices + 100
    assert file.name == "circo.json"
    assert json.loads(file.read_text()) == {t.id: row for t, row in zip(cirr.triplets, best.tolist(), strict=True)}


def test_a_ranking_of_the_real_test_split_is_accepted(real_data, tmp_path):
    test = load_benchmark("cirr", real_data("cirr"), split="test1")
    lists = {t.id: [i for i in test.gallery[:53] if i not in t.subset] + [*t.subset] for t in test.triplets}
    files = write_server_files(lists, test, tmp_path)
    assert [len(json.loads(file.read_text())) for file in files] == [4_148 + 2] * 2


@pytest.mark.parametrize(
    ("change", "said"), [({"name": "custom"}, "custom has no test server"), ({"complete": False}, "is incomplete")]
)
def test_a_benchmark_without_a_server_or_in_part_is_refused(cirr, embeddings, tmp_path, change, said):
    with pytest.raises(RunError, match=said):
        write_server_files(embeddings, replace(cirr, **change), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_lists_that_do_not_tell_the_subset_are_named_and_nothing_is_written(cirr, embeddings, tmp_path):
    lists = order(embeddings, cirr)
    lists["0"] = [image for image in lists["0"] if image not in cirr.triplets[1].subset]
    with pytest.raises(RunError, match="query '0' has 0 members of its subset, the server wants 3"):
        write_server_files(lists, cirr, tmp_path / "out")
    assert not (tmp_path / "out").exists()
