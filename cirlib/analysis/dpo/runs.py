"""One preference training, from its parameters to its numbers; kept, so that a grid of them goes on after a stop."""

from __future__ import annotations

import ast
import hashlib
import json
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import set_seed
from torch import Tensor
from torch.nn import functional as F

import cirlib
from cirlib.analysis.dpo import geometry
from cirlib.analysis.dpo.context import RunContext
from cirlib.analysis.dpo.dual_encoder import DualEncoder, all_similarities, similarities
from cirlib.analysis.dpo.negatives import mine_negatives, negative_quality
from cirlib.analysis.dpo.objectives import in_batch_loss, preference_loss, rewards
from cirlib.analysis.dpo.train_edits import Edits
from cirlib.benchmarks import Benchmark, query_texts
from cirlib.retrieval.ranks import median_rank
from cirlib.retrieval.scoring import Scored, average_texts, mean_recall, score, summarise
from cirlib.study.files import write_json
from cirlib.study.parameters import DPO, Evaluation, Study
from cirlib.training.loop import History, Recipe, shuffled_batches, train

SOURCES = ("preferences", "losses", "training.py", "mining.py", "metrics.py", "evaluation.py", "composers")
DO_NOT_DECIDE = ("figures", "effects", "grid", "recipe", "mistakes", "experiment")
PROJECTION_LR = 1e-3
CHUNK = 256  # queries or images embedded at once


@dataclass(frozen=True)
class Corruption:
    """What a run does wrong on purpose: ``swapped`` chosen and rejected, ``raw`` queries that are not normalised."""

    swapped: bool = False
    raw: bool = False


@dataclass(frozen=True)
class Outcome:
    """A finished run.

    Attributes:
        history: loss, rewards and margin of every step.
        track: geometry and recall on the tracked part, a record each tracked step.
        negatives: ids (N, K) of the last mining; None in-batch.
        seconds: training and mining, without the scoring.
    """

    encoder: DualEncoder
    edits: Edits
    history: History
    track: list[dict]
    negatives: np.ndarray | None
    seconds: float


def train_preferences(
    context: RunContext,
    params: DPO,
    *,
    folder: Path | None = None,
    every: int = 0,
    look: Callable[[DualEncoder], dict[str, float]] | None = None,
    corruption: Corruption = Corruption(),
) -> Outcome:
    """Trains on preferences as ``params`` say and keeps the last step: nothing is chosen, so nothing is overfitted.

    Args:
        folder: state of a run that may be interrupted and reports itself; None for one of many.
        every: steps between two calls of ``look``, which is also called before the first and after the last.
    """
    start, seed = time.perf_counter(), context.seed(params)
    encoder, edits = context.encoder(params).eval(), context.edits(params)
    pairs = _Pairs(context, edits, params, seed, corruption, folder)
    track = _Track(encoder, look, folder) if every else None
    done = 0

    def batches(epoch: int) -> list[Tensor]:
        nonlocal done
        pairs.mine_for(epoch, encoder)
        parts = shuffled_batches(len(edits), params.batch_size, seed, epoch)
        done = (epoch - 1) * len(parts)
        return parts

    def loss_of(rows: Tensor) -> tuple[Tensor, dict[str, float]]:
        nonlocal done
        if track and done % every == 0:
            track.look(done)
        done += 1
        return pairs.loss(encoder, rows)

    is_tower = params.trains.endswith(("tower", "towers"))
    precision = context.prepared.stage.study.models.precision
    recipe = Recipe(params.epochs, params.lr if is_tower else PROJECTION_LR, precision=precision)
    options = {"run": "retrieval_dpo", "unit": "edits"}
    if folder is not None:
        options["fingerprint"] = {"dpo": params.model_dump(), "seed": seed, "start": context.identity(params)}
    steps = len(shuffled_batches(len(edits), params.batch_size, seed, 1))
    set_seed(seed)
    history = train(encoder, batches, steps, loss_of, recipe, folder, **options)
    if track:
        track.look(params.epochs * steps)
    seconds = time.perf_counter() - start - (track.seconds if track else 0)
    return Outcome(encoder, edits, history, track.records if track else [], pairs.negatives, seconds)


class _Track:
    """Looks at a model in training from time to time; kept in the run's folder."""

    def __init__(
        self, encoder: DualEncoder, look: Callable[[DualEncoder], dict[str, float]], folder: Path | None
    ) -> None:
        self.encoder, self.measure = encoder, look
        self.file = folder and folder / "track.json"
        self.records: list[dict] = []
        self.seconds = 0.0

    def look(self, step: int) -> None:
        """Measures at ``step``, unless that was done before the run was stopped."""
        if not self.records and step and self.file and self.file.is_file():
            self.records = [record for record in json.loads(self.file.read_text()) if record["step"] <= step]
        if any(record["step"] == step for record in self.records):
            return
        start, mode, generator = time.perf_counter(), self.encoder.training, torch.get_rng_state()
        self.encoder.eval()
        self.records.append({"step": step, **self.measure(self.encoder)})
        self.encoder.train(mode)
        torch.set_rng_state(generator)
        if self.file:
            write_json(self.records, self.file, indent=None)
        self.seconds += time.perf_counter() - start


