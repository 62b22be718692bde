"""Two hundred trainings and evaluations in one process leave nothing behind."""

from __future__ import annotations

import gc
import os

import numpy as np
import psutil
import pytest
import torch

from cirlib.mining import mine_hard_negatives
from cirlib.models.qformer import QFormerSettings, blip2_qformer
from cirlib.models.qformer_embedding import embed_gallery, embed_queries
from cirlib.retrieval.scoring import score
from cirlib.study.parameters import Evaluation
from cirlib.training.batches import Batch, batch_loss
from cirlib.training.loop import TrainingConfig, train

RUNS, WARM_UP = 200, 60
MEGABYTE = 2**20


def left_over() -> dict[str, int]:
    gc.collect()
    process = psutil.Process(os.getpid())
    return {
        "bytes": process.memory_info().rss,
        "files": process.num_fds() if hasattr(process, "num_fds") else 0,
        "threads": process.num_threads(),
    }


@pytest.mark.slow
def test_two_hundred_runs_leave_no_memory_no_files_and_no_threads(tiny_blip2, make_store, make_benchmark, tmp_path):
    ids = [f"hat-{number}" for number in range(12)]
    features = torch.randn(12, 5, 24, generator=torch.Generator().manual_seed(0))
    store = make_store(tmp_path / "tokens", ids, features)
    benchmark = make_benchmark([(ids[i], ids[i + 1], "is blue") for i in range(6)], ids, "hat", True)
    composer = blip2_qformer(str(tiny_blip2), QFormerSettings())
    rows, texts = np.arange(6), ["is blue"] * 6

    def run() -> None:
        batch = Batch(rows, rows + 1, texts, rows[:, None] + 2)
        config = TrainingConfig("soak", epochs=1, steps_per_epoch=1, lr=1e-4, precision="fp32")
        train(composer, lambda epoch: [batch], lambda b: (batch_loss(composer, store, b), {}), config, None)
        queries, gallery = embed_queries(composer, store, rows, texts), embed_gallery(composer, store, np.arange(12))
        score("soak", "hat", queries, gallery, benchmark, Evaluation())
        positives = [[row + 1] for row in rows.tolist()]
        mine_hard_negatives(queries, gallery.mean(1), positives, num_negatives=2, progress=False)

    for _ in range(WARM_UP):
        run()
    before = left_over()
    for _ in range(RUNS - WARM_UP):
        run()
    after = left_over()
    assert after["files"] <= before["files"]
    assert after["threads"] <= before["threads"]
    assert after["bytes"] - before["bytes"] < 24 * MEGABYTE
