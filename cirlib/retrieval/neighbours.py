"""The nearest gallery images through a FAISS index, on a GPU where faiss has one."""

import importlib
import os
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from cirlib.benchmarks.base import check_choice
from cirlib.study.errors import ParameterError

KERNELS = {"avx512_vl": "SkylakeX", "avx2": "Haswell"}  # vector unit → OpenBLAS' name of the first CPUs that have it


def _import_faiss() -> Any:
    """Faiss, its OpenBLAS told of the CPU's vector units unless ``OPENBLAS_CORETYPE`` is set already.

    By itself an OpenBLAS older than the CPU uses few: three times slower on Intel's CPUs from 2023 on.
    """
    known = torch.cpu.get_capabilities()
    core = next((core for unit, core in KERNELS.items() if known.get(unit)), None)
    if core is None or "OPENBLAS_CORETYPE" in os.environ:
        return importlib.import_module("faiss")
    os.environ["OPENBLAS_CORETYPE"] = core
    try:
        return importlib.import_module("faiss")
    finally:
        del os.environ["OPENBLAS_CORETYPE"]


faiss = _import_faiss()

IndexKind = Literal["flat", "ivf", "hnsw"]
Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

faiss.cvar.distance_compute_blas_database_bs = 8192  # rows of one matrix product; faiss' 1,024 take twice the time
MAX_DEPTH_ON_GPU = 2048  # faiss finds no more than that many neighbours on a GPU


class Neighbours:
    """An index over gallery (M, D) or (M, T, D), whose images count by their best token; options as in mining."""

    def __init__(
        self, gallery: Floats, kind: IndexKind, seed: int, nlist: int | None = None, nprobe: int | None = None
    ) -> None:
        check_choice(kind, ("flat", "ivf", "hnsw"), "index")
        for name, value in (("nlist", nlist), ("nprobe", nprobe)):
            if value is not None and not (kind == "ivf" and 1 <= value <= len(gallery)):
                raise ParameterError(f"{name} goes with index 'ivf' only, from 1 to {len(gallery)}, got {value}")
        self.size, self.nprobe = len(gallery), nprobe
        self.num_tokens = gallery.shape[1] if gallery.ndim == 3 else 1
        gallery = gallery.reshape(-1, gallery.shape[-1])  # (M * T, D)
        self.cpu_index = _build_index(gallery, kind, seed, nlist)
        self.gpu_index = None
        if kind != "hnsw" and hasattr(faiss, "get_num_gpus") and faiss.get_num_gpus():
            own = torch.cuda.current_device() if torch.cuda.is_available() else 0
            self.gpu_index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), own, self.cpu_index)

    def search(self, queries: Floats, depth: int) -> tuple[Floats, Rows]:
        """Inner products and gallery rows (B, depth), best first; -inf and -1 where the index finds no more."""
        found = depth * self.num_tokens  # so many tokens are of that many images at least
        index = self.gpu_index if self.gpu_index is not None and found <= MAX_DEPTH_ON_GPU else self.cpu_index
        scores, rows = index.search(queries, found, params=self._effort(found))  # (B, depth * T) both
        scores[rows < 0] = -np.inf  # (B, depth * T)
        return (scores, rows) if self.num_tokens == 1 else _best_tokens(scores, rows // self.num_tokens, depth)

    def _effort(self, depth: int) -> faiss.SearchParameters | None:
        """How hard an approximate index has to look to find ``depth`` neighbours."""
        index = self.cpu_index
        if isinstance(index, faiss.IndexHNSW):
            return faiss.SearchParametersHNSW(efSearch=max(128, 2 * depth))
        if isinstance(index, faiss.IndexIVF):
            enough = -(-4 * depth * index.nlist // index.ntotal)  # lists that hold some 4 times the depth
            return faiss.SearchParametersIVF(nprobe=min(index.nlist, self.nprobe or max(8, index.nlist // 8, enough)))
        return None


def _best_tokens(scores: Floats, images: Rows, depth: int) -> tuple[Floats, Rows]:
    """Of found tokens (B, W), best first, and their images: the first of each image, (B, depth) both."""
    order = np.argsort(images, axis=1, kind="stable")  # (B, W), the tokens of an image side by side
    ordered = np.take_along_axis(images, order, 1)  # (B, W)
    repeats = np.zeros(images.shape, bool)  # (B, W)
    np.put_along_axis(repeats, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], 1)
    first = np.argsort(repeats, axis=1, kind="stable")[:, :depth]  # (B, depth)
    scores, images, repeats = (np.take_along_axis(all_found, first, 1) for all_found in (scores, images, repeats))
    return np.where(repeats, np.float32(-np.inf), scores), np.where(repeats, -1, images)


def _build_index(gallery: Floats, kind: str, seed: int, nlist: int | None) -> faiss.Index:
    size, width = gallery.shape
    index, threads = faiss.IndexFlatIP(width), faiss.omp_get_max_threads()
    if kind == "ivf":
        lists = nlist or max(1, min(int(4 * size**0.5), size // 39))  # faiss' k-means asks for 39 each
        index = faiss.IndexIVFFlat(index, width, lists, faiss.METRIC_INNER_PRODUCT)
        index.cp.seed = seed
        index.train(gallery)
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(width, 32, faiss.METRIC_INNER_PRODUCT)  # 32 links an image
        faiss.omp_set_num_threads(1)  # several would build another graph each time
    index.add(gallery)
    faiss.omp_set_num_threads(threads)
    return index
