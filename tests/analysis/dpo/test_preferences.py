"""The losses on one scale, against loops and against each other; the preferences they are computed on."""

import math

import pytest
import torch
from torch.nn import functional as F

from cirlib.analysis.dpo.preferences import SCALE, PairCosines, Preferences
from cirlib.study.parameters import DPO

GENERATOR = torch.Generator().manual_seed(0)
CHOSEN, BEFORE = torch.rand(2, 5, generator=GENERATOR) / 10
REJECTED, BEFORE_REJECTED = torch.rand(2, 5, 3, generator=GENERATOR) / 10
COSINES = PairCosines(CHOSEN, REJECTED, BEFORE, BEFORE_REJECTED)


def pair_loss(kind: str, beta: float, margin: float) -> float:
    if kind == "hinge":
        return max(0.0, 1 - beta * margin)
    if kind == "ipo":
        return (margin - 1 / (2 * beta)) ** 2
    return math.log(1 + math.exp(-beta * margin))


@pytest.mark.parametrize("kind", ["sigmoid", "hinge", "ipo"])
def test_dpo_is_the_mean_of_a_loop_over_edits_and_negatives(kind):
    total = 0.0
    for b in range(5):
        for k in range(3):
            margin = (CHOSEN[b] - BEFORE[b]) - (REJECTED[b, k] - BEFORE_REJECTED[b, k])
            total += pair_loss(kind, 0.3, SCALE * margin.item())
    assert COSINES.loss(DPO(beta=0.3, loss_type=kind)).item() == pytest.approx(total / 15, rel=1e-4)


def test_info_nce_on_mined_negatives_is_a_softmax_among_them():
    loss = COSINES.loss(DPO(objective="info_nce_mined", beta=0.5))
    terms = []
    for b in range(5):
        wanted, others = math.exp(50 * CHOSEN[b]), [math.exp(50 * s) for s in REJECTED[b]]
        terms.append(-math.log(wanted / (wanted + sum(others))))
    assert loss.item() == pytest.approx(sum(terms) / 5, rel=1e-4)


def test_in_batch_info_nce_takes_the_other_targets_for_negatives(context):
    params, rows = DPO(beta=0.1, objective="info_nce_in_batch"), torch.tensor([2, 7, 4])
    edits, encoder = context.edits(params), context.encoder(params).eval()
    queries, targets = encoder.embed_queries(edits.references, edits.texts), encoder.embed_images(edits.targets)
    expected = -F.log_softmax(10 * queries[rows] @ targets[rows].T, dim=1).diagonal().mean()
    loss, rewards = Preferences(context, params).loss(encoder, rows)
    torch.testing.assert_close(loss, expected)
    assert rewards == {}


def test_rewards_are_those_of_the_batch():
    rewards = COSINES.rewards(DPO(beta=0.1))
    chosen, rejected = 10 * (CHOSEN - BEFORE), 10 * (REJECTED - BEFORE_REJECTED).mean(1)
    assert rewards["chosen_reward"] == pytest.approx(chosen.mean().item(), abs=1e-6)
    assert rewards["rejected_reward"] == pytest.approx(rejected.mean().item(), abs=1e-6)
    assert rewards["margin"] == pytest.approx(rewards["chosen_reward"] - rewards["rejected_reward"], abs=1e-6)
    assert rewards["accuracy"] == pytest.approx((chosen > rejected).float().mean().item())


def test_what_the_q_former_mines_is_what_its_score_ranks_highest(context):
    """An image counts by its best token, in mining as in the score; the mean token ranks others first."""
    params = DPO(fusion="qformer", num_negatives=2)
    preferences, edits = Preferences(context, params), context.edits(params)
    queries = preferences.frozen.embed_queries(edits.references, edits.texts)
    for row, (query, category) in enumerate(zip(queries, edits.categories, strict=True)):
        scores = (preferences.frozen.embed_images(edits.pools[category]) @ query).amax(1).tolist()
        order = [image for _, image in sorted(zip(scores, edits.pools[category], strict=True), reverse=True)]
        own = {edits.targets[row], edits.references[row]}
        assert preferences.negatives[row].tolist() == [image for image in order if image not in own][:2]


def test_mistakes_turn_the_preference_round_or_leave_the_queries_as_they_are(context):
    params, rows = DPO(num_negatives=2, beta=0.01), torch.arange(4)
    encoder = context.encoder(params).eval()
    losses, chosen = [], []
    for corruption in (None, "swapped", "raw"):
        preferences = Preferences(context, params, corruption)
        preferences.frozen_chosen = preferences.frozen_chosen - 0.1  # as if training had brought the target nearer
        losses.append(preferences.loss(encoder, rows)[0].item())
        chosen.append(preferences.cosines(encoder, rows).chosen)
    assert losses[0] < math.log(2) < losses[1]
    edits = context.edits(params)
    norms = encoder.query_vectors(edits.references[:4], edits.texts[:4]).norm(dim=-1)
    torch.testing.assert_close(chosen[2], norms * chosen[0])
