"""Zero-shot composers on a two-tower model: no training, the two embeddings are added in some way.

Shapes: image and text embeddings (N, D), both L2-normalised; the result is (N, D), L2-normalised.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def image_only(image: Tensor, text: Tensor) -> Tensor:
    """The reference as the query; the edit is not read.

    >>> image_only(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
    tensor([[1., 0.]])
    """
    return image


def text_only(image: Tensor, text: Tensor) -> Tensor:
    """The edit as the query; the reference is not seen.

    >>> text_only(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
    tensor([[0., 1.]])
    """
    return text


def weighted_sum(image: Tensor, text: Tensor, weight: float) -> Tensor:
    """``(1 - weight) · image + weight · text``, normalised; ``weight`` in [0, 1].

    >>> weighted_sum(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), 0.5)
    tensor([[0.7071, 0.7071]])
    """
    return F.normalize((1 - weight) * image + weight * text, dim=-1)


def slerp(image: Tensor, text: Tensor, weight: float) -> Tensor:
    """Spherical interpolation from image (0) to text (1) along the great circle (Jang et al., 2024, Eq. 2).

    Where the two embeddings are parallel it falls back to :func:`weighted_sum`, its limit.

    >>> slerp(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), 1 / 3)  # 30 of 90 degrees
    tensor([[0.8660, 0.5000]])
    """
    cosine = (image * text).sum(-1, keepdim=True).clamp(-1, 1)  # (N, 1)
    angle = torch.acos(cosine)
    sine = torch.sin(angle)
    mixed = (torch.sin((1 - weight) * angle) * image + torch.sin(weight * angle) * text) / sine
    return F.normalize(torch.where(sine > 1e-4, mixed, (1 - weight) * image + weight * text), dim=-1)
