"""Zero-shot composers: end points, unit length, the great circle, and where two embeddings are parallel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cirlib.models.baselines import slerp, weighted_sum


def unit(seed: int, rows: int = 50, width: int = 16) -> Tensor:
    return F.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


IMAGE, TEXT = unit(0), unit(1)


@pytest.mark.parametrize("compose", [weighted_sum, slerp])
def test_weight_0_is_the_image_and_weight_1_the_text(compose):
    torch.testing.assert_close(compose(IMAGE, TEXT, 0.0), IMAGE)
    torch.testing.assert_close(compose(IMAGE, TEXT, 1.0), TEXT)


@pytest.mark.parametrize("weight", [0.1, 0.3, 0.5, 0.9])
def test_slerp_goes_the_share_of_the_angle_that_weight_says(weight):
    query = slerp(IMAGE.double(), TEXT.double(), weight)
    whole = torch.acos((IMAGE.double() * TEXT.double()).sum(-1))
    torch.testing.assert_close(torch.acos((query * IMAGE.double()).sum(-1)), weight * whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.acos((query * TEXT.double()).sum(-1)), (1 - weight) * whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("weight", [0.2, 0.7])
def test_slerp_stays_on_the_great_circle(weight):
    query = slerp(IMAGE, TEXT, weight)
    for q, i, t in zip(query, IMAGE, TEXT, strict=True):
        plane = torch.linalg.qr(torch.stack([i, t], 1)).Q  # (D, 2)
        torch.testing.assert_close(plane @ (plane.T @ q), q, atol=1e-5, rtol=0)


def test_the_two_agree_half_way():
    torch.testing.assert_close(slerp(IMAGE, TEXT, 0.5), weighted_sum(IMAGE, TEXT, 0.5))


@pytest.mark.parametrize("noise", [0.0, 1e-7, 1e-5, 1e-3])
@pytest.mark.parametrize("weight", [0.0, 0.3, 0.5, 1.0])
def test_slerp_of_nearly_parallel_embeddings_is_their_weighted_sum(noise, weight):
    near = F.normalize(IMAGE + noise * TEXT, dim=-1)
    query = slerp(IMAGE, near, weight)
    assert torch.isfinite(query).all()
    torch.testing.assert_close(query, weighted_sum(IMAGE, near, weight), atol=2e-6, rtol=0)


def test_slerp_of_opposite_embeddings_is_finite():
    assert torch.isfinite(slerp(IMAGE, -IMAGE, 0.3)).all()
