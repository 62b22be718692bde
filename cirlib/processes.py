"""One study on several processes: encoding, mining and every batch of a training are shared out.

Every process holds the whole model. In training each computes a part of every batch and sees the loss of the whole
batch: embeddings are gathered with their gradients, so that in-batch negatives come from all processes; averaging the
gradients then gives those of one process with the same batch.

:func:`run` starts the processes on one machine; where a launcher has (``accelerate launch``, ``torchrun``, on one
machine or several), they find each other in :func:`together`.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor, distributed, nn
from torch.distributed.nn.functional import all_gather
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from cirlib.files import replace_file
from cirlib.memory import ResourceError
from cirlib.params import ParameterError
from cirlib.workers import end_with_parent

T = TypeVar("T")
JOINED_ROWS = 2048  # at a time


def run(work: Callable[[Any], None], argument: Any, size: int) -> None:
    """Calls ``work(argument)`` in ``size`` new processes that know of each other, one a GPU where there are GPUs.

    They end with this process, killed or not. What one of them raises ends the others, and is raised here.

    Raises:
        ResourceError: one of them was ended by a signal.
    """
    with TemporaryDirectory() as folder:
        arguments = (size, _free_port(), work, argument, Path(folder))
        started = torch.multiprocessing.spawn(_enter, arguments, nprocs=size, join=False)
        try:
            while not started.join():
                pass
        except ProcessRaisedException as error:
            if killed := _killed(started.processes):  # that another then raised only follows from it
                raise _ended(killed, size) from error
            raise (_first_error(Path(folder)) or error) from error
        except ProcessExitedException as error:
            raise _ended(error.signal_name or f"exit code {error.exit_code}", size) from error
        finally:  # an interrupt of this process is none of theirs
            for process in started.processes:
                process.kill()
                process.join()


def _killed(started: Sequence[BaseProcess]) -> str | None:
    """The signal that ended one of the processes, other than that by which torch ends those left."""
    codes = [process.exitcode or 0 for process in started]
    return next((signal.Signals(-code).name for code in codes if code < 0 and -code != signal.SIGTERM), None)


def _ended(how: str, size: int) -> ResourceError:
    advice = "; where memory is short, with fewer processes" if how == "SIGKILL" else ""
    return ResourceError(f"one of {size} processes was ended ({how}): run it again{advice}")


def _first_error(folder: Path) -> Exception | None:
    """What a process raised, whole: the first, as those of the others only follow from it."""
    whole = [file for file in folder.iterdir() if file.name.isdigit()]
    files = sorted(whole, key=lambda file: file.stat().st_mtime_ns)
    return pickle.loads(files[0].read_bytes()) if files else None


def _portable(error: Exception) -> bytes:
    """The error, or where it cannot be told to another process what was printed of it."""
    try:
        pickle.loads(whole := pickle.dumps(error))
    except Exception:
        return pickle.dumps(RuntimeError("".join(traceback.format_exception(error))))
    return whole


def _enter(rank: int, size: int, port: int, work: Callable[[Any], None], argument: Any, errors: Path) -> None:
    end_with_parent()
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "127.0.0.1"}
    if not torch.cuda.is_available():
        threads = max(1, torch.get_num_threads() // size)
        torch.set_num_threads(threads)
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # else accelerate would set another
    with together():
        try:
            work(argument)
        except Exception as error:
            whole = _portable(error)
            replace_file(errors / str(rank), lambda path: path.write_bytes(whole))
            raise


@contextmanager
def together() -> Iterator[None]:
    """The processes that a launcher started, of which the environment tells, know of each other inside."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        PartialState(cpu=not torch.cuda.is_available())  # opens the process group, and takes a GPU of its own
    yield
    if distributed.is_initialized():  # after an error the others would not come to it, and this one would wait
        PartialState().destroy_process_group()


def available(asked: int | None, name: str) -> int:
    """How many processes to start for ``asked``, the parameter ``name``; None: one a GPU, or one.

    Raises:
        ParameterError: there are GPUs, but fewer.
    """
    gpus = torch.cuda.device_count()
    if gpus and (asked or 1) > gpus:
        raise ParameterError(f"{name} is {asked}, at most {gpus} is allowed: so many GPUs are here")
    return asked or max(1, gpus)


def _free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def size() -> int:
    """How many processes work together; 1 outside of :func:`together`."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return rank() == 0


def wait() -> None:
    """Returns when every process has come here."""
    if size() > 1:
        distributed.barrier()


def share(items: Sequence[T]) -> Sequence[T]:
    """The items that this process works on: every size-th."""
    return items[rank() :: size()]


def joined(whole: Tensor) -> Tensor:
    """The sum over the processes, each of which has its own rows of ``whole`` and zeros for the others'; in place."""
    for part in whole.split(JOINED_ROWS) if size() > 1 else ():  # a whole gallery could be too much for a GPU
        on = part.cuda() if distributed.get_backend() == "nccl" else part
        distributed.all_reduce(on)
        part.copy_(on)
    return whole


def told(value: T | None) -> T:
    """What the first process has, on every process."""
    values = [value]
    if size() > 1:
        distributed.broadcast_object_list(values)
    return values[0]


def own_rows(count: int) -> np.ndarray:
    """The rows of a batch of ``count`` that this process computes: every size-th, as many on each process.

    Where ``count`` does not divide, the last ones repeat rows of the beginning, which :func:`gathered` leaves out.
    """
    if size() == 1:
        return np.arange(count)
    return (rank() + size() * np.arange(-(-count // size()))) % count


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
