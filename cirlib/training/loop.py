"""The one training loop: epochs of batches, a dev score after each, resumable, best epoch kept.

Losses, composers and data come from the caller; the loop knows optimiser, schedule, precision, checkpoints.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import isfinite
from pathlib import Path

import pandas as pd
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from cirlib.models.devices import precision_here
from cirlib.study.files import replace_file
from cirlib.study.processes import average_gradients, broadcast
from cirlib.study.resources import require_disk, within_memory

SMALLER_STEPS = (
    "lower batch_size and raise accumulation by the same factor; for the Q-Former, qformer.gradient_checkpointing=true "
    "or qformer.chunk_size=16 keep the batch as it is"
)
NAMED = 8  # of a batch, in the sentence that stops a run
PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


@dataclass(frozen=True)
class Recipe:
    """How to optimise: AdamW, one cycle of the learning rate with its peak at 10 % of the steps."""

    epochs: int
    lr: float
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    precision: str = "auto"
    accumulation: int = 1
    max_norm: float = 1.0


@dataclass
class History:
    """One record an epoch: ``epoch``, ``loss``, whatever the dev score gives, ``triplets/s``.

    ``steps`` has what the loss told beside itself, one record a batch.
    """

    run: str
    records: list[dict] = field(default_factory=list)
    steps: list[dict] = field(default_factory=list)

    def best(self, metric: str) -> dict:
        """The record with the highest ``metric``; the earliest of equals."""
        return max(self.records, key=lambda record: record[metric])


def train(
    model: nn.Module,
    batches: Callable[[int], Sequence],
    steps_per_epoch: int,
    loss_of: Callable[[object], tuple[Tensor, dict[str, float]]],
    recipe: Recipe,
    folder: Path | None,
    *,
    run: str,
    validate: Callable[[], dict[str, float]] | None = None,
    select: str = "dev/recall@10",
    fingerprint: object = None,
    unit: str = "triplets",
    keep: int = 0,
    fork: Path | None = None,
    names: Callable[[object], Sequence[str]] = str,
    prefetch: Callable[[object], None] | None = None,
) -> History:
    """Trains ``model`` and leaves it at its best epoch (at its last one where nothing validates).

    Args:
        batches: epoch (from 1) → the batches of that epoch, a sequence whose items have a length.
        steps_per_epoch: how many batches an epoch has.
        loss_of: one batch → scalar loss, and what else to keep of the step.
        folder: holds the state of the run. A run that is called again with the same arguments goes on where it was
            stopped, and is not repeated when it was finished; the caller removes the folder. None: a small run of
            many, which prints nothing, is not kept, and is left at its last epoch.
        validate: scores the model after each epoch; the highest ``select`` wins.
        fingerprint: whatever else than the weights and the recipe decides the result (JSON-able); the state of a
            run with another one is not resumed.
        keep: sets the state after this epoch aside in ``folder``, for runs that start there.
        fork: the folder of a run that kept its state; this run starts from it, history included.
        names: what is in a batch, for the sentence that stops a run which went wrong.
        prefetch: is given each batch one step before its turn, to have its data fetched meanwhile.

    Raises:
        FloatingPointError: the loss or a gradient is not finite; with step, batch, and the last good state.
        ResourceError: a batch does not fit into the memory; the state does not fit on the disk.
    """
    recipe = replace(recipe, precision=precision_here(recipe.precision))
    AcceleratorState._reset_state()  # else the precision of this process' first training would be that of all
    accelerator = Accelerator(
        mixed_precision=PRECISION[recipe.precision], gradient_accumulation_steps=recipe.accumulation
    )
    history = History(run)
    if recipe.epochs == 0:
        model.eval()
        return history
    steps = recipe.epochs * -(-steps_per_epoch // recipe.accumulation)
    optimizer = torch.optim.AdamW(_groups(model, recipe.weight_decay), lr=recipe.lr, betas=recipe.betas, fused=True)
    schedule = _schedule(optimizer, recipe, steps)
    optimizer = accelerator.prepare(optimizer)
    epoch_of = partial(_epoch, accelerator, model, loss_of, optimizer, schedule, recipe, history, unit, names, prefetch)
    if folder is None:
        history.records += [epoch_of(epoch, batches(epoch), False) for epoch in range(1, recipe.epochs + 1)]
        model.eval()
        return history
    state = _State(
        folder, fork, {"run": run, "recipe": vars(recipe), "start": _digest(model), "fingerprint": fingerprint}
    )
    first = state.resume(model, optimizer, schedule, history) + 1
    require_disk(folder, state_bytes(model) * (2 if keep else 1), "make room on it, or move results/ to another")
    if keep and first == keep + 1 and fork is None:
        state.keep(again=False)  # for a run that was stopped before it could
    for epoch in range(first, recipe.epochs + 1):
        start = time.perf_counter()
        record = epoch_of(epoch, batches(epoch), True)
        if validate is not None:
            model.eval()
            record |= validate()
        history.records.append(record)
        _report(record, run, unit, recipe.epochs, (recipe.epochs - epoch) * (time.perf_counter() - start))
        is_best = validate is not None and history.best(select)["epoch"] == epoch
        state.save(model, optimizer, schedule, history, is_best)
        if epoch == keep:
            state.keep()
    if validate is not None:
        model.load_state_dict(load_file(state.best))
    model.eval()
    return history


def as_table(*histories: History) -> pd.DataFrame:
    """The records of some trainings one after the other, the column ``run`` first."""
    rows = [{"run": history.run, **record} for history in histories for record in history.records]
    return pd.DataFrame(rows, columns=None if rows else ["run", "epoch", "loss", "dev/recall@10"])


def _epoch(
    accelerator, model, loss_of, optimizer, schedule, recipe: Recipe, history: History, unit: str, names, prefetch,
    epoch: int, batches: Sequence, show: bool,
) -> dict:  # fmt: skip
    model.train()
    total, seen, start = 0.0, 0, time.perf_counter()
    bar = tqdm(
        batches, desc=f"{history.run} epoch {epoch}/{recipe.epochs}", unit="batch", leave=False,
        disable=not show or not PartialState().is_main_process,
    )  # fmt: skip
    accelerator.step = 0  # gradients are never kept from one epoch to the next: a run may be stopped between them
    for number, batch in enumerate(bar, start=1):
        if prefetch is not None and number < len(batches):
            prefetch(batches[number])
        with (
            within_memory(f"{history.run}: a batch of {len(batch)} {unit}", SMALLER_STEPS),
            accelerator.accumulate(model),
        ):
            accelerator.sync_gradients |= number == len(batches)
            with accelerator.autocast():
                loss, told = loss_of(batch)
            value = loss.item()
            where = f"step {number} of epoch {epoch}"
            _require_finite(value, f"the loss at {where} is {value}", history, recipe, names(batch))
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                average_gradients(model)
                norm = accelerator.clip_grad_norm_(model.parameters(), recipe.max_norm)
                if recipe.precision != "fp16":  # whose scaler leaves out such a step
                    _require_finite(norm.item(), f"a gradient at {where} is not finite", history, recipe, names(batch))
            optimizer.step()
            if accelerator.sync_gradients:
                schedule.step()
            optimizer.zero_grad()
        total, seen = total + value * len(batch), seen + len(batch)
        if told:
            history.steps.append({"step": len(history.steps) + 1, "loss": value, **told})
    return {"epoch": epoch, "loss": total / seen, f"{unit}/s": seen / (time.perf_counter() - start)}


def _require_finite(value: float, what: str, history: History, recipe: Recipe, names: Sequence[str]) -> None:
    """Stops a training that went wrong before it spoils its weights."""
    if isfinite(value):
        return
    good = history.records[-1]["epoch"] if history.records else None
    kept = f"the state after epoch {good} is kept" if good else "no epoch was finished"
    batch = names if isinstance(names, str) else ", ".join(names[:NAMED]) + (" …" if len(names) > NAMED else "")
    raise FloatingPointError(f"{history.run}: {what}: lower lr (now {recipe.lr:g}); {kept}. The batch: {batch}")


def _report(record: dict, run: str, unit: str, epochs: int, seconds_left: float) -> None:
    speed = record[f"{unit}/s"]
    rest = {k: v for k, v in record.items() if k not in ("epoch", "loss", f"{unit}/s")}
    scores = "".join(f"  {name} {100 * value:.1f} %" for name, value in rest.items())
    left = f"  {seconds_left:.0f} s left" if seconds_left else ""
    line = f"{run} {record['epoch']}/{epochs}  loss {record['loss']:.4f}{scores}  {speed:.0f} {unit}/s{left}"
    if PartialState().is_main_process:
        print(line, flush=True)


def _groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Matrices decay; biases, norms and scalars do not."""
    named = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in named if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in named if p.ndim < 2], "weight_decay": 0.0},
    ]


