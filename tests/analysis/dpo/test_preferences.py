"""The losses on one scale, and the preferences they are computed on."""

import math

import pytest
import torch
from torch.nn import functional as F

from cirlib.analysis.dpo.preferences import SCALE, PairCosines, Preferences
from cirlib.losses import recall_at_k_loss
from cirlib.study.parameters import DPO

GENERATOR = torch.Generator().manual_seed(0)
CHOSEN, BEFORE = torch.rand(2, 5, generator=GENERATOR) / 10
REJECTED, BEFORE_REJECTED = torch.rand(2, 5, 3, generator=GENERATOR) / 10
COSINES = PairCosines(CHOSEN, REJECTED, BEFORE, BEFORE_REJECTED)


@pytest.mark.parametrize("kind", ["sigmoid", "hinge", "ipo"])
def test_dpo_is_the_mean_over_edits_and_negatives(kind):
    margins = SCALE * ((CHOSEN - BEFORE)[:, None] - (REJECTED - BEFORE_REJECTED))
    losses = {
        "sigmoid": -F.logsigmoid(0.3 * margins),
        "hinge": F.relu(1 - 0.3 * margins),
        "ipo": (margins - 1 / 0.6) ** 2,
    }
    torch.testing.assert_close(COSINES.loss(DPO(beta=0.3, loss_type=kind)), losses[kind].mean())


def test_info_nce_on_mined_negatives_is_a_softmax_among_them():
    wanted, others = (50 * CHOSEN).exp(), (50 * REJECTED).exp().sum(1)
    loss = COSINES.loss(DPO(objective="info_nce_mined", beta=0.5))
    torch.testing.assert_close(loss, -(wanted / (wanted + others)).log().mean())


def test_in_batch_objectives_take_the_other_targets_for_negatives(context):
    params, rows = DPO(beta=0.1, objective="info_nce_in_batch"), torch.tensor([2, 7, 4])
    edits, encoder = context.edits(params), context.encoder(params).eval()
    queries, targets = encoder.embed_queries(edits.references, edits.texts), encoder.embed_images(edits.targets)
    expected = -F.log_softmax(10 * queries[rows] @ targets[rows].T, dim=1).diagonal().mean()
    loss, rewards = Preferences(context, params).loss(encoder, rows)
    torch.testing.assert_close(loss, expected)
    assert rewards == {}
    surrogate = DPO(beta=0.1, objective="recall_in_batch")
    expected = recall_at_k_loss(queries[rows] @ targets[rows].T, torch.arange(3), temperature=0.1)
    torch.testing.assert_close(Preferences(context, surrogate).loss(encoder, rows)[0], expected)


def test_rewards_are_those_of_the_batch():
    rewards = COSINES.rewards(DPO(beta=0.1))
    chosen, rejected = 10 * (CHOSEN - BEFORE), 10 * (REJECTED - BEFORE_REJECTED).mean(1)
    means = {"chosen_reward": chosen, "rejected_reward": rejected, "margin": chosen - rejected}
    means["accuracy"] = (chosen > rejected).float()
    assert rewards == pytest.approx({name: values.mean().item() for name, values in means.items()}, abs=1e-6)


def test_mistakes_turn_the_preference_round_or_leave_the_queries_as_they_are(context):
    params, rows = DPO(num_negatives=2, beta=0.01), torch.arange(4)
    encoder = context.encoder(params).eval()
    losses, chosen = [], []
    for corruption in (None, "swapped", "raw"):
        preferences = Preferences(context, params, corruption)
        frozen, others = preferences.frozen_cosines
        preferences.frozen_cosines = frozen - 0.1, others  # as if training had brought the target nearer
        losses.append(preferences.loss(encoder, rows)[0].item())
        chosen.append(preferences.cosines(encoder, rows).chosen)
    assert losses[0] < math.log(2) < losses[1]
    edits = context.edits(params)
    norms = encoder.query_vectors(edits.references[:4], edits.texts[:4]).norm(dim=-1)
    torch.testing.assert_close(chosen[2], norms * chosen[0])
