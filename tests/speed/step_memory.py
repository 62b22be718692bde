"""Peak memory of one Q-Former step in a process of its own: `python step_memory.py BATCH CHUNK` (0: no chunks)."""

from __future__ import annotations

import json
import sys

import numpy as np
import torch
from memory import extra_peak

from cirlib.models.devices import autocast
from cirlib.models.qformer import QFormerSettings, mini_qformer
from cirlib.training.batches import Batch, batch_loss

TOKENS = torch.randn(256, 25, 1280).half().numpy()


class Store:
    """Features in memory, float16."""

    def read(self, rows: np.ndarray, device: torch.device) -> torch.Tensor:
        return torch.from_numpy(TOKENS[rows]).float()


def main(batch: int, chunk: int) -> None:
    composer = mini_qformer(8, 256, QFormerSettings()).train()
    rows = np.arange(batch) % len(TOKENS)
    triplets = Batch(rows, rows[::-1].copy(), ["is blue with long sleeves"] * batch)
    few = Batch(rows[:8], rows[:8], ["is blue with long sleeves"] * 8)
    batch_loss(composer, Store(), few).backward()  # gradients and libraries are there before

    def step() -> None:
        with autocast(torch.device("cpu")):
            batch_loss(composer, Store(), triplets, chunk or None).backward()

    print(json.dumps({"extra_bytes": extra_peak(step)}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