def _schedule(optimizer, recipe: Recipe, steps: int):
    peak = max(0.1, 1.5 / steps)
    options = {"total_steps": steps + 1, "pct_start": min(peak, 0.9), "cycle_momentum": False}
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, **options)


class _State:
    """A run under way on disk: weights, optimiser, generators and history after the last whole epoch."""

    def __init__(self, folder: Path, fork: Path | None, identity: dict) -> None:
        self.folder, self.fork = folder, fork
        self.key = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()
        self.best = folder / "best.safetensors"

    def resume(self, model, optimizer, schedule, history: History) -> int:
        """Loads the state left by the same run; the epoch it had finished, 0 for none."""
        state = self._read()
        PartialState().wait_for_everyone()  # until every process has read it
        if broadcast(state is None or state["key"] != self.key):
            if PartialState().is_main_process:
                shutil.rmtree(self.folder, ignore_errors=True)
                self.folder.mkdir(parents=True)
            PartialState().wait_for_everyone()
            state = self._forked()
        if state is None:
            return 0
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        _set_generators(state["generators"])
        history.records[:], history.steps[:] = state["history"], state["steps"]
        epoch = history.records[-1]["epoch"]
        if PartialState().is_main_process:
            print(f"{history.run}: goes on after epoch {epoch}", flush=True)
        return epoch

    def save(self, model, optimizer, schedule, history: History, is_best: bool) -> None:
        """Written by the first process; the others wait for it."""
        if PartialState().is_main_process:
            self._write(model, optimizer, schedule, history, is_best)
        PartialState().wait_for_everyone()

    def _write(self, model, optimizer, schedule, history: History, is_best: bool) -> None:
        if is_best:
            replace_file(self.best, lambda path: save_file(_tensors(model), path))
        state = {
            "key": self.key,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "generators": _generators(),
            "history": history.records,
            "steps": history.steps,
        }
        replace_file(self.folder / "state.pt", lambda path: _save_state(path, state))

    def keep(self, again: bool = True) -> None:
        """Sets the state of this epoch aside for runs that fork here; ``again``: also where that was done before."""
        for name in ("state.pt", "best.safetensors") if PartialState().is_main_process else ():
            kept = self.folder / f"kept-{name}"
            if again or not kept.is_file():
                replace_file(kept, lambda path, name=name: shutil.copy(self.folder / name, path))

    def _forked(self) -> dict | None:
        if self.fork is None:
            return None
        if PartialState().is_main_process:
            shutil.copy(self.fork / "kept-best.safetensors", self.best)
        return torch.load(self.fork / "kept-state.pt", map_location="cpu", weights_only=True)

    def _read(self) -> dict | None:
        try:
            return torch.load(self.folder / "state.pt", map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):
            return None


