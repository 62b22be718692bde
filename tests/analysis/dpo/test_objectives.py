"""The objectives on one scale, against loops and against each other."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from cirlib.analysis.dpo.objectives import in_batch_loss, preference_loss, rewards
from cirlib.study.parameters import DPO

GENERATOR = torch.Generator().manual_seed(0)
CHOSEN, BEFORE = torch.rand(2, 5, generator=GENERATOR) * 2 - 1
REJECTED, BEFORE_REJECTED = torch.rand(2, 5, 3, generator=GENERATOR) * 2 - 1


def pair_loss(kind: str, beta: float, margin: float) -> float:
    if kind == "hinge":
        return max(0.0, 1 - beta * margin)
    if kind == "ipo":
        return (margin - 1 / (2 * beta)) ** 2
    return math.log(1 + math.exp(-beta * margin))


@pytest.mark.parametrize("kind", ["sigmoid", "hinge", "ipo"])
@pytest.mark.parametrize("scale", [7.0, 1.0])
def test_dpo_is_the_mean_of_a_loop_over_edits_and_negatives(kind, scale):
    total = 0.0
    for b in range(5):
        for k in range(3):
            margin = (CHOSEN[b] - BEFORE[b]) - (REJECTED[b, k] - BEFORE_REJECTED[b, k])
            total += pair_loss(kind, 0.3, scale * margin.item())
    params = DPO(beta=0.3, scale=scale, loss_type=kind)
    loss = preference_loss(CHOSEN, REJECTED, BEFORE, BEFORE_REJECTED, params)
    assert loss.item() == pytest.approx(total / 15, rel=1e-4)


def test_info_nce_on_mined_negatives_is_a_softmax_among_them():
    params = DPO(objective="info_nce_mined", beta=0.5, scale=4.0)
    loss = preference_loss(CHOSEN, REJECTED, BEFORE, BEFORE_REJECTED, params)
    terms = []
    for b in range(5):
        wanted, others = math.exp(2 * CHOSEN[b]), [math.exp(2 * s) for s in REJECTED[b]]
        terms.append(-math.log(wanted / (wanted + sum(others))))
    assert loss.item() == pytest.approx(sum(terms) / 5, rel=1e-5)


def test_with_one_negative_and_a_reference_without_opinion_dpo_and_info_nce_are_one():
    zeros = torch.zeros(5), torch.zeros(5, 1)
    losses = [
        preference_loss(CHOSEN, REJECTED[:, :1], *zeros, DPO(objective=objective, beta=0.2, scale=30.0))
        for objective in ("dpo", "info_nce_mined")
    ]
    torch.testing.assert_close(*losses)


def test_in_batch_info_nce_takes_the_other_targets_for_negatives():
    cosines = torch.rand(4, 4, generator=GENERATOR)
    expected = -F.log_softmax(3 * cosines, dim=1).diagonal().mean()
    torch.testing.assert_close(in_batch_loss(cosines, DPO(beta=0.1, scale=30.0)), expected)


def test_rewards_are_those_of_the_batch():
    told = rewards(CHOSEN, REJECTED, BEFORE, BEFORE_REJECTED, DPO(beta=0.1, scale=20.0))
    wanted, unwanted = 2 * (CHOSEN - BEFORE), 2 * (REJECTED - BEFORE_REJECTED).mean(1)
    assert told["chosen_reward"] == pytest.approx(wanted.mean().item(), abs=1e-6)
    assert told["rejected_reward"] == pytest.approx(unwanted.mean().item(), abs=1e-6)
    assert told["margin"] == pytest.approx(told["chosen_reward"] - told["rejected_reward"], abs=1e-6)
    assert told["accuracy"] == pytest.approx((wanted > unwanted).float().mean().item())
