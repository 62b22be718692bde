"""Pictures to encode, training steps to be timed, and a store that tells how long they waited for it."""

import mmap
import os
import shutil
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cirlib.benchmarks.garments import draw_garments
from cirlib.models.devices import autocast
from cirlib.models.feature_store import FeatureStore, build_store
from cirlib.models.qformer import QFormerComposer
from cirlib.study.parameters import Drawing
from cirlib.training.batches import Batch, batch_loss

TEXTS = ["is blue with long sleeves and a v-neck", "is shorter and has a floral print, not stripes"]
SIDE = 160
SIZES = Drawing(train_images=75, train_triplets=60, val_queries=20, gallery_size=100, pairs=1)


def draw(root: Path, workers: int) -> dict[str, Path]:
    """Some hundred drawn garments, id → file, in place of what was there."""
    shutil.rmtree(root, ignore_errors=True)
    draw_garments(root, SIZES, image_size=SIDE, workers=workers)
    return {file.stem: file for file in sorted((root / "images").iterdir())}


def repeated(store: FeatureStore, folder: Path, count: int) -> FeatureStore:
    """A larger store of the same features, over and over."""
    features, shape = store[store.ids], store.shape[1:]
    rows = np.arange(count) % len(features)
    return build_store(folder, "key", [str(n) for n in range(count)], shape, lambda own: [features[rows[own]]])


def batch_of(rows: np.ndarray, negatives: int = 0) -> Batch:
    """A triplet a row: the target and the negatives are the rows that follow."""
    texts = [TEXTS[number % 2] for number in range(len(rows))]
    mined = np.stack([np.roll(rows, 2 + n) for n in range(negatives)], 1) if negatives else None
    return Batch(rows, np.roll(rows, 1), texts, mined)


class Trainer:
    """Forward, backward and AdamW on one batch after the other."""

    def __init__(self, composer: QFormerComposer, store: Any, chunk_size: int | None = None) -> None:
        self.composer, self.store, self.chunk_size = composer, store, chunk_size
        self.optimizer = torch.optim.AdamW(composer.parameters(), lr=1e-5, fused=True)

    def prefetch(self, batch: Batch) -> None:
        self.store.prefetch(batch.rows(np.arange(len(batch))), self.composer.device)

    def step(self, batch: Batch) -> None:
        with autocast(self.composer.device):
            loss = batch_loss(self.composer, self.store, batch, self.chunk_size)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def run_steps(trainer: Trainer, batches: Sequence[Batch]) -> None:
    """A step a batch, each fetched ahead but the first."""
    for now, after in pairwise([*batches, None]):
        if after is not None:
            trainer.prefetch(after)
        trainer.step(now)


class TimedStore(FeatureStore):
    """A store that counts the seconds spent on reading."""

    waited = 0.0

    def read(self, rows: np.ndarray, device: torch.device) -> torch.Tensor:
        begun = time.perf_counter()
        features = super().read(rows, device)
        self.waited += time.perf_counter() - begun
        return features

    def forget(self) -> None:
        """Drops the features' pages from memory."""
        self.array._mmap.madvise(mmap.MADV_DONTNEED)
        with (self.folder / "features.npy").open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class MemoryStore:
    """Features in memory, float16."""

    def __init__(self, *shape: int) -> None:
        self.features = torch.randn(shape).half()

    def read(self, rows: np.ndarray, device: torch.device) -> torch.Tensor:
        return self.features[torch.from_numpy(rows)].to(device).float()
