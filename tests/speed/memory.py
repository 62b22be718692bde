"""Peak memory of one way in a process of its own. Linux only: it reads /proc.

`python memory.py WAY CATEGORY` or `python memory.py disk FEATURES.npy`; prints one line of JSON.
"""

from __future__ import annotations

import ctypes
import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import normalize
from ways import WAYS, WIDTH, as_benchmark, load

from cirlib.retrieval.ranks import recall_at_k, target_ranks
from cirlib.retrieval.scoring import score
from cirlib.study.parameters import Evaluation

QUERIES = 1000


def status(field: str) -> int:
    """A line of /proc/self/status, in bytes; VmHWM is the peak of VmRSS, RssAnon its part outside files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024


def settle() -> None:
    """Give freed memory back, lest the run live on it unseen, and forget earlier peaks."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def extra_peak(run: Callable[[], object]) -> int:
    """Bytes the run needed at its peak beyond what was there before, by the kernel's own high-water mark."""
    settle()
    before = status("VmRSS")
    run()
    return status("VmHWM") - before


def anonymous_peak(run: Callable[[], object]) -> int:
    """The same without pages of mapped files, looked at every few milliseconds."""
    settle()
    before, seen, over = status("RssAnon"), [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.003):
            seen.append(status("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    run()
    over.set()
    watcher.join()
    return max(seen) - before


def from_disk(path: str) -> dict[str, float]:
    """Rank QUERIES targets in a float16 gallery on disk; the bare product over the same blocks to compare."""
    gallery = np.load(path, mmap_mode="r")  # (M, D)
    rng = torch.Generator().manual_seed(1)
    targets = torch.randint(len(gallery), (QUERIES,), generator=rng)
    noise = 0.18 * torch.randn(QUERIES, WIDTH, generator=rng)
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
    benchmark = as_benchmark(targets, [f"{row:010d}" for row in range(len(gallery))])
    whole = anonymous_peak(lambda: score("ours", "hat", queries, gallery, benchmark, Evaluation()))
    return {
        "whole_extra_bytes": whole,
        "extra_bytes": extra,
        "product_s": between - begun,
        "counted_s": ended - between,
        "recall@10": float(recall_at_k(ranks[0], 10).mean()),
    }


def main(way: str, what: str) -> None:
    if way == "disk":
        print(json.dumps(from_disk(what)))
        return
    data = load(what)
    torch.ones(64, WIDTH) @ torch.ones(WIDTH, 64)  # wakes the threads and the library of the product
    print(json.dumps({"extra_bytes": extra_peak(lambda: WAYS[way](data))}))


if __name__ == "__main__":
    main(*sys.argv[1:])
