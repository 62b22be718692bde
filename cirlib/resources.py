"""What a stage is going to need, said before it starts: disk, memory, and time at a rate that is measured."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn

from cirlib.encoders.images import ImageEncoder, open_rgb
from cirlib.memory import ResourceError

OPTIMISER_COPIES = 2  # AdamW keeps two moments of every trained weight
WORKER_BYTES = 100_000_000  # what a decoding process has of its own, about
SPARE_DISK = 500_000_000  # bytes that are to stay free


@dataclass(frozen=True)
class Needs:
    """An estimate: bytes on disk and in memory, seconds at the measured rate.

    Attributes:
        work: what is to be done, with its number. rate: units a second. unit: of what.
        gpu_memory: None where there is no GPU.
    """

    work: str
    unit: str
    rate: float
    seconds: float
    disk: int
    memory: int
    gpu_memory: int | None

    def __str__(self) -> str:
        gpu = "" if self.gpu_memory is None else f", {size(self.gpu_memory)} of GPU memory"
        return (
            f"{self.work}: {size(self.disk)} on disk, {size(self.memory)} of memory{gpu}, "
            f"{duration(self.seconds)} at {self.rate:,.3g} {self.unit}/s"
        )


def size(count: int) -> str:
    """Bytes for reading: ``29 GB``."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count / 1e3:.3g} kB"


def duration(seconds: float) -> str:
    """Seconds for reading: ``2.5 h``, ``40 min`` or ``12 s``."""
    for unit, scale in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * scale:
            return f"{seconds / scale:.2g} {unit}"
    return f"{seconds:.0f} s"


def require_disk(folder: Path, needed: int, advice: str) -> None:
    """Refuses work whose output would not fit on the disk of ``folder``.

    Raises:
        ResourceError: with what is needed, what is free, and the advice.
    """
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed + SPARE_DISK > free:
        raise ResourceError(f"{folder} needs {size(needed)} and its disk has {size(free)} free: {advice}")


def encoding_needs(work: str, encoder: ImageEncoder, files: Sequence[Path], bytes_an_image: int, workers: int) -> Needs:
    """What encoding ``files`` takes, from the first few of them encoded now."""
    sample = files[:8]
    _reset_gpu_peak()
    _encode(encoder, sample)  # warms up
    start = time.perf_counter()
    _encode(encoder, sample)
    _wait_for_gpu()
    rate = len(sample) / (time.perf_counter() - start)
    memory = psutil.Process().memory_info().rss + workers * WORKER_BYTES
    return Needs(
        work, "images", rate, len(files) / rate, len(files) * bytes_an_image, memory, _gpu_peak()
    )  # fmt: skip


@torch.inference_mode()
def _encode(encoder: ImageEncoder, files: Sequence[Path]) -> None:
    encoder.encode_pixels(torch.stack([encoder.transform(open_rgb(file)) for file in files]))


class StepWatch:
    """Watches the first steps of a training and says once what the whole takes.

    The first step tells what a step keeps for its backward pass, the second (the first where there is one only) how
    long one takes.
    """

    def __init__(self, run: str, model: nn.Module, unit: str, steps: int) -> None:
        self.run, self.model, self.unit, self.steps = run, model, unit, steps
        self.seen, self.activations = 0, 0

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Around the forward pass of a step."""
        self.start = time.perf_counter()
        if self.seen:
            yield
            return
        with kept_for_backward(self.model) as kept:
            yield
        self.activations = sum(kept.values())

    def after_step(self, batch_size: int) -> None:
        """Called when a step is done."""
        self.seen += 1
        if self.seen == min(2, self.steps):
            _wait_for_gpu()
            seconds = time.perf_counter() - self.start
            print(self.needs(batch_size, seconds), flush=True)

    def needs(self, batch_size: int, seconds: float) -> Needs:
        """Of all the steps, one of which takes ``seconds``."""
        trained, weights = _bytes(self.model)
        tensors = weights + (1 + OPTIMISER_COPIES) * trained + self.activations
        on_gpu = next(self.model.parameters()).device.type == "cuda"
        return Needs(
            work=f"{self.run}, {self.steps:,} steps of {batch_size} {self.unit}",
            unit=self.unit,
            rate=batch_size / seconds,
            seconds=self.steps * seconds,
            disk=state_bytes(self.model),
            memory=psutil.Process().memory_info().rss + (0 if on_gpu else self.activations),
            gpu_memory=tensors if on_gpu else None,
        )


def state_bytes(model: nn.Module) -> int:
    """What a training keeps on disk: the state to go on from, and the best weights."""
    trained, weights = _bytes(model)
    return 2 * weights + OPTIMISER_COPIES * trained


def _bytes(model: nn.Module) -> tuple[int, int]:
    """Of the weights that are trained, and of all."""
    sizes = [(p.numel() * p.element_size(), p.requires_grad) for p in model.parameters()]
    return sum(count for count, trained in sizes if trained), sum(count for count, _ in sizes)


@contextmanager
def kept_for_backward(model: nn.Module) -> Iterator[dict[int, int]]:
    """Collects the memory that the enclosed forward pass keeps for its backward pass: storage → bytes, no weights."""
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


def _reset_gpu_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _gpu_peak() -> int | None:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


def _wait_for_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
