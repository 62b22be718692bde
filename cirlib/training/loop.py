"""The one training loop: epochs of batches, a dev score after each, resumable, best epoch kept."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor, nn

from cirlib.models.devices import DTYPES, autocast, precision_here
from cirlib.study.code_hash import code_hash
from cirlib.study.files import replace_file
from cirlib.study.processes import average_gradients
from cirlib.study.progress import progress
from cirlib.study.resources import require_disk, within_memory
from cirlib.training.checkpoints import alone_in, read_state
from cirlib.training.live_curves import log_step
from cirlib.training.recipe import TrainingConfig, optimisation

SELECT = "dev/recall@10"  # the score that chooses the epoch
CODE = ("losses", "benchmarks", "models", "retrieval", "training")  # folders of cirlib that decide the weights
KNOWN = "trained before, loaded; retrain=true trains anew"
SMALLER_STEPS = (
    "lower batch_size and raise accumulation by the same factor; for the Q-Former, qformer.gradient_checkpointing=true "
    "or qformer.chunk_size=16 keep the batch as it is"
)


@dataclass(frozen=True)
class Hooks:
    """What the loop asks of its caller beside the loss."""

    validate: Callable[[], dict[str, float]] | None = None  # scores the model; the epoch with the best SELECT is kept
    names: Callable[[Any], str] = str  # what is in a batch, for the sentence that stops a run which went wrong
    prefetch: Callable[[Any], object] = lambda batch: None  # has data fetched of the batch whose turn is next


@dataclass
class History:
    """Per epoch one of ``records``: epoch, loss, dev score, speed; per batch one of ``steps``: what its loss told."""

    run: str
    records: list[dict] = field(default_factory=list)
    steps: list[dict] = field(default_factory=list)
    folder: Path | None = None  # with the run's checkpoints


def train(
    model: nn.Module,
    batches: Callable[[int], Sequence],
    loss_of: Callable[[Any], tuple[Tensor, dict[str, float]]],
    config: TrainingConfig,
    folder: Path | None,
    hooks: Hooks | None = None,
    *,
    fingerprint: object = None,
    warm_start: Path | None = None,
    retrain: bool = False,
) -> History:
    """Trains ``model`` and leaves it at its best epoch (at its last one where nothing validates), in eval mode.

    Args:
        batches: epoch (from 1) → the batches of that epoch, a sequence whose items have a length.
        loss_of: one batch → scalar loss, and what else to keep of the step.
        folder: holds the checkpoint of the run (:func:`training_folder`). A run that is called again with the same
            arguments goes on after its last whole epoch, or is only loaded. None: a small run of many, kept nowhere.
        fingerprint: whatever else than weights and configuration decides the result (JSON-able); the checkpoint of a
            run with another one is not gone on with.
        warm_start: the checkpoint of another run, whose epochs this one shares, history included.
        retrain: what has finished is not loaded but trained anew; what has not, goes on.

    Raises:
        FloatingPointError: the loss or a gradient is not finite; with step, batch, and the last good epoch.
        ResourceError: a batch does not fit into the memory; the checkpoint does not fit on the disk.

    >>> model, config = nn.Linear(2, 1), TrainingConfig("toy", epochs=3, steps_per_epoch=1, lr=0.01)
    >>> history = train(model, lambda epoch: [torch.ones(4, 2)], lambda x: (model(x).square().mean(), {}), config, None)
    >>> [record["epoch"] for record in history.records]
    [1, 2, 3]
    """
    config = replace(config, precision=precision_here(config.precision))
    trainer = _Trainer(model, loss_of, config, hooks or Hooks(), folder is not None and PartialState().is_main_process)
    trainer.history.folder = folder
    with alone_in(folder, config.run):
        if folder is not None:
            key = _key(model, config, fingerprint)
            # weights and the best weights, and AdamW's two moments of those that learn
            size = sum(p.numel() * p.element_size() * (4 if p.requires_grad else 2) for p in model.parameters())
            _resume(trainer, folder, key, warm_start, retrain)
            require_disk(folder, size * (2 if config.keep_epoch else 1), "make room on it, or move runs/ to another")
        for epoch in range(len(trainer.history.records) + 1, config.epochs + 1):
            trainer.run_epoch(epoch, batches)
            if folder is not None:
                _save(trainer, folder, key, epoch)
        if trainer.best is not None:
            model.load_state_dict(trainer.best)
        if folder is not None and trainer.optimizer is not None:
            trainer.finish()
            _save(trainer, folder, key, config.epochs)
    model.eval()
    return trainer.history


def training_folder(trainings: Path, model: nn.Module, config: TrainingConfig, fingerprint: object) -> Path:
    """Where :func:`train` keeps the training that these decide, among all that ``trainings`` keeps.

    >>> model, config = nn.Linear(2, 1), TrainingConfig("toy", epochs=3, steps_per_epoch=1, lr=0.01)
    >>> training_folder(folder, model, config, "data").parent == folder / "toy"
    True
    """
    return trainings / config.run / _key(model, config, fingerprint)[:12]


class _Trainer:
    """A model in training: its optimiser, its history, and the weights of its best epoch."""

    def __init__(self, model: nn.Module, loss_of: Callable, config: TrainingConfig, hooks: Hooks, shows: bool) -> None:
        self.model, self.loss_of, self.config, self.hooks, self.shows = model, loss_of, config, hooks, shows
        self.history, self.best = History(config.run), None
        self.device = next(model.parameters()).device
        self.optimizer, self.schedule, self.max_norm = optimisation(model, config)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        self.parts = self.model, self.optimizer, self.schedule, self.scaler  # whose states a checkpoint holds

    def run_epoch(self, epoch: int, batches: Callable[[int], Sequence]) -> None:
        """Trains and scores one epoch, and adds its record to the history."""
        start, scores = time.perf_counter(), {}
        record = self._train_epoch(epoch, batches(epoch))
        if self.hooks.validate is not None:
            self.model.eval()
            scores = self.hooks.validate()
            if all(scores[SELECT] > earlier[SELECT] for earlier in self.history.records):
                self.best = {name: tensor.cpu().clone() for name, tensor in self.model.state_dict().items()}
        self.history.records.append(record | scores)
        if self.shows:
            config, speed = self.config, f"{self.config.unit}/s"
            said = [f"{config.run} {epoch}/{config.epochs}", f"loss {record['loss']:.4f}"]
            said += [f"{name} {100 * value:.1f} %" for name, value in scores.items()] + [f"{record[speed]:.0f} {speed}"]
            if left := config.epochs - epoch:
                said.append(f"{left * (time.perf_counter() - start):.0f} s left")
            print("  ".join(said), flush=True)

    def _train_epoch(self, epoch: int, batches: Sequence) -> dict:
        self.model.train()
        config, total, seen, start = self.config, 0.0, 0, time.perf_counter()
        title, before = f"{config.run} epoch {epoch}/{config.epochs}", self.history.records[-1:]
        if before and SELECT in before[0]:
            title += f"  recall@10 {100 * before[0][SELECT]:.1f} % on dev"
        for number, batch in enumerate(progress(batches, title, unit="batch", leave=False, disable=not self.shows), 1):
            if number < len(batches):
                self.hooks.prefetch(batches[number])
            updates = number % config.accumulation == 0 or number == len(batches)
            with within_memory(f"{config.run}: a batch of {len(batch)} {config.unit}", SMALLER_STEPS):
                value = self._step(batch, f"step {number} of epoch {epoch}", updates)
            total, seen = total + value * len(batch), seen + len(batch)
            if self.shows:
                log_step(config.run, (epoch - 1) * len(batches) + number, value, self.schedule.get_last_lr()[0])
        return {"epoch": epoch, "loss": total / seen, f"{config.unit}/s": seen / (time.perf_counter() - start)}

    def _step(self, batch: Any, where: str, updates: bool) -> float:
        """The loss of a batch, its gradients added to those there are; ``updates``: and a step of the optimiser."""
        with autocast(self.device, DTYPES[self.config.precision]):
            loss, extra = self.loss_of(batch)
        value = loss.item()
        self._require_finite(value, f"the loss at {where} is {value}", batch)
        self.scaler.scale(loss / self.config.accumulation).backward()
        if updates:
            average_gradients(self.model)
            self.scaler.unscale_(self.optimizer)
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.max_norm)
            if not self.scaler.is_enabled():  # which leaves out such a step
                self._require_finite(norm.item(), f"a gradient at {where} is not finite", batch)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.schedule.step()
            self.optimizer.zero_grad()
        if extra:
            self.history.steps.append({"step": len(self.history.steps) + 1, "loss": value, **extra})
        return value

    def _require_finite(self, value: float, what: str, batch: Any) -> None:
        """Stops a training that went wrong before it spoils its weights."""
        if isfinite(value):
            return
        done, config = len(self.history.records), self.config
        kept = f"the state after epoch {done} is kept" if done else "no epoch was finished"
        shown = shorten(self.hooks.names(batch), 200, placeholder=" …")
        raise FloatingPointError(f"{config.run}: {what}: lower lr (now {config.lr:g}); {kept}. The batch: {shown}")

    def finish(self) -> None:
        """Leaves the best weights and the history: who only loads them needs no more."""
        self.optimizer = self.best = None
        self.parts = (self.model,)

    def state_dict(self) -> dict:
        """Everything that decides how the training goes on, torch's random generators included."""
        generators = [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if torch.cuda.is_available() else [])]
        own = {"generators": generators, "records": self.history.records, "steps": self.history.steps}
        return {"parts": [part.state_dict() for part in self.parts], "best": self.best, **own}

    def load_state_dict(self, state: dict) -> None:
        if len(state["parts"]) == 1:
            self.finish()
        for part, content in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(content)
        torch.set_rng_state(state["generators"][0])
        if len(state["generators"]) > 1 and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["generators"][1])
        self.history.records, self.history.steps, self.best = state["records"], state["steps"], state["best"]


