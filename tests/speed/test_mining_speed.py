"""Mining FashionIQ's train part: flat FAISS against torch and sentence-transformers, and the approximate indexes."""

from __future__ import annotations

import statistics
import time
from typing import Any

import pytest
from measuring import measured, needs_linux, taking_turns
from mining_ways import GALLERY, QUERIES, TOP, WAYS, Vectors, clustered_vectors, ours

MATRIX = QUERIES * GALLERY * 4  # bytes of all scores


@pytest.fixture(scope="module")
def vectors() -> Vectors:
    return clustered_vectors()


def test_flat_mining_is_as_fast_as_the_fastest(vectors: Vectors, report: Any, benchmark: Any) -> None:
    spent = taking_turns({name: lambda way=way: way(vectors) for name, way in WAYS.items()}, rounds=5)
    benchmark.extra_info |= spent
    benchmark.pedantic(ours, args=(vectors,), rounds=1)
    what = f"mining {TOP} for {QUERIES:,} queries in {GALLERY:,} images, {spent['ours']:.1f} s"
    for name in ("torch", "sentence-transformers"):
        ratio = spent["ours"] / spent[name]
        report(f"{what}: time over that of {name}", f"{ratio:.2f}", "<= 1", ratio <= 1)


@needs_linux
def test_flat_mining_takes_a_tenth_of_the_score_matrix(report: Any, benchmark: Any) -> None:
    extra = {name: measured("mining_ways.py", name)["extra_bytes"] for name in WAYS}
    benchmark.extra_info |= extra
    benchmark.pedantic(lambda: None, rounds=1)
    sizes = ", ".join(f"{name} {size / 2**20:.0f}" for name, size in extra.items())
    share = extra["ours"] / MATRIX
    report(f"mining, extra MB: {sizes}; ours over all scores", f"{share:.3f}", "<= 0.1", share <= 0.1)
    assert share <= 0.1


@pytest.mark.parametrize("index", ["ivf", "hnsw"])
def test_what_the_approximate_indexes_find_and_cost(vectors: Vectors, report: Any, benchmark: Any, index: str) -> None:
    begun = time.perf_counter()
    exact = ours(vectors)
    between = time.perf_counter()
    found = benchmark.pedantic(ours, args=(vectors, index), rounds=1)
    ratio = (time.perf_counter() - between) / (between - begun)
    same = [len(set(a) & set(b)) / TOP for a, b in zip(exact.tolist(), found.tolist(), strict=True)]
    recall = statistics.mean(same)
    report(f"mining with {index}, {recall:.1%} of the exact {TOP} found: time over flat", f"{ratio:.2f}", "", True)
    assert recall > 0.5