def _save_state(path: Path, state: dict) -> None:
    with path.open("wb") as stream:  # given a path, torch would say nothing of why a disk refuses
        torch.save(state, stream)


def _generators() -> list[Tensor]:
    """The states of torch's generators: the CPU's, then the GPU's where there is one."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if torch.cuda.is_available() else [])]


def _set_generators(states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1 and torch.cuda.is_available():
        torch.cuda.set_rng_state(states[1])


def _digest(model: nn.Module) -> str:
    """A hash of the weights."""
    digest = hashlib.sha256()
    for tensor in _tensors(model).values():
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}


def state_bytes(model: nn.Module) -> int:
    """What a training keeps on disk: the state to go on from (weights, AdamW's two moments), and the best weights."""
    sizes = [(p.numel() * p.element_size(), p.requires_grad) for p in model.parameters()]
    return 2 * sum(count for count, _ in sizes) + 2 * sum(count for count, trained in sizes if trained)


def shuffled_batches(count: int, batch_size: int, seed: int, epoch: int) -> list[Tensor]:
    """Rows 0 … count - 1 in an order set by seed and epoch, in batches; a last batch of one is left out."""
    generator = torch.Generator().manual_seed(seed * 100_003 + epoch)
    batches: Iterable[Tensor] = torch.randperm(count, generator=generator).split(batch_size)
    return [rows for rows in batches if len(rows) > 1]
