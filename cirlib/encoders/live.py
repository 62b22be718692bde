"""Features computed when they are asked for, with nothing on disk: for fast GPUs beside small disks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cirlib.encoders.images import ImageEncoder, open_rgb
from cirlib.encoders.store import rows_of


class LiveFeatures:
    """What a :class:`~cirlib.encoders.store.FeatureStore` gives, by running the encoder each time.

    Args:
        images: id → file. num_workers: threads that decode; 0 decodes in the caller's.
    """

    def __init__(self, encoder: ImageEncoder, images: Mapping[str, Path], num_workers: int = 2) -> None:
        self.encoder, self.key = encoder, f"{encoder.key} live"
        self.ids, self.files = list(images), list(images.values())
        self.shape = (len(self.ids), *encoder.shape)
        self._row = {image: row for row, image in enumerate(self.ids)}
        self._pool = ThreadPoolExecutor(max(1, num_workers))

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, image: str) -> bool:
        return image in self._row

    def rows(self, ids: Sequence[str]) -> np.ndarray:
        """Rows (B,) int64 of ``ids``; StoreError names the first one that is absent."""
        return rows_of(self._row, ids, "the study")

    def expect(self, rows: np.ndarray) -> None:
        """Nothing: the pictures are decoded when they are read."""

    def read(self, rows: np.ndarray, device: torch.device) -> Tensor:
        """Features (B, *shape) float32 of ``rows``, on ``device``."""
        pixels = torch.stack(list(self._pool.map(self._pixels, rows.tolist())))
        with torch.no_grad():
            return self.encoder.encode_pixels(pixels).float().to(device)

    def __getitem__(self, ids: Sequence[str]) -> Tensor:
        return self.read(self.rows(ids), torch.device("cpu"))

    def _pixels(self, row: int) -> Tensor:
        return self.encoder.transform(open_rgb(self.files[row]))
