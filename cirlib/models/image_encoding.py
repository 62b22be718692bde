"""Image files to features: into a store on disk, or live, whenever they are asked for."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cirlib.models.feature_store import FeatureStore, ImageFeatures, build_store, contents_key
from cirlib.study.pictures import open_rgb
from cirlib.study.resources import within_memory


class ImageEncoder(Protocol):
    """A frozen vision tower."""

    key: str  # names the weights and the preprocessing, for the feature store
    shape: tuple[int, ...]  # of the features of one image, (D,) or (T, D)
    transform: Callable[[Image.Image], Tensor]  # to pixels (3, H, W)

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) to features (B, *shape)."""
        ...


class LiveFeatures(ImageFeatures):
    """What a store gives, by running ``encoder`` on ``images`` (id → file) each time: for GPUs beside small disks."""

    def __init__(self, encoder: ImageEncoder, images: Mapping[str, Path], num_workers: int = 2) -> None:
        super().__init__(f"{encoder.key} live", list(images), (len(images), *encoder.shape), "the study")
        self.encoder, self.files = encoder, list(images.values())
        self._decoders = ThreadPoolExecutor(max(1, num_workers))

    def _load(self, rows: np.ndarray, device: torch.device) -> Tensor:
        decoded = self._decoders.map(lambda row: self.encoder.transform(open_rgb(self.files[row])), rows)
        return torch.stack(list(decoded))

    def _features(self, loaded: Tensor) -> Tensor:
        with torch.no_grad():
            return self.encoder.encode_pixels(loaded)


def _decoded(
    transform: Callable[[Image.Image], Tensor], files: Sequence[Path], batch_size: int, num_workers: int
) -> Iterator[Tensor]:
    """Pixels (B, 3, H, W), batch by batch; threads, which need no shared memory, are some batches ahead."""

    def stack(start: int) -> Tensor:
        return torch.stack([transform(open_rgb(file)) for file in files[start : start + batch_size]])

    starts, workers = iter(range(0, len(files), batch_size)), max(1, num_workers)
    with ThreadPoolExecutor(workers) as pool:
        ahead = deque(pool.submit(stack, start) for start in islice(starts, 2 * workers))
        while ahead:
            pixels = ahead.popleft().result()
            ahead.extend(pool.submit(stack, start) for start in islice(starts, 1))
            yield pixels


def encode_images(
    encoder: ImageEncoder,
    images: Mapping[str, Path],
    folder: Path,
    *,
    key: str | None = None,
    batch_size: int = 64,
    num_workers: int = 2,
    description: str = "encoding",
) -> FeatureStore:
    """The feature store of ``images`` (id → file) under ``encoder``; resumes, and is only built once.

    ``key`` is the :func:`contents_key` of encoder and files, where it is known.

    >>> encode_images(prepared.vision_tower(), {"a": write_image(folder / "a.png")}, folder / "store").shape
    (1, 4, 1280)
    """
    ids, files = list(images), list(images.values())

    def encode(rows: slice) -> Iterator[Tensor]:
        for pixels in _decoded(encoder.transform, files[rows], batch_size, num_workers):
            batch = within_memory(f"{description}: a batch of {len(pixels)} images", "lower data_prep.batch_size")
            with batch, torch.inference_mode():  # not around the yield, which would put the caller in this mode too
                features = encoder.encode_pixels(pixels)
            yield features

    key = key or contents_key(encoder.key, files)
    return build_store(folder, key, ids, encoder.shape, encode, description=description)
