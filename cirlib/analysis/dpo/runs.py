"""One preference training, from its parameters to its numbers; kept, so that a grid of them goes on after a stop."""

import hashlib
import json
import shlex
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cirlib.analysis.dpo.context import RunContext
from cirlib.analysis.dpo.dual_encoder import DualEncoder
from cirlib.analysis.dpo.embedded_splits import embed_splits, embedding_statistics
from cirlib.analysis.dpo.preferences import Preferences
from cirlib.retrieval.recall_and_precision import median_rank
from cirlib.retrieval.scoring import mean_recall
from cirlib.study.files import write_bytes
from cirlib.study.parameters import DPO, Study
from cirlib.training.loop import History, TrainingConfig, shuffled_batches, train

PROJECTION_LR = 1e-3
OF_THE_GRID = {"grid", "grid_edits"}  # parameters that are not of one run


class TrainedRun(NamedTuple):
    encoder: DualEncoder
    preferences: Preferences
    history: History
    track: list[dict]  # what was measured in between


def train_preferences(
    context: RunContext, params: DPO, *, folder: Path | None = None, corruption: str | None = None,
    measure: Callable[[DualEncoder], dict] | None = None, every: int = 1,
) -> TrainedRun:  # fmt: skip
    """Trains on preferences as ``params`` say and keeps the last step: nothing is chosen, so nothing is overfitted.

    Args:
        folder: state of a run that may be interrupted and reports itself; None for one of many.
        measure: called before the first step, after the last, and ``every`` so many steps.

    >>> run = train_preferences(context, DPO(trains="query_projection", num_negatives=2))
    >>> round(run.history.steps[0]["loss"], 3)  # log 2
    0.693
    """
    seed, encoder = context.seed(params), context.encoder(params).eval()
    preferences, numbers = Preferences(context, params, corruption, folder), count()
    steps = len(shuffled_batches(len(preferences.edits), params.batch_size, seed, 1))

    def batches(epoch: int) -> list[Tensor]:
        nonlocal numbers
        preferences.mine_for(epoch, encoder)
        numbers = count((epoch - 1) * steps)
        return shuffled_batches(len(preferences.edits), params.batch_size, seed, epoch)

    def measured(step: int) -> dict:  # changes nothing of the training's course
        mode, generator = encoder.training, torch.get_rng_state()
        record = {"step": step, **measure(encoder.eval())}
        encoder.train(mode)
        torch.set_rng_state(generator)
        return record

    def loss_of(rows: Tensor) -> tuple[Tensor, dict]:
        step = next(numbers)
        tracked = {"tracked": measured(step)} if measure and step % every == 0 else {}
        loss, rewards = preferences.loss(encoder, rows)
        return loss, rewards | tracked

    lr, precision = PROJECTION_LR if "projection" in params.trains else params.lr, context.study.models.precision
    config = TrainingConfig("retrieval_dpo", params.epochs, steps, lr, precision=precision, unit="edits")
    identity = {"dpo": params.model_dump(), "start": folder and context.identity(params)}
    torch.manual_seed(seed)
    history = train(encoder, batches, loss_of, config, folder, fingerprint=identity)
    track = [step["tracked"] for step in history.steps if "tracked" in step]
    return TrainedRun(encoder, preferences, history, [*track, measured(params.epochs * steps)] if measure else [])


def measured_run(context: RunContext, params: DPO, with_dev: bool = False) -> dict:
    """The record of one run, computed once and then read: its numbers and ranks on the reported split, or also on dev.

    >>> measured_run(context, DPO(trains="query_projection", num_negatives=2))["chance"]
    1.0
    """
    content = json.dumps([params.model_dump(exclude=OF_THE_GRID), with_dev, context.identity(params)], sort_keys=True)
    file = context.folder / "runs" / f"{hashlib.sha256(content.encode()).hexdigest()[:24]}.json"
    if file.is_file():
        return json.loads(file.read_text())
    start = time.perf_counter()
    run, quality, attributes = train_preferences(context, params), {}, context.prepared.attributes
    seconds = time.perf_counter() - start
    if attributes is not None and run.preferences.negatives is not None:
        quality = run.preferences.edits.quality(run.preferences.negatives, attributes)
    embedded = embed_splits(run.encoder, context.splits.reported, context.evaluation)
    scored = [one.scored for one in embedded]
    record = {
        **params.model_dump(),
        "recall@1": mean_recall(scored, 1),
        **embedding_statistics(embedded),
        "recall@50": mean_recall(scored, 50),
        "median_rank": float(np.mean([median_rank(one.ranks) for one in scored])),
        "loss_first_epoch": run.history.records[0]["loss"],
        "loss_last_epoch": run.history.records[-1]["loss"],
        "seconds": seconds,
        **quality,
        "command": _command(context.study, params),
        "above": {one.category: one.ranks.above.tolist() for one in scored},
        "tied": {one.category: one.ranks.tied.tolist() for one in scored},
    }
    if with_dev:
        dev = embed_splits(run.encoder, context.splits.dev, context.evaluation)
        record["dev/recall@10"] = mean_recall([one.scored for one in dev], 10)
    write_bytes(json.dumps(record).encode(), file)
    return record


def _command(study: Study, params: DPO) -> str:
    """What runs this training by itself, all said that differs from the defaults or from what ``study`` has now."""
    said = {
        name: value
        for name, value in params.model_dump(exclude=OF_THE_GRID).items()
        if not value == getattr(DPO(), name) == getattr(study.dpo, name)
    }
    settings = [f"study={study.name}", *([f"seed={study.seed}"] if study.seed else [])]
    settings += [f"dpo.{name}={'null' if value is None else value}" for name, value in {**said, "grid": "none"}.items()]
    return "dvc exp run " + " ".join(f"-S {shlex.quote(one)}" for one in settings) + " dpo"
