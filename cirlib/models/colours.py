"""The colours of a picture as a histogram: what a frozen tower that was trained to name objects knows little of."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SIDE, MARGIN, STEPS = 48, 8, 8  # pixels a side, pixels left out on every side, steps of each of L, a and b
BINS = STEPS**3


def colour_histograms(pictures: Sequence[Image.Image]) -> Tensor:
    """Square roots of the shares of Lab colours in the middle of each picture, (B, BINS), of length one.

    >>> colour_histograms([Image.new("RGB", (64, 64), "red")]).max()
    tensor(1.)
    """
    return torch.stack([_histogram(picture) for picture in pictures])


def _histogram(picture: Image.Image) -> Tensor:
    small = picture.resize((SIDE, SIDE), Image.Resampling.BOX).convert("LAB")
    middle = np.asarray(small)[MARGIN:-MARGIN, MARGIN:-MARGIN].reshape(-1, 3).astype(int) * STEPS // 256  # (P, 3)
    shares = np.bincount(middle @ [STEPS**2, STEPS, 1], minlength=BINS) / len(middle)
    return torch.from_numpy(np.sqrt(shares)).float()
