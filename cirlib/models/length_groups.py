"""Texts of like length embedded together, so that little is computed on padding."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def by_length(embed: Callable[[list[int]], Tensor], texts: Sequence[str], size: int) -> Tensor:
    """What ``embed`` gives for rows of ``texts``, (N, …) in their order; it is asked for up to ``size`` at a time.

    >>> by_length(lambda rows: torch.tensor(rows), ["long text", "short"], size=1).tolist()
    [0, 1]
    """
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    parts = torch.cat([embed(order[start : start + size]) for start in range(0, len(order), size)])
    return parts[torch.tensor(order, device=parts.device).argsort()]


def quarters(texts: Sequence[str]) -> int:
    """Rows at a time: a batch in four, the shortest texts first; few are not worth parting.

    >>> quarters(["is red"] * 256), quarters(["is red"] * 8)
    (64, 32)
    """
    return max(32, -(-len(texts) // 4))
