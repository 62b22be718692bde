"""Image files to features: decoding in worker processes, one forward pass a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cirlib.models.feature_store import FeatureStore, build_store, contents_key
from cirlib.study.pictures import open_rgb
from cirlib.study.resources import within_memory


class ImageEncoder(Protocol):
    """A frozen vision tower.

    Attributes:
        key: names the weights and the preprocessing, for the feature store.
        shape: features of one image, (D,) or (T, D).
        transform: a PIL image to pixels (3, H, W).
    """

    key: str
    shape: tuple[int, ...]
    transform: Callable[[Image.Image], Tensor]

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) to features (B, *shape)."""
        ...


class _Files(Dataset):
    def __init__(self, files: Sequence[Path], transform: Callable[[Image.Image], Tensor]) -> None:
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(open_rgb(self.files[index]))


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

    Args:
        key: ``contents_key`` of the encoder and the files, where it is known.
    """
    ids, files = list(images), list(images.values())

    def encode(rows: slice) -> Iterator[Tensor]:
        options = {"num_workers": num_workers, "generator": torch.Generator()}  # else it would draw from the common one
        loader = DataLoader(_Files(files[rows], encoder.transform), batch_size, **options)
        for pixels in loader:
            batch = within_memory(f"{description}: a batch of {len(pixels)} images", "lower data_prep.batch_size")
            with batch, torch.inference_mode():  # not around the yield, which would put the caller in this mode too
                features = encoder.encode_pixels(pixels)
            yield features

    key = key or contents_key(encoder.key, files)
    return build_store(folder, key, ids, encoder.shape, encode, description=description)
