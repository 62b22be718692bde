"""InfoNCE: the contrastive ranking loss of composed image retrieval."""

import torch
import torch.nn.functional as F
from torch import Tensor

from cirlib.losses.gradient_cache import in_chunks

QUERIES_AT_ONCE = 128  # whose scores of every token are kept


def info_nce(
    query: Tensor,
    target: Tensor,
    *,
    temperature: float | Tensor = 0.07,
    negatives: Tensor | None = None,
    symmetric: bool = False,
) -> Tensor:
    """Cross-entropy of each query's own target among the batch's targets and its mined negatives.

    For cosine similarity ``s`` and temperature ``τ``, the mean over the batch of

        L_i = -log( exp(s(q_i, t_i)/τ) / ( Σ_j exp(s(q_i, t_j)/τ) + Σ_k exp(s(q_i, n_ik)/τ) ) )

    which is InfoNCE (van den Oord et al. 2018, eq. 4). An image given as T tokens scores by its best token,
    ``s(q, t) = max_r cos(q, t_r)``, as in BLIP-2 (Li et al. 2023, sec. 3.2) and SPRC (Bai et al. 2024).

    Everything is normalised inside and computed in float32 or wider, under autocast too. Two queries of a
    batch that share a target are each other's negatives: draw batches accordingly.

    Args:
        query: (B, D) composed embeddings, not all zero.
        target: (B, D) or (B, T, D); row i is the target of query i.
        temperature: above 0; a tensor of one element is learnable.
        negatives: (B, K, D) or (B, K, T, D); row i holds negatives of query i alone.
        symmetric: average with the loss from target to query over the batch, as CLIP does (Radford et al. 2021).

    Returns:
        A scalar, at least 0.

    Raises:
        ValueError: no tensors, shapes that do not fit, or a temperature that is not above 0 (of a tensor on an
            accelerator the value is not looked at).

    >>> round(info_nce(torch.eye(2), torch.eye(2), temperature=1.0).item(), 4)  # log(1 + 1/e)
    0.3133
    """
    _check_shapes(query, target, negatives)
    _check_temperature(temperature)
    with torch.autocast(query.device.type, enabled=False):
        wide = torch.promote_types(torch.promote_types(query.dtype, target.dtype), torch.float32)
        query, target = (F.normalize(vectors.to(wide), dim=-1) for vectors in (query, target))
        logits = batch_logits = _best_token(query, target) / temperature  # (B, B)
        if negatives is not None:
            mined_logits = _best_token_of_own(query, F.normalize(negatives.to(wide), dim=-1)) / temperature  # (B, K)
            logits = torch.cat([batch_logits, mined_logits], dim=1)  # (B, B + K)
        labels = torch.arange(len(query), device=query.device)  # (B,)
        loss = F.cross_entropy(logits, labels)
        return (loss + F.cross_entropy(batch_logits.T, labels)) / 2 if symmetric else loss


def _best_token(query: Tensor, target: Tensor) -> Tensor:
    """Every query (B, D) against every target (B, D) or (B, T, D)."""
    if target.ndim == 2:
        return query @ target.T  # (B, B)

    def best(some: Tensor) -> Tensor:
        return torch.einsum("bd,ctd->bct", some, target).amax(dim=-1)  # (b, B)

    return in_chunks(best, query, QUERIES_AT_ONCE)  # (B, B)


def _best_token_of_own(query: Tensor, negatives: Tensor) -> Tensor:
    """Every query (B, D) against its own negatives (B, K, D) or (B, K, T, D)."""
    if negatives.ndim == 3:
        return torch.einsum("bd,bkd->bk", query, negatives)  # (B, K)
    return torch.einsum("bd,bktd->bkt", query, negatives).amax(dim=-1)  # (B, K)


def _check_shapes(query: Tensor, target: Tensor, negatives: Tensor | None) -> None:
    for name, given in (("query", query), ("target", target), ("negatives", negatives)):
        if given is not None and not (isinstance(given, Tensor) and given.is_floating_point()):
            kind = given.dtype if isinstance(given, Tensor) else type(given).__name__
            raise ValueError(f"{name} must be a tensor of floating-point numbers, got {kind}")
    if query.ndim != 2 or len(query) == 0:
        raise ValueError(f"query must be (B, D) with B at least 1, got {tuple(query.shape)}")
    _check_fits("target", target, query, allowed={2: "(B, D)", 3: "(B, T, D)"})
    if negatives is not None:
        _check_fits("negatives", negatives, query, allowed={3: "(B, K, D)", 4: "(B, K, T, D)"})


def _check_fits(name: str, given: Tensor, query: Tensor, allowed: dict[int, str]) -> None:
    batch, width = query.shape
    fits = given.ndim in allowed and given.shape[0] == batch and given.shape[-1] == width
    if not fits or (given.ndim == max(allowed) and given.shape[-2] == 0):
        raise ValueError(
            f"{name} must be {' or '.join(allowed.values())} with B = {batch} and D = {width} "
            f"as in query and T at least 1, got {tuple(given.shape)}"
        )


def _check_temperature(temperature: float | Tensor) -> None:
    if isinstance(temperature, Tensor) and temperature.numel() != 1:
        raise ValueError(f"temperature must have one element, got shape {tuple(temperature.shape)}")
    elsewhere = isinstance(temperature, Tensor) and temperature.device.type != "cpu"  # to ask would stop the device
    if not elsewhere and not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {float(temperature)}")
