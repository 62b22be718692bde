"""One training on several processes: each computes a part of every batch, all see the loss of the whole batch.

Every process holds the whole model. Embeddings are gathered with their gradients, so that in-batch negatives come from
all processes; averaging the gradients then gives those of one process with the same batch.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor, distributed, nn
from torch.distributed.nn.functional import all_gather


def run(work: Callable[[Any], None], argument: Any, size: int) -> None:
    """Calls ``work(argument)`` in ``size`` new processes that know of each other, one a GPU where there are GPUs.

    Raises:
        torch.multiprocessing.ProcessRaisedException: one of them failed; the others are stopped.
    """
    torch.multiprocessing.spawn(_enter, (size, _free_port(), work, argument), nprocs=size)


def _enter(rank: int, size: int, port: int, work: Callable[[Any], None], argument: Any) -> None:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "127.0.0.1"}
    if torch.cuda.is_available():
        torch.cuda.set_device(rank)
    else:
        torch.set_num_threads(max(1, torch.get_num_threads() // size))
    PartialState(cpu=not torch.cuda.is_available())  # opens the process group
    try:
        work(argument)
    finally:
        PartialState().destroy_process_group()


def _free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def size() -> int:
    """How many processes train together; 1 outside of :func:`run`."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return not distributed.is_initialized() or distributed.get_rank() == 0


def wait() -> None:
    """Returns when every process has come here."""
    if size() > 1:
        distributed.barrier()


def own_rows(count: int) -> np.ndarray:
    """The rows of a batch of ``count`` that this process computes: every size-th, as many on each process.

    Where ``count`` does not divide, the last ones repeat rows of the beginning, which :func:`gathered` leaves out.
    """
    if size() == 1:
        return np.arange(count)
    return (distributed.get_rank() + size() * np.arange(-(-count // size()))) % count


def gathered(local: Tensor, count: int) -> Tensor:
    """The rows of all processes, (count, …), from those each computed of :func:`own_rows`; gradients flow back."""
    if size() == 1:
        return local
    parts = all_gather(local.contiguous())  # rank → (m, …)
    return torch.stack(list(parts), dim=1).flatten(0, 1)[:count]


def average_gradients(model: nn.Module) -> None:
    """Gives every process the mean of all processes' gradients."""
    if size() == 1:
        return
    for parameter in model.parameters():
        if parameter.grad is not None:
            distributed.all_reduce(parameter.grad)
            parameter.grad /= size()
