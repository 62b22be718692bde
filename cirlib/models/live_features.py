"""Features computed when they are asked for, with nothing on disk: for fast GPUs beside small disks."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cirlib.models.feature_store import rows_of
from cirlib.models.image_encoding import ImageEncoder
from cirlib.study.pictures import open_rgb


class LiveFeatures:
    """What a :class:`~cirlib.models.feature_store.FeatureStore` gives, by running the encoder each time.

    Args:
        images: id → file. num_workers: threads that decode; 0 decodes in the caller's.
    """

    def __init__(self, encoder: ImageEncoder, images: Mapping[str, Path], num_workers: int = 2) -> None:
        self.encoder, self.key = encoder, f"{encoder.key} live"
        self.ids, self.files = list(images), list(images.values())
        self.shape = (len(self.ids), *encoder.shape)
        self._row = {image: row for row, image in enumerate(self.ids)}
        self._pool = ThreadPoolExecutor(max(1, num_workers))
        self._ahead: deque[dict[int, Future[Tensor]]] = deque(maxlen=2)  # pixels of the batch at work, and the next

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, image: str) -> bool:
        return image in self._row

    def rows(self, ids: Sequence[str]) -> np.ndarray:
        """Rows (B,) int64 of ``ids``; StoreError names the first one that is absent."""
        return rows_of(self._row, ids, "the study")

    def prefetch(self, rows: np.ndarray, device: torch.device) -> None:
        """Decodes ``rows`` (B,) in the background, for a :meth:`read` soon to come."""
        self._ahead.append(self._decoding(rows))

    def read(self, rows: np.ndarray, device: torch.device) -> Tensor:
        """Features (B, *shape) float32 of ``rows``, on ``device``."""
        coming = {row: future for ahead in self._ahead for row, future in ahead.items()}
        coming |= self._decoding([row for row in rows.tolist() if row not in coming])
        pixels = torch.stack([coming[row].result() for row in rows.tolist()])
        with torch.no_grad():
            return self.encoder.encode_pixels(pixels).float().to(device)

    def _decoding(self, rows: Sequence[int] | np.ndarray) -> dict[int, Future[Tensor]]:
        return {row: self._pool.submit(self._pixels, row) for row in np.unique(np.asarray(rows, int)).tolist()}

    def __getitem__(self, ids: Sequence[str]) -> Tensor:
        return self.read(self.rows(ids), torch.device("cpu"))

    def _pixels(self, row: int) -> Tensor:
        return self.encoder.transform(open_rgb(self.files[row]))
