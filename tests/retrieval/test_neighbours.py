"""Approximate indexes against the exact one; faiss' GPUs, threads and vector units."""

import os
import subprocess
import sys
from collections.abc import Iterator

import faiss
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cirlib.mining import MinedNegatives, mine_hard_negatives
from cirlib.retrieval.neighbours import KERNELS


def unit(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    vectors = rng.normal(size=shape)
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def clustered() -> tuple:
    """5,000 images in 50 clusters, queries near images: the reference is the best, the target the next."""
    rng = np.random.default_rng(0)
    centres = unit(rng, 50, 32)
    gallery = np.repeat(centres, 100, axis=0) + 0.5 * unit(rng, 5000, 32)
    gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
    references = rng.choice(5000, 200, replace=False)
    queries = gallery[references] + 0.2 * unit(rng, 200, 32)
    return queries / np.linalg.norm(queries, axis=1, keepdims=True), gallery, references


def shared_part(mined: MinedNegatives, exact: MinedNegatives) -> float:
    pairs = zip(mined.indices.tolist(), exact.indices.tolist(), strict=True)
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in pairs]))


@pytest.mark.parametrize("rules", [{"num_negatives": 10}, {"num_negatives": 10, "relative_margin": 0.3}])
@pytest.mark.parametrize("index", ["ivf", "hnsw"])
def test_approximate_indexes_find_what_flat_finds(clustered: tuple, index: str, rules: dict):
    exact = mine_hard_negatives(*clustered, **rules)
    assert shared_part(mine_hard_negatives(*clustered, index=index, **rules), exact) > 0.95


@pytest.mark.parametrize("index", ["ivf", "hnsw"])
def test_approximate_indexes_give_the_same_twice_and_leave_the_threads_alone(clustered: tuple, index: str):
    threads = faiss.omp_get_max_threads()
    first, again = (mine_hard_negatives(*clustered, index=index, range_min=20) for _ in range(2))
    assert (first.indices == again.indices).all()
    assert faiss.omp_get_max_threads() == threads


@pytest.mark.parametrize("index", ["ivf", "hnsw"])
def test_approximate_indexes_work_on_a_tiny_gallery(clustered: tuple, index: str):
    data = clustered[0][:20], clustered[1][:5], clustered[2][:20] % 5
    exact = mine_hard_negatives(*data)
    assert (mine_hard_negatives(*data, index=index).indices == exact.indices).all()


def test_searching_all_lists_of_an_inverted_file_is_exact(clustered: tuple):
    exact = mine_hard_negatives(*clustered, num_negatives=10)
    all_lists, one_list = (
        mine_hard_negatives(*clustered, num_negatives=10, index="ivf", nlist=20, nprobe=probed) for probed in (20, 1)
    )
    assert (all_lists.indices == exact.indices).all()
    assert shared_part(one_list, exact) < 1


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A faiss that has a GPU: a copy of the index that notes how deep it is searched."""
    depths: list[int] = []

    class Copy:
        def __init__(self, index: faiss.Index):
            self.index = index

        def search(self, queries: NDArray[np.float32], depth: int, params: object = None) -> tuple:
            depths.append(depth)
            return self.index.search(queries, depth, params=params)

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "StandardGpuResources", lambda: None, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", lambda _, __, index: Copy(index), raising=False)
    return depths


@pytest.mark.parametrize(
    ("index", "range_min", "used"), [("flat", 0, [5]), ("ivf", 0, [5]), ("hnsw", 0, []), ("flat", 2500, [])]
)
def test_a_gpu_is_used_for_what_it_can_find(clustered: tuple, fake_gpu: list[int], index, range_min, used):
    assert (mine_hard_negatives(*clustered, index=index, range_min=range_min).indices >= 0).all()
    assert fake_gpu == used


def test_faiss_uses_the_vector_units_of_this_processor():
    if not torch.cpu.get_capabilities().get("avx2"):
        pytest.skip("this processor has none of the vector units that OpenBLAS is told of")
    asking = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}
    asking["OPENBLAS_VERBOSE"] = "2"
    left_alone = "import os, cirlib.mining; assert 'OPENBLAS_CORETYPE' not in os.environ"
    command = [sys.executable, "-c", left_alone]
    said = subprocess.run(command, env=asking, capture_output=True, text=True, check=True)
    cores = [line.split()[-1] for line in said.stderr.splitlines() if line.startswith("Core: ")]
    if len(cores) < 2:
        pytest.skip("faiss is built on another BLAS here")  # the first is numpy's
    assert cores[-1] in KERNELS.values()
