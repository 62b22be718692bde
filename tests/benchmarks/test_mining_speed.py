"""Mining FashionIQ's train part: flat FAISS against torch and sentence-transformers, and the approximate indexes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cirlib.mining import mine_hard_negatives

QUERIES, GALLERY, WIDTH, TOP = 18_000, 25_136, 256, 100


@pytest.fixture(scope="module")
def vectors() -> tuple[Tensor, Tensor, list[list[int]]]:
    rng = torch.Generator().manual_seed(0)

    def noise(count: int, strength: float) -> Tensor:
        return strength * torch.randn(count, WIDTH, generator=rng)

    centres = normalize(noise(500, 1.0), dim=-1)
    gallery = normalize(centres[torch.randint(500, (GALLERY,), generator=rng)] + noise(GALLERY, 0.06), dim=-1)
    targets = torch.randint(GALLERY, (QUERIES,), generator=rng)
    queries = normalize(gallery[targets] + noise(QUERIES, 0.05), dim=-1)
    return queries, gallery, [[target] for target in targets.tolist()]


def ours(vectors: Any, index: str = "flat") -> Tensor:
    queries, gallery, positives = vectors
    mined = mine_hard_negatives(
        queries, gallery, positives, num_negatives=TOP, range_max=TOP, index=index, progress=False
    )
    return torch.from_numpy(mined.indices)


def torch_topk(vectors: Any, block: int = 1024) -> Tensor:
    """Matrix product and topk, block by block: the whole score matrix would take 1.8 GB."""
    queries, gallery, positives = vectors
    targets = torch.tensor(positives)
    found = []
    for start in range(0, len(queries), block):
        scores = queries[start : start + block] @ gallery.T
        scores.scatter_(1, targets[start : start + block], -torch.inf)
        found.append(scores.topk(TOP).indices)
    return torch.cat(found)


def sentence_transformers_way(vectors: Any) -> None:
    """The usual library on the same vectors; its model only looks them up."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import mine_hard_negatives as mine

    queries, gallery, positives = vectors

    class Lookup(SentenceTransformer):
        def __init__(self) -> None:
            super().__init__(modules=[torch.nn.Identity()], device="cpu")

        def encode(self, sentences: list[str], **_: Any) -> Any:
            return torch.stack([(queries if s[0] == "q" else gallery)[int(s[1:])] for s in sentences]).numpy()

        encode_query = encode_document = encode

    pairs = {"query": [f"q{n}" for n in range(len(queries))], "positive": [f"g{p[0]}" for p in positives]}
    mine(
        Dataset.from_dict(pairs), Lookup(), corpus=[f"g{n}" for n in range(len(gallery))], range_max=TOP,
        num_negatives=TOP, use_faiss=True, verbose=False, output_format="n-tuple", batch_size=4096,
    )  # fmt: skip


def test_mining_is_as_fast_as_the_fastest(vectors, report, benchmark) -> None:
    ways: dict[str, Callable[[], object]] = {
        "ours": lambda: ours(vectors), "torch": lambda: torch_topk(vectors),
    }  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(3):
        for name, run in ways.items():
            begun = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - begun)
    begun = time.perf_counter()
    sentence_transformers_way(vectors)
    usual = time.perf_counter() - begun
    spent = {name: statistics.median(own) for name, own in times.items()}
    benchmark.extra_info |= spent | {"sentence_transformers": usual}
    benchmark.pedantic(lambda: None, rounds=1)
    for name, other in (("torch matmul + topk", spent["torch"]), ("sentence-transformers", usual)):
        ratio = spent["ours"] / other
        report(f"mining 18,000 in 25,136: {spent['ours']:.1f} s, over {name}", f"{ratio:.2f}", "<= 1", ratio <= 1)


@pytest.mark.parametrize("index", ["ivf", "hnsw"])
def test_what_the_approximate_indexes_find_and_cost(vectors, report, benchmark, index) -> None:
    begun = time.perf_counter()
    exact = ours(vectors)
    between = time.perf_counter()
    found = benchmark.pedantic(ours, args=(vectors, index), rounds=1)
    ratio = (time.perf_counter() - between) / (between - begun)
    same = [len(set(a) & set(b)) / TOP for a, b in zip(exact.tolist(), found.tolist(), strict=True)]
    report(
        f"{index}: time over flat; share of the exact 100 found {statistics.mean(same):.3f}", f"{ratio:.2f}", "", True
    )
    assert statistics.mean(same) > 0.5
