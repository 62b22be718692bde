"""A loss that is the reported metric made smooth: the recall@k surrogate of Patel, Tolias and Matas (2022)."""

from collections.abc import Sequence

import torch
from torch import Tensor


def recall_at_k_loss(
    similarities: Tensor,
    targets: Tensor,
    *,
    ks: Sequence[int] = (1, 2, 4, 8, 16),
    temperature: float = 0.01,
    rank_temperature: float = 1.0,
) -> Tensor:
    """1 less the smooth recall@k of each query's one target, the mean over queries and ``ks``.

    With the logistic function σ and the similarities s of a query, the target's rank and its recall are

        r = 1 + Σ_j σ((s_j − s_target) / temperature)            j: every other image
        recall@k = σ((k + ½ − r) / rank_temperature)

    which are eq. 4 and 5 of "Recall@k Surrogate Loss with Large Batches and Similarity Mixup" (CVPR 2022), but for the
    half rank: with it the loss is exactly 1 − recall@k where both temperatures go to 0. Only the order counts: a
    target that leads is not pushed further, one that is far behind has hardly a gradient.

    Args:
        similarities: (B, N) of each query with N images, such as the targets of its batch; in float32 or wider.
        targets: (B,) the column of each query's target, 0 to N − 1.
        ks: at least one, each at least 1; their defaults and the temperatures' are the paper's.
        temperature: above 0; the difference of similarities that a change of order takes.
        rank_temperature: above 0; the ranks over which being found turns into not being found.

    Returns:
        A scalar in [0, 1].

    Raises:
        ValueError: shapes that do not fit, no ``ks``, or a temperature that is not above 0.

    >>> round(recall_at_k_loss(torch.eye(2), torch.tensor([0, 1]), ks=[1], rank_temperature=0.01).item(), 4)
    0.0
    """
    if similarities.ndim != 2 or targets.shape != similarities.shape[:1] or not len(targets):
        shapes = f"{tuple(similarities.shape)} and {tuple(targets.shape)}"
        raise ValueError(f"similarities must be (B, N) and targets (B,) with B at least 1, got {shapes}")
    if not len(ks) or min(ks) < 1:
        raise ValueError(f"ks must hold numbers of at least 1, got {list(ks)}")
    if not (temperature > 0 and rank_temperature > 0):
        raise ValueError(f"both temperatures must be above 0, got {temperature} and {rank_temperature}")
    with torch.autocast(similarities.device.type, enabled=False):
        scores = similarities.to(torch.promote_types(similarities.dtype, torch.float32))
        own = scores.gather(1, targets[:, None])  # (B, 1)
        ahead = torch.sigmoid((scores - own) / temperature)  # (B, N)
        ranks = 1 + ahead.scatter(1, targets[:, None], 0).sum(1)  # (B,)
        limits = torch.as_tensor(ks, device=ranks.device) + 0.5  # (K,)
        return 1 - torch.sigmoid((limits - ranks[:, None]) / rank_temperature).mean()