def _resume(trainer: _Trainer, folder: Path, key: str, warm_start: Path | None, retrain: bool) -> None:
    """Puts ``trainer`` where the same run was left, else at its warm start; else nowhere, and the folder is empty."""
    if PartialState().is_main_process:
        left = read_state(folder / "state.pt")
        finished = left is not None and len(left["trainer"]["parts"]) == 1
        if left is None or left["key"] != key or (retrain and finished):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
    PartialState().wait_for_everyone()
    state = read_state(folder / "state.pt") or (warm_start and read_state(warm_start))
    if state:
        trainer.load_state_dict(state["trainer"])
        if trainer.shows:
            said = f"goes on after epoch {len(trainer.history.records)}" if trainer.optimizer else KNOWN
            print(f"{trainer.config.run}: {said}", flush=True)


def _save(trainer: _Trainer, folder: Path, key: str, epoch: int) -> None:
    """Writes the state after ``epoch``; first for others where they start from it, so that a kill loses neither."""

    def write(part: Path) -> None:
        with part.open("wb") as stream:  # given a path, torch would say nothing of why a disk refuses
            torch.save({"key": key, "trainer": trainer.state_dict()}, stream)

    if PartialState().is_main_process:
        keeps = trainer.optimizer is not None and epoch == trainer.config.keep_epoch
        for name in [f"epoch-{epoch}.pt"] * keeps + ["state.pt"]:
            replace_file(folder / name, write)
    PartialState().wait_for_everyone()


def _key(model: nn.Module, config: TrainingConfig, fingerprint: object) -> str:
    """A hash of what decides a run's result, its first weights included."""
    own = vars(config) | {"precision": precision_here(config.precision), "keep_epoch": None}
    digest = hashlib.sha256(json.dumps([own, fingerprint, code_hash(*CODE)], sort_keys=True, default=str).encode())
    for tensor in model.state_dict().values():
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def shuffled_batches(count: int, batch_size: int, seed: int, epoch: int, whole: bool = False) -> list[Tensor]:
    """Rows 0 … count - 1 in an order set by seed and epoch, in batches; a last batch of one is left out.

    ``whole``: so is any last batch that is not full, where there is a full one.

    >>> [len(rows) for rows in shuffled_batches(9, batch_size=4, seed=0, epoch=1)]
    [4, 4]
    """
    generator = torch.Generator().manual_seed(seed * 100_003 + epoch)
    least = min(batch_size, count) if whole else 2
    return [rows for rows in torch.randperm(count, generator=generator).split(batch_size) if len(rows) >= least]
