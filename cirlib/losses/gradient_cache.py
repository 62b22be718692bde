"""Contrastive losses of large batches in the memory of small ones: gradient caching (Gao et al., 2021, GradCache).

Every loss over a batch needs all its embeddings, but no more of the encoder than that. So the batch is embedded in
chunks whose activations are dropped, the loss is taken of the embeddings, and on the way back each chunk is embedded
once more, with the same random numbers, to hand its part of the gradient on (their section 3.2).
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Rows = Sequence | np.ndarray | Tensor


def in_chunks(embed: Callable[[Rows], Tensor], rows: Rows, size: int | None) -> Tensor:
    """``embed(rows)``, (B, …), keeping the activations of ``size`` rows at a time; of all where None.

    Args:
        embed: rows of a batch to their embeddings, each row by itself; is called twice for each chunk.

    >>> in_chunks(torch.square, torch.arange(3.0), 2)
    tensor([0., 1., 4.])
    """
    if size is None or len(rows) <= size:
        return embed(rows)
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    return torch.cat([checkpoint(embed, part, use_reentrant=False) for part in parts])
