"""Runs as the files of the test servers: the same from ranked ids and from embeddings."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from cirlib.retrieval.run_files import RunError
from cirlib.retrieval.server_runs import write_server_files

IDS = [f"i{n}" for n in range(70)]


@pytest.fixture
def cirr(make_benchmark):
    """Three queries without targets, as a test split has them; each with a subset of five."""
    one = make_benchmark([(IDS[10 * n], IDS[10 * n + 1], "is x") for n in range(3)], IDS)
    triplets = [
        replace(t, id=str(100 + n), targets=(), subset=tuple(IDS[10 * n + 1 : 10 * n + 6]))
        for n, t in enumerate(one.triplets)
    ]
    return replace(one, name="cirr", split="test1", triplets=triplets)


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
    files = write_server_files(embeddings, cirr, tmp_path)
    recall, subset = (json.loads(file.read_text()) for file in files)
    assert [file.name for file in files] == ["recall.json", "recall_subset.json"]
    for triplet in cirr.triplets:
        ranked = order(embeddings, cirr)[triplet.id]
        assert recall[triplet.id] == ranked[:50]
        assert subset[triplet.id] == [image for image in ranked if image in triplet.subset][:3]


def test_ranked_ids_give_the_same_files_as_the_embeddings(cirr, embeddings, tmp_path):
    ours = write_server_files(embeddings, cirr, tmp_path / "embeddings")
    theirs = write_server_files(order(embeddings, cirr), cirr, tmp_path / "lists")
    assert [file.read_text() for file in ours] == [file.read_text() for file in theirs]


def test_lists_that_do_not_tell_the_subset_are_named(cirr, embeddings, tmp_path):
    lists = {
        query: [i for i in images if i not in cirr.triplets[1].subset]
        for query, images in order(embeddings, cirr).items()
    }
    with pytest.raises(RunError, match="query '101' has 0 members of its subset, the server wants 3"):
        write_server_files(lists, cirr, tmp_path)


def test_circos_file_keeps_the_reference(make_benchmark, embeddings, tmp_path):
    ids = [str(n) for n in range(70)]
    one = make_benchmark([(ids[n], ids[n + 1], "is x") for n in range(3)], ids)
    triplets = [replace(t, id=str(n), targets=()) for n, t in enumerate(one.triplets)]
    circo = replace(one, name="circo", split="test", triplets=triplets)
    (file,) = write_server_files(embeddings, circo, tmp_path)
    scores = embeddings["queries"] @ embeddings["gallery"].T
    assert json.loads(file.read_text()) == {str(n): row.topk(50).indices.tolist() for n, row in enumerate(scores)}


def test_a_benchmark_without_a_server_is_refused(make_benchmark, embeddings, tmp_path):
    with pytest.raises(RunError, match="custom has no test server"):
        write_server_files(embeddings, make_benchmark([(IDS[0], IDS[1], "is x")], IDS), tmp_path)