class _Pairs:
    """The negatives in force and the frozen model's similarities to them, computed once a mining."""

    def __init__(
        self, context: RunContext, edits: Edits, params: DPO, seed: int, corruption: Corruption, folder: Path | None
    ) -> None:  # fmt: skip
        self.edits, self.params, self.seed, self.corruption, self.folder = edits, params, seed, corruption, folder
        self.in_batch = params.objective == "info_nce_in_batch"
        self.frozen = context.encoder(params, frozen=True).eval()
        self.negatives: np.ndarray | None = None
        self.mined_at = 1
        if not self.in_batch:
            self.queries = embed(self.frozen, edits.references, edits.texts, normalize=not corruption.raw)  # (N, D)
            self._take(self._mine(self.frozen, 1))

    def mine_for(self, epoch: int, encoder: DualEncoder) -> None:
        """Mines anew where ``epoch`` asks for it: by the model as it is, or what was mined then before a stop."""
        since = 1 + (epoch - 1) // self.params.mine_every * self.params.mine_every if self.params.mine_every else 1
        if self.in_batch or since == self.mined_at:
            return
        file = self.folder and self.folder / f"negatives-{since}.json"
        if file and file.is_file():
            negatives = np.array(json.loads(file.read_text()), dtype=object)
        else:
            mode = encoder.training
            negatives = self._mine(encoder.eval(), since)
            encoder.train(mode)
            if file:
                write_json(negatives.tolist(), file, indent=None)
        self._take(negatives)
        self.mined_at = since

    def _mine(self, encoder: DualEncoder, epoch: int) -> np.ndarray:
        """Negatives (N, K) by ``encoder``."""
        queries = embed(encoder, self.edits.references, self.edits.texts)
        pools = {category: embed_images(encoder, ids) for category, ids in self.edits.pools.items()}
        return mine_negatives(self.edits, queries, pools, self.params, self.seed + epoch)

    def _take(self, negatives: np.ndarray) -> None:
        """Puts ``negatives`` (N, K) in force, with the frozen model's similarities."""
        self.negatives = negatives
        targets = embed_images(self.frozen, self.edits.targets)
        self.before = similarities(self.queries, targets[:, None])[:, 0]  # (N,)
        images = embed_images(self.frozen, negatives.ravel().tolist()).unflatten(0, negatives.shape)
        self.before_rejected = similarities(self.queries, images)  # (N, K)

    def loss(self, encoder: DualEncoder, rows: Tensor) -> tuple[Tensor, dict[str, float]]:
        """The loss of a batch, edits ``rows`` (B,), and its rewards."""
        at = rows.tolist()
        vectors = encoder.query_vectors([self.edits.references[i] for i in at], [self.edits.texts[i] for i in at])
        queries = vectors if self.corruption.raw else F.normalize(vectors, dim=-1)  # (B, D)
        targets = encoder.image_vectors([self.edits.targets[i] for i in at])  # (B, D) or (B, Q, D)
        if self.in_batch:
            return in_batch_loss(all_similarities(queries, targets), self.params), {}
        negatives = self.negatives[at]  # (B, K)
        images = encoder.image_vectors(negatives.ravel().tolist()).unflatten(0, negatives.shape)
        pair = (
            similarities(queries, targets[:, None])[:, 0],  # (B,)
            similarities(queries, images),  # (B, K)
            self.before[rows].to(queries.device),
            self.before_rejected[rows].to(queries.device),
        )
        told = rewards(*pair, self.params)
        signed = [-scores for scores in pair] if self.corruption.swapped else pair
        return preference_loss(*signed, self.params), told


@torch.inference_mode()
def embed(encoder: DualEncoder, references: list[str], texts: list[str], normalize: bool = True) -> Tensor:
    """Query vectors (N, D) on the CPU."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    parts = [
        encoder.query_vectors([references[i] for i in rows], [texts[i] for i in rows]).float().cpu()
        for rows in (order[start : start + CHUNK] for start in range(0, len(order), CHUNK))
    ]
    vectors = torch.cat(parts)[torch.tensor(order).argsort()]
    return F.normalize(vectors, dim=-1) if normalize else vectors


@torch.inference_mode()
def embed_images(encoder: DualEncoder, ids: list[str]) -> Tensor:
    """Image vectors (M, D) or (M, Q, D) on the CPU."""
    starts = range(0, len(ids), CHUNK)
    return torch.cat([encoder.image_vectors(ids[start : start + CHUNK]).float().cpu() for start in starts])


@dataclass(frozen=True)
class Embedded:
    """A category under a model: query vectors (N, D) not normalised, gallery (M, D) or (M, Q, D)."""

    benchmark: Benchmark
    raw: Tensor
    gallery: Tensor


def embed_parts(encoder: DualEncoder, parts: Mapping[str, Benchmark], evaluation: Evaluation) -> dict[str, Embedded]:
    """Every category's queries and gallery; several texts of a query are averaged, then normalised."""
    embedded = {}
    for category, part in parts.items():
        texts, rows = query_texts(part, evaluation.captions)
        vectors = embed(encoder, [part.triplets[row].reference for row in rows], texts, normalize=False)
        if len(texts) > len(part.triplets):
            vectors = average_texts(F.normalize(vectors, dim=-1), rows, len(part.triplets))
        embedded[category] = Embedded(part, vectors, embed_images(encoder, part.gallery))
    return embedded


