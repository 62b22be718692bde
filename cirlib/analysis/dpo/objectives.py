"""The losses that are compared, on one scale: similarity times ``scale`` times β is a logit in all of them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cirlib.losses.dpo import dpo_loss
from cirlib.study.parameters import DPO

SCALE = 100.0  # multiplies cosine similarities: CLIP's logit scale


def preference_loss(
    chosen: Tensor, rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, params: DPO
) -> Tensor:
    """The mean loss of cosines with the targets (B,) and with their negatives (B, K).

    ``dpo``: :func:`~cirlib.losses.dpo.dpo_loss` on the scaled cosines. ``info_nce_mined``: the target's cross-entropy
    among itself and its K negatives at temperature 1 / (β · scale), so that with one negative and a reference that
    has no opinion the two are the same function.

    Args:
        reference_chosen, reference_rejected: the frozen model's cosines, shaped alike.
    """
    if params.objective == "info_nce_mined":
        logits = params.beta * SCALE * torch.cat([chosen[:, None], rejected], dim=1)  # (B, 1 + K)
        return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))
    losses, _, _ = dpo_loss(
        SCALE * chosen, SCALE * rejected, SCALE * reference_chosen, SCALE * reference_rejected,
        beta=params.beta, loss_type=params.loss_type,
    )  # fmt: skip
    return losses.mean()


def in_batch_loss(cosines: Tensor, params: DPO) -> Tensor:
    """InfoNCE among the batch's targets at temperature 1 / (β · scale), from cosines (B, B), target b at column b."""
    return F.cross_entropy(params.beta * SCALE * cosines, torch.arange(len(cosines), device=cosines.device))


def rewards(
    chosen: Tensor, rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, params: DPO
) -> dict[str, float]:
    """DPO's rewards β · scale · (cosine − the frozen model's), the means of a batch, and how often the target leads."""
    strength = params.beta * SCALE
    wanted = strength * (chosen - reference_chosen).detach()  # (B,)
    unwanted = strength * (rejected - reference_rejected).detach().mean(-1)  # (B,)
    return {
        "margin": (wanted - unwanted).mean().item(),
        "chosen_reward": wanted.mean().item(),
        "rejected_reward": unwanted.mean().item(),
        "accuracy": (wanted > unwanted).float().mean().item(),
    }
