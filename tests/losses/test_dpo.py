"""The DPO loss against the papers' formulas written out in plain floats, and its promises."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from cirlib.losses import dpo_loss

B, K = 6, 4
LOSS_TYPES = ("sigmoid", "hinge", "ipo")
OPTIONS = [
    {"loss_type": loss_type, "beta": beta, "label_smoothing": smoothing}
    for loss_type, beta, smoothing in itertools.product(LOSS_TYPES, (0.1, 2.0), (0.0, 0.2))
    if smoothing == 0 or loss_type == "sigmoid"
]


def draw_scores(rejected: tuple[int, ...] = (B,), dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """policy chosen, policy rejected, reference chosen, reference rejected."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(B,), rejected, (B,), rejected]
    return [torch.randn(*s, dtype=dtype, generator=generator).requires_grad_() for s in shapes]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def pair_oracle(pc: float, pr: float, rc: float, rr: float, options: dict) -> float:
    """The loss of one pair, with the sums bracketed as in the papers: policy ratio less reference ratio."""
    beta, smoothing = options["beta"], options["label_smoothing"]
    margin = (pc - pr) - (rc - rr)
    if options["loss_type"] == "hinge":
        return max(0.0, 1 - beta * margin)
    if options["loss_type"] == "ipo":
        return (margin - 1 / (2 * beta)) ** 2
    wrong = math.log(1 - sigmoid(beta * margin))
    return -(1 - smoothing) * math.log(sigmoid(beta * margin)) - smoothing * wrong


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", [(B,), (B, K), (B, B)], ids=["one negative", "many", "as many as queries"])
def test_equals_the_formula(shape: tuple[int, ...], options: dict) -> None:
    scores = draw_scores(shape)
    losses, chosen_rewards, rejected_rewards = dpo_loss(*scores, **options)
    assert (chosen_rewards.shape, losses.shape, rejected_rewards.shape) == ((B,), shape, shape)
    assert losses.requires_grad and not chosen_rewards.requires_grad and not rejected_rewards.requires_grad
    pc, pr, rc, rr = (s.tolist() if s.ndim == 2 or n % 2 == 0 else s[:, None].tolist() for n, s in enumerate(scores))
    for i, k in itertools.product(range(B), range(len(pr[0]))):
        expected = pair_oracle(pc[i], pr[i][k], rc[i], rr[i][k], options)
        assert losses.view(B, -1)[i, k].item() == pytest.approx(expected, rel=1e-9)
        assert chosen_rewards[i].item() == pytest.approx(options["beta"] * (pc[i] - rc[i]))
        assert rejected_rewards.view(B, -1)[i, k].item() == pytest.approx(options["beta"] * (pr[i][k] - rr[i][k]))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradient_is_right(options: dict) -> None:
    assert torch.autograd.gradcheck(lambda *s: dpo_loss(*s, **options)[0], draw_scores((B, K)))


def test_reference_free_takes_the_reference_as_zero() -> None:
    pc, pr, rc, rr = draw_scores((B, K))
    expected = dpo_loss(pc, pr, torch.zeros_like(pc), torch.zeros_like(pr))
    for free in (
        dpo_loss(pc, pr, None, None, reference_free=True),
        dpo_loss(pc, pr, rc, rr, reference_free=True),
    ):
        torch.testing.assert_close(free, expected)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("size", [1e4, 1e8, -1e4, -1e8])
def test_extreme_scores_stay_finite(options: dict, size: float) -> None:
    chosen = torch.full((B,), size, requires_grad=True)
    rejected = torch.full((B, K), -size, requires_grad=True)
    losses = dpo_loss(chosen, rejected, torch.zeros(B), torch.zeros(B, K), **options)[0]
    losses.sum().backward()
    assert losses.isfinite().all()
    assert chosen.grad.isfinite().all()
    assert rejected.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_scores_are_subtracted_in_float32(dtype: torch.dtype) -> None:
    scores = [s.to(dtype) for s in draw_scores((B, K))]
    for given, wide in zip(dpo_loss(*scores), dpo_loss(*(s.float() for s in scores)), strict=True):
        assert given.dtype == torch.float32
        torch.testing.assert_close(given, wide)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0.0}, "beta must be above 0 and finite, got 0.0"),
        ({"beta": float("inf")}, "beta must be above 0 and finite, got inf"),
        ({"beta": float("nan")}, "beta must be above 0"),
        ({"label_smoothing": 0.5}, "label_smoothing must be at least 0 and below 0.5, got 0.5"),
        ({"label_smoothing": -0.1}, "label_smoothing must be"),
        ({"label_smoothing": 0.1, "loss_type": "ipo"}, "'sigmoid' only, got 'ipo'"),
        ({"loss_type": "kto"}, r"loss_type must be one of \['sigmoid', 'hinge', 'ipo'\], got 'kto'"),
    ],
)
def test_wrong_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dpo_loss(*draw_scores(), **options)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((B, 1), (B,), (B, 1), (B,)), r"policy_chosen must be \(B,\), got \(6, 1\)"),
        (((B,), (B + 1,), (B,), (B + 1,)), r"policy_rejected must be .* B = 6 .*got \(7,\)"),
        (((B,), (), (B,), ()), "policy_rejected must be"),
        (((B,), (B,), (1,), (B,)), r"reference_chosen must be \(6,\) as policy_chosen, got \(1,\)"),
        (((B,), (B, K), (B,), (B,)), r"reference_rejected must be \(6, 4\) as policy_rejected, got \(6,\)"),
    ],
)
def test_wrong_shapes_are_named(shapes: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dpo_loss(*(torch.zeros(shape) for shape in shapes))


def test_a_missing_reference_is_named() -> None:
    pc, pr, rc, _ = draw_scores()
    with pytest.raises(ValueError, match=r"reference_rejected is None: .* reference_free=True"):
        dpo_loss(pc, pr, rc, None)