def score_embedded(embedded: Mapping[str, Embedded], evaluation: Evaluation, method: str) -> list[Scored]:
    """A model on every category."""
    return [
        score(method, category, F.normalize(e.raw, dim=-1), e.gallery, e.benchmark, evaluation)
        for category, e in embedded.items()
    ]


def describe(embedded: Mapping[str, Embedded], scored: list[Scored]) -> dict[str, float]:
    """Recall@10, chance and the geometry of a model on some parts."""
    if not scored:
        return {}
    parts = list(embedded.values())
    targets = [[e.benchmark.gallery_index[t.targets[0]] for t in e.benchmark.triplets] for e in parts]
    shape = geometry.describe([e.raw for e in parts], [e.gallery for e in parts], targets, scored)
    mean = summarise(scored, (10,)).iloc[-1]
    return {"recall@10": float(mean["value"]), "chance": float(mean["chance"]), **shape}


def measure(context: RunContext, params: DPO, keep_dev: bool = False) -> dict:
    """The record of one run: its numbers on the reported split, ranks included, computed once and then read.

    Args:
        keep_dev: also the dev recall@10, for what is chosen by it.
    """
    file = context.folder / "cells" / f"{_key(context, params, keep_dev)}.json"
    if (known := _record(file)) is not None:
        return known
    outcome = train_preferences(context, params)
    study, splits = context.prepared.stage.study, context.prepared.splits
    embedded = embed_parts(outcome.encoder, splits.reported, study.evaluation)
    scored = score_embedded(embedded, study.evaluation, "retrieval_dpo")
    described = describe(embedded, scored)
    record = {
        **params.model_dump(),
        "recall@1": mean_recall(scored, 1),
        **described,
        "recall@50": mean_recall(scored, 50),
        "median_rank": float(np.mean([median_rank(one.ranks) for one in scored])),
        "loss_first_epoch": outcome.history.records[0]["loss"],
        "loss_last_epoch": outcome.history.records[-1]["loss"],
        "seconds": outcome.seconds,
        **quality_of(context, outcome),
        "command": command(study, params),
        "above": {one.category: one.ranks.above.tolist() for one in scored},
        "tied": {one.category: one.ranks.tied.tolist() for one in scored},
    }
    if keep_dev:
        dev = embed_parts(outcome.encoder, splits.dev, study.evaluation)
        record["dev/recall@10"] = mean_recall(score_embedded(dev, study.evaluation, "dev"), 10)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(record, file, indent=None)
    return record


def _record(file: Path) -> dict | None:
    """A run that was measured before; None where it was not, or its file is damaged."""
    try:
        record = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and {"above", "tied"} <= record.keys() else None


def quality_of(context: RunContext, outcome: Outcome) -> dict[str, float]:
    """What the negatives are worth, where the true attributes are known and anything was mined."""
    if context.attributes is None or outcome.negatives is None:
        return {}
    return negative_quality(outcome.edits, outcome.negatives, context.attributes)


def command(study: Study, params: DPO) -> str:
    """What runs this training by itself, all said that differs from the defaults or from what ``study`` has now."""
    told = {name: value for name, value in params.model_dump().items() if not name.startswith("grid")}
    usual = {name: {getattr(DPO(), name), getattr(study.dpo, name)} for name in told}
    told = {name: value for name, value in told.items() if usual[name] != {value}}
    settings = ["study=" + study.name, *(["seed=" + str(study.seed)] if study.seed else [])]
    settings += [f"dpo.{name}={'null' if value is None else value}" for name, value in {**told, "grid": "none"}.items()]
    return "dvc exp run " + " ".join(f"-S {shlex.quote(one)}" for one in settings) + " dpo"


def _key(context: RunContext, params: DPO, keep_dev: bool) -> str:
    own = {name: value for name, value in params.model_dump().items() if not name.startswith("grid")}
    study = context.prepared.stage.study
    identity = [
        own,
        keep_dev,
        study.model_dump(mode="json", include={"seed", "data", "evaluation", "models"}),
        context.identity(params),
        _code(),
    ]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]


@cache
def _code() -> str:
    """A hash of the source that decides a run's numbers; comments and docstrings do not."""
    digest, root = hashlib.sha256(), Path(cirlib.__file__).parent
    for name in SOURCES:
        path = root / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            if file.stem not in DO_NOT_DECIDE:
                digest.update(_without_docstrings(file.read_text()).encode())
    return digest.hexdigest()


def _without_docstrings(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)
