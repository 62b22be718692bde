"""One preference training, from its parameters to its numbers; kept, so that a grid of them goes on after a stop."""

from __future__ import annotations

import hashlib
import json
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cirlib.analysis.dpo.context import RunContext
from cirlib.analysis.dpo.dual_encoder import DualEncoder
from cirlib.analysis.dpo.embedded_splits import embed_splits, embedding_statistics, score_splits
from cirlib.analysis.dpo.negatives import negative_quality
from cirlib.analysis.dpo.preferences import NO_CORRUPTION, Corruption, Preferences
from cirlib.retrieval.recall_and_precision import median_rank
from cirlib.retrieval.scoring import mean_recall
from cirlib.study.files import write_json
from cirlib.study.parameters import DPO, Study
from cirlib.training.loop import History, TrainingConfig, shuffled_batches, train

PROJECTION_LR = 1e-3
Measure = Callable[[DualEncoder], dict]


@dataclass(frozen=True)
class TrainedRun:
    """A finished run; ``track`` has what was measured in between, ``seconds`` what training and mining took."""

    encoder: DualEncoder
    preferences: Preferences
    history: History
    track: list[dict]
    seconds: float


def train_preferences(
    context: RunContext, params: DPO, *, folder: Path | None = None, measure: Measure | None = None, every: int = 1,
    corruption: Corruption = NO_CORRUPTION,
) -> TrainedRun:  # fmt: skip
    """Trains on preferences as ``params`` say and keeps the last step: nothing is chosen, so nothing is overfitted.

    Args:
        folder: state of a run that may be interrupted and reports itself; None for one of many.
        measure: called before the first step, after the last, and ``every`` so many steps.

    >>> params = DPO(trains="query_projection", num_negatives=2)
    >>> round(train_preferences(context, params).history.steps[0]["loss"], 3)  # log 2
    0.693
    """
    start, seed = time.perf_counter(), context.seed(params)
    encoder = context.encoder(params).eval()
    preferences = Preferences(context, params, corruption, folder)
    track, count = _Track(encoder, measure, every), len(preferences.edits)
    steps = len(shuffled_batches(count, params.batch_size, seed, 1))

    def batches(epoch: int) -> list[Tensor]:
        preferences.mine_for(epoch, encoder)
        track.step = (epoch - 1) * steps
        return shuffled_batches(count, params.batch_size, seed, epoch)

    def loss_of(rows: Tensor) -> tuple[Tensor, dict]:
        tracked = track.next()
        loss, rewards = preferences.loss(encoder, rows)
        return loss, rewards | tracked

    options = {"lr": PROJECTION_LR if "projection" in params.trains else params.lr, "unit": "edits"}
    config = TrainingConfig("retrieval_dpo", params.epochs, steps, precision=context.study.models.precision, **options)
    identity = {"dpo": params.model_dump(), "start": folder and context.identity(params)}
    torch.manual_seed(seed)
    history = train(encoder, batches, loss_of, config, folder, fingerprint=identity)
    track.step = params.epochs * steps
    records = [step["tracked"] for step in [*history.steps, track.next(always=True)] if "tracked" in step]
    seconds = time.perf_counter() - start - track.seconds
    return TrainedRun(encoder, preferences, history, records, seconds)


class _Track:
    """Measures a model in training every so many steps, without changing its course."""

    def __init__(self, encoder: DualEncoder, measure: Measure | None, every: int) -> None:
        self.encoder, self.measure, self.every = encoder, measure, every
        self.step, self.seconds = 0, 0.0

    def next(self, always: bool = False) -> dict[str, dict]:
        """``tracked``: the record of this step; nothing where it is not its turn. The next call is the next step's."""
        step, self.step = self.step, self.step + 1
        if self.measure is None or (step % self.every and not always):
            return {}
        start, mode, generator = time.perf_counter(), self.encoder.training, torch.get_rng_state()
        record = {"step": step, **self.measure(self.encoder.eval())}
        self.encoder.train(mode)
        torch.set_rng_state(generator)
        self.seconds += time.perf_counter() - start
        return {"tracked": record}


def measured_run(context: RunContext, params: DPO, with_dev: bool = False) -> dict:
    """The record of one run: its numbers on the reported split, ranks included, computed once and then read.

    Args:
        with_dev: also the dev recall@10, for what is chosen by it.

    >>> measured_run(context, DPO(trains="query_projection", num_negatives=2))["chance"]
    1.0
    """
    file = context.folder / "runs" / f"{_key(context, params, with_dev)}.json"
    if file.is_file():
        return json.loads(file.read_text())
    run = train_preferences(context, params)
    quality, attributes = {}, context.prepared.attributes
    if attributes is not None and run.preferences.negatives is not None:
        quality = negative_quality(run.preferences.edits, run.preferences.negatives, attributes)
    embedded = embed_splits(run.encoder, context.splits.reported, context.evaluation)
    scored = score_splits(embedded, context.evaluation, "retrieval_dpo")
    record = {
        **params.model_dump(),
        "recall@1": mean_recall(scored, 1),
        **embedding_statistics(embedded, scored),
        "recall@50": mean_recall(scored, 50),
        "median_rank": float(np.mean([median_rank(one.ranks) for one in scored])),
        "loss_first_epoch": run.history.records[0]["loss"],
        "loss_last_epoch": run.history.records[-1]["loss"],
        "seconds": run.seconds,
        **quality,
        "command": _command(context.study, params),
        "above": {one.category: one.ranks.above.tolist() for one in scored},
        "tied": {one.category: one.ranks.tied.tolist() for one in scored},
    }
    if with_dev:
        dev = embed_splits(run.encoder, context.splits.dev, context.evaluation)
        record["dev/recall@10"] = mean_recall(score_splits(dev, context.evaluation, "dev"), 10)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(record, file, indent=None)
    return record


def _command(study: Study, params: DPO) -> str:
    """What runs this training by itself, all said that differs from the defaults or from what ``study`` has now."""
    usual = {name: (getattr(DPO(), name), getattr(study.dpo, name)) for name in _own(params)}
    said = {name: value for name, value in _own(params).items() if {*usual[name]} != {value}}
    settings = [f"study={study.name}", *([f"seed={study.seed}"] if study.seed else [])]
    settings += [f"dpo.{name}={'null' if value is None else value}" for name, value in {**said, "grid": "none"}.items()]
    return "dvc exp run " + " ".join(f"-S {shlex.quote(one)}" for one in settings) + " dpo"


def _own(params: DPO) -> dict:
    """The parameters of a run, without those of the grid around it."""
    return {name: value for name, value in params.model_dump().items() if not name.startswith("grid")}


def _key(context: RunContext, params: DPO, with_dev: bool) -> str:
    content = json.dumps([_own(params), with_dev, context.identity(params)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:24]
