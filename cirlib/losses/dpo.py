"""Direct preference optimisation on retrieval scores: prefer the target over a hard negative."""

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

LossType = Literal["sigmoid", "hinge", "ipo"]


def dpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor | None,
    reference_rejected: Tensor | None,
    *,
    beta: float = 0.1,
    loss_type: LossType = "sigmoid",
    label_smoothing: float = 0.0,
    reference_free: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Preference loss of each (target, hard negative) pair, by how much the policy left its reference.

    A score plays the part of a log-probability. With the margin
    h = (policy_chosen - reference_chosen) - (policy_rejected - reference_rejected) the loss of a pair is

        sigmoid: -(1 - ε) log σ(β h) - ε log σ(-β h)    DPO, Rafailov et al. 2023, eq. 7; ε > 0: Mitchell 2023
        hinge:   max(0, 1 - β h)                        SLiC, Zhao et al. 2023, eq. 1, on DPO's margin
        ipo:     (h - 1 / (2 β))²                       IPO, Azar et al. 2023, eq. 17

    as in TRL's ``DPOTrainer``, but that there is no text over whose tokens ``ipo`` would average.

    Args:
        policy_chosen: (B,) scores of the targets by the model in training; any real numbers.
        policy_rejected: (B,) or (B, K) scores of the negatives.
        reference_chosen: (B,) the same by the frozen copy; may be None when ``reference_free``.
        reference_rejected: shaped as ``policy_rejected``; may be None when ``reference_free``.
        beta: above 0; how strongly a margin counts (sigmoid, hinge), or how small a margin to aim at (ipo).
        label_smoothing: ε in [0, 0.5), the share of pairs thought to be the wrong way round; sigmoid only.
        reference_free: take the reference's scores as 0, whatever was given.

    Returns:
        losses (≥ 0, shaped as ``policy_rejected``: take their mean), and without gradients the rewards
        β (policy - reference) of the chosen (B,) and of the rejected (shaped as ``policy_rejected``).

    Raises:
        ValueError: shapes that do not fit, an unknown ``loss_type``, or a number out of range.

    >>> losses, chosen, rejected = dpo_loss(torch.zeros(1), torch.zeros(1), torch.zeros(1), torch.zeros(1))
    >>> round(losses.item(), 4), chosen.item()  # nothing is learned yet: log 2
    (0.6931, 0.0)
    """
    _check_options(beta, loss_type, label_smoothing)
    _check_shapes(policy_chosen, policy_rejected)
    chosen = _log_ratio("chosen", policy_chosen, reference_chosen, reference_free)  # (B,)
    rejected = _log_ratio("rejected", policy_rejected, reference_rejected, reference_free)  # (B,) or (B, K)
    margins = (chosen if rejected.ndim == 1 else chosen[:, None]) - rejected  # (B,) or (B, K)
    losses = _pair_losses(margins, beta, loss_type, label_smoothing)  # (B,) or (B, K)
    return losses, (beta * chosen).detach(), (beta * rejected).detach()


def _pair_losses(margins: Tensor, beta: float, loss_type: LossType, label_smoothing: float) -> Tensor:
    if loss_type == "hinge":
        return F.relu(1 - beta * margins)  # (B,) or (B, K)
    if loss_type == "ipo":
        return (margins - 1 / (2 * beta)).square()  # (B,) or (B, K)
    right, wrong = F.logsigmoid(beta * margins), F.logsigmoid(-beta * margins)  # (B,) or (B, K)
    return -(1 - label_smoothing) * right - label_smoothing * wrong  # (B,) or (B, K)


def _log_ratio(name: str, policy: Tensor, reference: Tensor | None, reference_free: bool) -> Tensor:
    """Policy less reference, in float32 or wider: differences of scores are small."""
    wide = torch.promote_types(policy.dtype, torch.float32)
    if reference_free:
        return policy.to(wide)  # as policy
    if reference is None:
        raise ValueError(f"reference_{name} is None: give scores, or reference_free=True")
    if reference.shape != policy.shape:
        shapes = f"{tuple(policy.shape)} as policy_{name}, got {tuple(reference.shape)}"
        raise ValueError(f"reference_{name} must be {shapes}")
    return policy.to(wide) - reference.to(wide)  # as policy


def _check_options(beta: float, loss_type: str, label_smoothing: float) -> None:
    if loss_type not in get_args(LossType):
        raise ValueError(f"loss_type must be one of {list(get_args(LossType))}, got {loss_type!r}")
    if not 0 < beta < math.inf:
        raise ValueError(f"beta must be above 0 and finite, got {beta}")
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must be at least 0 and below 0.5, got {label_smoothing}")
    if label_smoothing > 0 and loss_type != "sigmoid":
        raise ValueError(f"label_smoothing goes with loss_type 'sigmoid' only, got {loss_type!r}")


def _check_shapes(chosen: Tensor, rejected: Tensor) -> None:
    for name, given in (("policy_chosen", chosen), ("policy_rejected", rejected)):
        if not isinstance(given, Tensor):
            raise ValueError(f"{name} must be a tensor, got {type(given).__name__}")
    if chosen.ndim != 1:
        raise ValueError(f"policy_chosen must be (B,), got {tuple(chosen.shape)}")
    if rejected.ndim not in (1, 2) or len(rejected) != len(chosen):
        allowed = f"(B,) or (B, K) with B = {len(chosen)} as in policy_chosen"
        raise ValueError(f"policy_rejected must be {allowed}, got {tuple(rejected.shape)}")
