"""One study on several processes. In training each computes a part of every batch and sees the loss of the whole:
embeddings are gathered with their gradients, and the mean of all gradients is that of one process with the same batch.
"""

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any, TypeVar

import numpy as np
import psutil
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor, distributed, nn
from torch.distributed.nn.functional import all_gather as all_gather_with_gradients

from cirlib.study.errors import ParameterError, ResourceError

T = TypeVar("T")
ROWS_AT_ONCE = 2048  # of a sum over processes: a whole gallery could be too much for a GPU


def launch(work: Callable[[Any], object], argument: Any, count: int) -> None:
    """Calls ``work(argument)`` in ``count`` new processes (torchrun's), one a GPU where there are GPUs.

    They end with this process, killed or not; where one of them fails all end, with a ResourceError here.

    >>> launch(print, "in a process of its own", 1)
    """
    threads = max(1, torch.get_num_threads() // count)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    with TemporaryDirectory() as folder:
        task = Path(folder) / "task.pickle"
        task.write_bytes(pickle.dumps((work, argument, os.getpid())))
        command += ["-m", "cirlib.study.processes", str(task)]
        launcher = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": str(threads)})
        try:
            failed = launcher.wait()
        finally:  # an interrupt of this process
            launcher.terminate()
            launcher.wait()
    if failed:
        told = f"one of {count} processes failed, its error stands above"
        raise ResourceError(f"{told}: run it again; where memory is short, with fewer processes")


def main() -> None:
    """In a process that :func:`launch` started: does the work of the task file."""
    work, argument, owner = pickle.loads(Path(sys.argv[1]).read_bytes())
    _end_with(owner)
    with process_group():
        work(argument)


def process_pool(workers: int | None = None) -> ProcessPoolExecutor:
    """A pool of ``workers`` processes (None: one a core), none of which outlives this one.

    >>> process_pool(2).submit(abs, -1).result()
    1
    """
    return ProcessPoolExecutor(workers, initializer=_end_with, initargs=(os.getpid(),))


def _end_with(owner: int) -> None:
    """Has this process end when the process with the number ``owner`` has ended, killed or not."""

    def wait_and_end() -> None:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(owner)
            while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.5)
        os._exit(1)

    Thread(target=wait_and_end, daemon=True).start()


@contextmanager
def process_group() -> Iterator[None]:
    """Inside, the processes of any launcher (torchrun, accelerate; on one machine or several) know of each other.

    >>> with process_group():
    ...     PartialState().num_processes
    1
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        PartialState(cpu=not torch.cuda.is_available())
    yield
    if distributed.is_initialized():  # after an error the others would not come to it, and this one would wait
        PartialState().destroy_process_group()


def process_count(asked: int | None, name: str) -> int:
    """How many processes to start for ``asked``, the parameter ``name``; None: one a GPU, or one without GPUs.

    >>> process_count(1, "qformer.processes")
    1
    """
    gpus = torch.cuda.device_count()
    if gpus and (asked or 1) > gpus:
        raise ParameterError(f"{name} is {asked}, at most {gpus} is allowed: so many GPUs are here")
    return asked or max(1, gpus)


def shard(items: Sequence[T]) -> Sequence[T]:
    """The items that this process works on: every n-th of n processes.

    >>> shard([5, 6, 7])  # alone: all
    [5, 6, 7]
    """
    state = PartialState()
    return items[state.process_index :: state.num_processes]


def broadcast(value: T) -> T:
    """What the main process has, on every process.

    >>> broadcast("chosen")
    'chosen'
    """
    return broadcast_object_list([value])[0]


def all_reduce(whole: Tensor) -> Tensor:
    """The sum over the processes, each of which has its own rows of ``whole`` and zeros for the others'; in place.

    >>> all_reduce(torch.ones(2))
    tensor([1., 1.])
    """
    for part in whole.split(ROWS_AT_ONCE) if PartialState().num_processes > 1 else ():
        on_device = part.cuda() if distributed.get_backend() == "nccl" else part
        distributed.all_reduce(on_device)
        part.copy_(on_device)
    return whole


def local_indices(count: int) -> np.ndarray:
    """The rows of a batch of ``count`` that this process computes: every n-th, as many on each process.

    Where ``count`` does not divide, the last repeat rows of the beginning, which :func:`all_gather` leaves out.

    >>> local_indices(3)
    array([0, 1, 2])
    """
    state = PartialState()
    own = state.process_index + state.num_processes * np.arange(-(-count // state.num_processes))
    return own % count


def all_gather(local: Tensor, count: int) -> Tensor:
    """The rows of all processes, (count, …), from those each computed of :func:`local_indices`; gradients flow back.

    >>> all_gather(torch.ones(3, 2), 3).shape
    torch.Size([3, 2])
    """
    if PartialState().num_processes == 1:
        return local
    parts = all_gather_with_gradients(local.contiguous())  # process → (m, …)
    return torch.stack(list(parts), dim=1).flatten(0, 1)[:count]


def average_gradients(model: nn.Module) -> None:
    """Gives every process the mean of all processes' gradients.

    >>> average_gradients(nn.Linear(2, 1))
    """
    state = PartialState()
    for parameter in model.parameters() if state.num_processes > 1 else ():
        if parameter.grad is not None:
            distributed.all_reduce(parameter.grad)
            parameter.grad /= state.num_processes


if __name__ == "__main__":
    main()
