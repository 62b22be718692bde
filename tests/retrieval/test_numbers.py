"""Half precision: features as large as float16 goes are scored, ranked and mined as in float32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cirlib.losses import dpo_loss, info_nce
from cirlib.retrieval.hard_negatives import mine_hard_negatives
from cirlib.retrieval.ranks import target_ranks

HALF = [torch.float16, torch.bfloat16]
LARGEST = 60_000.0  # of float16: 65,504; the square of it, or a sum of two, is infinite there


def features(seed: int, *shape: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (LARGEST * (2 * torch.rand(shape, generator=generator) - 1)).to(dtype)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("symmetric", [False, True])
def test_info_nce_of_half_precision_is_that_of_float32(dtype, symmetric):
    query, target = features(0, 4, 64, dtype=dtype), features(1, 4, 3, 64, dtype=dtype)
    negatives = features(2, 4, 2, 3, 64, dtype=dtype)
    options = {"temperature": 0.01, "symmetric": symmetric}
    loss = info_nce(query, target, negatives=negatives, **options)
    wanted = info_nce(query.float(), target.float(), negatives=negatives.float(), **options)
    assert loss.isfinite() and loss.item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("loss_type", ["sigmoid", "hinge", "ipo"])
def test_dpo_of_half_precision_is_that_of_float32(dtype, loss_type):
    scores = [features(seed, 5, dtype=dtype) for seed in range(4)]
    ours = dpo_loss(*scores, loss_type=loss_type)
    theirs = dpo_loss(*(score.float() for score in scores), loss_type=loss_type)
    for one, other in zip(ours, theirs, strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(one.float(), other, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", HALF)
def test_ranks_and_negatives_of_half_precision_are_those_of_float32(dtype):
    queries, gallery = features(0, 6, 64, dtype=dtype), features(1, 20, 64, dtype=dtype)
    targets = list(range(6))
    assert torch.equal(
        target_ranks(queries, gallery, targets).above, target_ranks(queries.float(), gallery.float(), targets).above
    )
    options = {"positives": [[row] for row in targets], "num_negatives": 4, "progress": False}
    ours, theirs = (
        mine_hard_negatives(queries, gallery, **options),
        mine_hard_negatives(queries.float(), gallery.float(), **options),
    )
    assert (ours.indices == theirs.indices).all() and (ours.indices >= 0).all()
