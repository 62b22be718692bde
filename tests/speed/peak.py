"""Peak memory of one way in a process of its own, as a line of JSON. Linux only: it reads /proc.

`python peak.py evaluation WAY CATEGORY`, `mining WAY`, `step BATCH CHUNK` (0: no chunks) or `disk FEATURES.npy`.
"""

import json
import sys
import time
from functools import partial

import evaluation_ways
import mining_ways
import numpy as np
import torch
from measuring import anonymous_peak, extra_peak
from torch.nn.functional import normalize
from training_ways import MemoryStore, batch_of

from cirlib.metrics import recall_at_k, target_ranks
from cirlib.models.devices import autocast
from cirlib.models.qformer import QFormerSettings, mini_qformer
from cirlib.retrieval.scoring import score
from cirlib.study.parameters import Evaluation
from cirlib.training.batches import batch_loss

QUERIES = 1000


def of_evaluation(way: str, category: str) -> dict[str, float]:
    data, width = evaluation_ways.load(category), evaluation_ways.WIDTH
    torch.ones(64, width) @ torch.ones(width, 64)  # wakes the threads and the library of the product
    return {"extra_bytes": extra_peak(lambda: evaluation_ways.WAYS[way](data))}


def of_mining(way: str) -> dict[str, float]:
    data, run = mining_ways.clustered_vectors(), mining_ways.WAYS[way]
    run(mining_ways.Vectors(data.queries[:200], data.gallery[:400], data.targets[:200] % 400))  # wakes libraries
    return {"extra_bytes": extra_peak(lambda: run(data))}


def of_step(batch: str, chunk: str) -> dict[str, float]:
    composer, store = mini_qformer(8, 256, QFormerSettings()).train(), MemoryStore(256, 25, 1280)

    def step(count: int) -> None:
        with autocast(torch.device("cpu")):
            batch_loss(composer, store, batch_of(np.arange(count) % 256), int(chunk) or None).backward()

    step(8)  # gradients and libraries are there before
    return {"extra_bytes": extra_peak(partial(step, int(batch)))}


def of_disk(path: str) -> dict[str, float]:
    """Rank QUERIES targets in a float16 gallery on disk; the bare product over the same blocks to compare."""
    gallery = np.load(path, mmap_mode="r")  # (M, D)
    rng = torch.Generator().manual_seed(1)
    targets = torch.randint(len(gallery), (QUERIES,), generator=rng)
    noise = 0.18 * torch.randn(QUERIES, gallery.shape[1], generator=rng)
    queries = normalize(torch.from_numpy(gallery[targets.numpy()]).float() + noise, dim=-1)

    def product() -> None:
        for start in range(0, len(gallery), 1024):
            queries @ torch.from_numpy(np.array(gallery[start : start + 1024])).float().T

    product()  # the pages are read once before anything is timed
    begun = time.perf_counter()
    product()
    between, ranks = time.perf_counter(), []
    extra = anonymous_peak(lambda: ranks.append(target_ranks(queries, gallery, targets)))
    ended = time.perf_counter()
    benchmark = evaluation_ways.as_benchmark(targets, [f"{row:010d}" for row in range(len(gallery))])
    whole = anonymous_peak(lambda: score("ours", "hat", queries, gallery, benchmark, Evaluation()))
    times = {"product_s": between - begun, "counted_s": ended - between}
    return times | {
        "extra_bytes": extra, "whole_extra_bytes": whole, "recall@10": float(recall_at_k(ranks[0], 10).mean())
    }  # fmt: skip


if __name__ == "__main__":
    kinds = {"evaluation": of_evaluation, "mining": of_mining, "step": of_step, "disk": of_disk}
    print(json.dumps(kinds[sys.argv[1]](*sys.argv[2:])))
