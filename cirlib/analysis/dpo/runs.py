"""One preference training, from its parameters to its numbers; kept, so that a grid of them goes on after a stop."""

import hashlib
import json
import shlex
import time
from collections.abc import Callable, Sequence
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cirlib.analysis.dpo.context import CODE, RunContext
from cirlib.analysis.dpo.dual_encoder import DualEncoder
from cirlib.analysis.dpo.embedded_splits import embed_splits, embedding_statistics
from cirlib.analysis.dpo.grid import READINGS, at_grid_size
from cirlib.analysis.dpo.preferences import Preferences
from cirlib.retrieval.recall_and_precision import median_rank
from cirlib.retrieval.scoring import Scored, mean_recall
from cirlib.study.code_hash import code_hash
from cirlib.study.files import read_json, write_bytes
from cirlib.study.parameters import DPO, Study
from cirlib.training.loop import History, TrainingConfig, shuffled_batches, train, training_folder

PROJECTION_LR = 1e-3
OF_THE_GRID = {"grid", "grid_edits", "retrain"}  # parameters that are not of one run


class TrainedRun(NamedTuple):
    encoder: DualEncoder
    preferences: Preferences
    history: History
    track: list[dict]  # what was measured in between


def train_preferences(
    context: RunContext, params: DPO, *, kept_as: str | None = None, corruption: str | None = None,
    measure: Callable[[DualEncoder], dict] | None = None, every: int = 1,
) -> TrainedRun:  # fmt: skip
    """Trains on preferences as ``params`` say and keeps the last step: nothing is chosen, so nothing is overfitted.

    Args:
        kept_as: its name among the study's trainings, where it is found again; None: one of many, which is not kept.
        measure: called before the first step, after the last, and ``every`` so many steps.

    >>> run = train_preferences(context, DPO(trains="query_projection", num_negatives=2))
    >>> round(run.history.steps[0]["loss"], 3)  # log 2
    0.693
    """
    seed, encoder, numbers, folder = context.seed(params), context.encoder(params).eval(), count(), None
    steps = len(shuffled_batches(len(context.edits(params)), params.batch_size, seed, 1))
    lr, precision = PROJECTION_LR if "projection" in params.trains else params.lr, context.study.models.precision
    name = kept_as or "retrieval_dpo"
    config = TrainingConfig(name, params.epochs, steps, lr, precision=precision, unit="edits")
    identity = {"dpo": params.model_dump(exclude=OF_THE_GRID)}
    if kept_as:
        identity |= {"start": context.start(params), "code": code_hash(*CODE)}
        folder = training_folder(context.stage.trainings, encoder, config, identity)
    preferences = Preferences(context, params, corruption, folder)

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

    torch.manual_seed(seed)
    history = train(encoder, batches, loss_of, config, folder, fingerprint=identity, retrain=params.retrain)
    track = [step["tracked"] for step in history.steps if "tracked" in step]
    return TrainedRun(encoder, preferences, history, [*track, measured(params.epochs * steps)] if measure else [])


def measured_start(context: RunContext, params: DPO) -> dict:
    """Recall@10 and ranks of the model that a run with ``params`` starts from, and the image family of each query.

    >>> sorted(measured_start(context, DPO()))
    ['above', 'families', 'recall@10', 'tied']
    """

    def measure() -> dict:
        encoder = context.encoder(params, frozen=True).eval()
        scored = [one.scored for one in embed_splits(encoder, context.splits.reported, context.evaluation)]
        families = {one.category: one.families.tolist() for one in scored}
        return {"recall@10": mean_recall(scored, 10), "families": families, **_ranks(scored)}

    return _kept(context, ["start", params.fusion, params.start, context.identity(params)], measure)


def measured_run(context: RunContext, params: DPO, *, corruption: str | None = None, with_dev: bool = False) -> dict:
    """The record of one run, computed once and then read: its numbers and ranks on the reported split, or also on dev.

    ``change`` is from the recall@10 of its own start; of the study's own setting, ``read`` holds the hits that each
    mistaken reading finds.

    >>> record = measured_run(context, DPO(trains="query_projection", num_negatives=2))
    >>> record["chance"], record["change"]
    (1.0, 0.0)
    """

    def measure() -> dict:
        start = time.perf_counter()
        run = train_preferences(context, params, corruption=corruption)
        record = {"seconds": time.perf_counter() - start, **_measured(context, run, params), **params.model_dump()}
        if with_dev:
            dev = embed_splits(run.encoder, context.splits.dev, context.evaluation)
            record["dev/recall@10"] = mean_recall([one.scored for one in dev], 10)
        return record

    what = [params.model_dump(exclude=OF_THE_GRID), corruption, with_dev, context.identity(params)]
    record, before = _kept(context, what, measure), measured_start(context, params)["recall@10"]
    change = {"start_recall@10": before, "change": record["recall@10"] - before}
    return record | change | {"command": _command(context.study, params)}


def _measured(context: RunContext, run: TrainedRun, params: DPO) -> dict:
    """The numbers of a trained run on the reported split, and how good its negatives were."""
    embedded = embed_splits(run.encoder, context.splits.reported, context.evaluation)
    scored, attributes, quality = [one.scored for one in embedded], context.prepared.attributes, {}
    own = params.model_copy(update={"repetition": 0}) == at_grid_size(context.study.dpo)
    if attributes is not None and run.preferences.negatives is not None:
        quality = run.preferences.edits.quality(run.preferences.negatives, attributes)
    return {
        "recall@1": mean_recall(scored, 1),
        **embedding_statistics(embedded),
        "recall@50": mean_recall(scored, 50),
        "median_rank": float(np.mean([median_rank(one.ranks) for one in scored])),
        "loss_first_epoch": run.history.records[0]["loss"],
        "loss_last_epoch": run.history.records[-1]["loss"],
        **quality,
        "queries": sum(len(one.queries) for one in embedded),
        "hits": float(sum(one.recall(10).sum() for one in scored)),
        "read": {
            how: float(sum(one.read(how).recall(10).sum() for one in embedded)) for how in READINGS.values() if own
        },
        **_ranks(scored),
    }


def _ranks(scored: Sequence[Scored]) -> dict[str, dict[str, list[int]]]:
    """The ranks of each category's targets, as JSON keeps them."""
    return {name: {one.category: getattr(one.ranks, name).tolist() for one in scored} for name in ("above", "tied")}


def _kept(context: RunContext, what: list, measure: Callable[[], dict]) -> dict:
    """What was measured before of ``what``, or else now."""
    key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:24]
    file = context.folder / "runs" / f"{key}.json"
    if not file.is_file():
        write_bytes(json.dumps(measure()).encode(), file)
    return read_json(file)


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
