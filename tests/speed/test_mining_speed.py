"""Mining FashionIQ's train part: flat FAISS against torch and sentence-transformers, and the approximate indexes."""

import statistics
from functools import partial

import pytest
from measuring import MEGABYTE, medians, needs_linux, peak
from mining_ways import GALLERY, QUERIES, TOP, WAYS, Vectors, clustered_vectors, ours

MATRIX = QUERIES * GALLERY * 4  # bytes of all scores


@pytest.fixture(scope="module")
def vectors() -> Vectors:
    return clustered_vectors()


def test_flat_mining_is_as_fast_as_the_fastest(vectors: Vectors, report) -> None:
    spent = medians({name: partial(way, vectors) for name, way in WAYS.items()}, rounds=5)
    what = f"mining {TOP} for {QUERIES:,} queries in {GALLERY:,} images, {spent['ours']:.1f} s"
    for name in ("torch", "sentence-transformers"):
        ratio = spent["ours"] / spent[name]
        report(f"{what}: time over that of {name}", f"{ratio:.2f}", "<= 1", ratio <= 1)


@needs_linux
def test_flat_mining_takes_a_tenth_of_the_score_matrix(report) -> None:
    extra = {name: peak("mining", name)["extra_bytes"] for name in WAYS}
    sizes = ", ".join(f"{name} {size / MEGABYTE:.0f}" for name, size in extra.items())
    share = extra["ours"] / MATRIX
    report(f"mining, extra MB: {sizes}; ours over all scores", f"{share:.3f}", "<= 0.1", share <= 0.1)
    assert share <= 0.1


@pytest.mark.parametrize("index", ["ivf", "hnsw"])
def test_what_the_approximate_indexes_find_and_cost(vectors: Vectors, report, index: str) -> None:
    exact, found = ours(vectors), ours(vectors, index)
    spent = medians({"flat": partial(ours, vectors), index: partial(ours, vectors, index)}, rounds=1)
    same = [len(set(a) & set(b)) / TOP for a, b in zip(exact.tolist(), found.tolist(), strict=True)]
    recall = statistics.mean(same)
    what = f"mining with {index}, {recall:.1%} of the exact {TOP} found: time over flat"
    report(what, f"{spent[index] / spent['flat']:.2f}")
    assert recall > 0.5
