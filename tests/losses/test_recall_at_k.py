"""The recall@k surrogate: its formula in plain floats, the exact metric at its limit, its gradients and promises."""

import math

import pytest
import torch
from torch import Tensor

from cirlib.losses import recall_at_k_loss
from cirlib.retrieval.ranks import Ranks
from cirlib.retrieval.recall_and_precision import recall_at_k

B, N = 7, 23


def draw(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(B, N, dtype=torch.float64, generator=generator)
    return scores, torch.randint(N, (B,), generator=generator)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("ks", [(1,), (1, 2, 4, 8, 16)])
@pytest.mark.parametrize("temperature", [0.05, 0.7])
@pytest.mark.parametrize("rank_temperature", [0.3, 1.0])
def test_equals_the_formula(ks, temperature, rank_temperature):
    scores, targets = draw()
    found = []
    for row, target in zip(scores.tolist(), targets.tolist(), strict=True):
        others = (s for column, s in enumerate(row) if column != target)
        rank = 1 + sum(sigmoid((s - row[target]) / temperature) for s in others)
        found += [sigmoid((k + 0.5 - rank) / rank_temperature) for k in ks]
    options = {"ks": ks, "temperature": temperature, "rank_temperature": rank_temperature}
    assert recall_at_k_loss(scores, targets, **options).item() == pytest.approx(1 - sum(found) / len(found), rel=1e-9)


@pytest.mark.parametrize("k", [1, 5, 10, 22])
def test_is_the_metric_where_the_temperatures_go_to_0(k):
    for seed in range(5):
        scores, targets = draw(seed)
        above = (scores > scores.gather(1, targets[:, None])).sum(1)
        metric = recall_at_k(Ranks(above, torch.zeros_like(above)), k).mean().item()
        loss = recall_at_k_loss(scores, targets, ks=[k], temperature=1e-6, rank_temperature=1e-3)
        assert loss.item() == pytest.approx(1 - metric, abs=1e-9)


def test_gradient_is_right():
    scores, targets = draw()
    assert torch.autograd.gradcheck(lambda s: recall_at_k_loss(s, targets, temperature=0.5), scores.requires_grad_())


def test_a_step_brings_targets_to_the_front():
    scores, targets = draw()
    scores.requires_grad_()
    before = (scores > scores.gather(1, targets[:, None])).sum().item()
    for _ in range(50):
        (gradient,) = torch.autograd.grad(recall_at_k_loss(scores, targets, temperature=0.5), scores)
        scores = (scores - 20 * gradient).detach().requires_grad_()
    assert (scores > scores.gather(1, targets[:, None])).sum().item() < before / 4


def test_only_the_order_counts_unlike_in_a_margin():
    """A target that leads by far and one that leads by little give the same loss, and neither a gradient."""
    near, far = torch.tensor([[0.5, 0.1, 0.0]]), torch.tensor([[0.9, 0.1, 0.0]])
    losses = [recall_at_k_loss(scores, torch.tensor([0])) for scores in (near, far)]
    assert losses[0].item() == pytest.approx(losses[1].item(), abs=1e-9)


def test_a_batch_of_one_and_half_precision_are_taken():
    alone = torch.ones(1, 1, requires_grad=True)
    recall_at_k_loss(alone, torch.tensor([0])).backward()
    assert alone.grad.abs().sum() == 0
    scores, targets = draw()
    half = recall_at_k_loss(scores.bfloat16(), targets, temperature=0.5)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(recall_at_k_loss(scores, targets, temperature=0.5).item(), abs=0.01)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"similarities": torch.ones(3)}, "must be"),
        ({"targets": torch.zeros(4, dtype=torch.long)}, r"must be \(B, N\) and targets \(B,\)"),
        ({"ks": []}, "ks must hold"),
        ({"ks": [0, 1]}, "ks must hold"),
        ({"temperature": 0}, "above 0"),
        ({"rank_temperature": float("nan")}, "above 0"),
    ],
)
def test_what_does_not_fit_is_told(change, message):
    scores, targets = draw()
    given = {"similarities": scores, "targets": targets} | change
    with pytest.raises(ValueError, match=message):
        recall_at_k_loss(given.pop("similarities"), given.pop("targets"), **given)
