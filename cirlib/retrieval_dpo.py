"""Retrieval-DPO as the paper describes it: the edit alone, through a two-tower model's text encoder.

Positives and FAISS-mined hard negatives go through the frozen image encoder; a DPO loss pushes their similarities
apart, measured against a frozen copy of the text encoder. Only the text side learns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cirlib.benchmarks import Benchmark, join_captions
from cirlib.composers.baselines import text_only
from cirlib.encoders.clip import TwoTowers
from cirlib.encoders.store import FeatureStore
from cirlib.evaluation import Scored, mean_recall
from cirlib.losses.dpo import dpo_loss
from cirlib.mining import mine_hard_negatives
from cirlib.params import DPO, ParameterError, Study
from cirlib.preparation import Prepared
from cirlib.training import History, Recipe, shuffled_batches, train
from cirlib.zero_shot import embed, score_composer

STEP_COLUMNS = ["step", "loss", "margin", "chosen_reward", "rejected_reward", "accuracy"]


@dataclass(frozen=True)
class Preferences:
    """For N edits: the wanted image and K mined ones (rows of the store), and the frozen model's similarities."""

    texts: list[str]
    chosen: np.ndarray  # (N,)
    rejected: np.ndarray  # (N, K)
    reference_chosen: Tensor  # (N,)
    reference_rejected: Tensor  # (N, K)


def mine_preferences(
    towers: TwoTowers, store: FeatureStore, parts: Mapping[str, Benchmark], study: Study
) -> Preferences:
    """Negatives of every train edit: the images of its category that the untrained model ranks highest."""
    triplets = [triplet for part in parts.values() for triplet in part.triplets]
    texts = [join_captions(triplet.captions, "and")[0] for triplet in triplets]
    queries = towers.encode_texts(texts, progress=True)  # (N, D)
    chosen = store.rows([triplet.targets[0] for triplet in triplets])
    rejected, start = [], 0
    for part in parts.values():
        rows = slice(start, start + len(part.triplets))
        rejected.append(_mine(queries[rows], chosen[rows], store, part, study.dpo, study.seed))
        start = rows.stop
    mined = np.concatenate(rejected)
    chosen_scores = _similarities(queries, store, chosen[:, None], study.dpo.scale)[:, 0]
    return Preferences(texts, chosen, mined, chosen_scores, _similarities(queries, store, mined, study.dpo.scale))


def _mine(
    queries: Tensor, chosen: np.ndarray, store: FeatureStore, part: Benchmark, params: DPO, seed: int
) -> np.ndarray:
    """Rows of the store (N, K) of each query's hard negatives."""
    gallery = store.rows(part.gallery)
    where = {row: position for position, row in enumerate(gallery.tolist())}
    mined = mine_hard_negatives(
        queries, store[part.gallery], [[where[row]] for row in chosen.tolist()], num_negatives=params.num_negatives,
        range_min=params.range_min, range_max=params.range_max, sampling_strategy=params.sampling,
        index=params.index, seed=seed,
    )  # fmt: skip
    if (mined.indices < 0).any():
        raise ParameterError(
            f"fewer than dpo.num_negatives={params.num_negatives} negatives between dpo.range_min={params.range_min} "
            f"and dpo.range_max={params.range_max} in a gallery of {len(gallery)}"
        )
    return gallery[mined.indices]


def _similarities(queries: Tensor, store: FeatureStore, rows: np.ndarray, scale: float) -> Tensor:
    """Scaled cosine similarities (B, K) of queries (B, D) and stored images (B, K)."""
    images = torch.from_numpy(store.array[rows].astype(np.float32)).to(queries.device)  # (B, K, D)
    return scale * torch.einsum("bd,bkd->bk", queries, images)


def train_dpo(
    towers: TwoTowers,
    store: FeatureStore,
    preferences: Preferences,
    dev: Mapping[str, Benchmark],
    study: Study,
    folder: Path,
) -> History:
    """Trains the text tower on the preferences; rewards and margin of every step are the history's ``steps``.

    The towers are left at the epoch with the best dev recall@10.
    """
    params = study.dpo
    learn_text_only(towers)

    def batches(epoch: int) -> list[Tensor]:
        return shuffled_batches(len(preferences.texts), params.batch_size, study.seed, epoch)

    def loss_of(rows: Tensor) -> tuple[Tensor, dict[str, float]]:
        queries = towers.text_features([preferences.texts[i] for i in rows.tolist()])
        losses, chosen, rejected = preference_loss(queries, store, preferences, rows, params)
        return losses.mean(), _rewards(chosen, rejected)

    def validate() -> dict[str, float]:
        scored = score_text_query(towers, store, dev, study, "dev")
        return {"dev/recall@10": mean_recall(scored, 10)}

    recipe = Recipe(params.epochs, params.lr, precision=study.models.precision)
    fingerprint = {
        "store": store.key,
        "study": study.model_dump(include={"seed", "dpo", "evaluation"}),
        "texts": preferences.texts,
        "chosen": preferences.chosen.tolist(),
    }
    options = {"run": "retrieval_dpo", "validate": validate, "fingerprint": fingerprint, "unit": "edits"}
    return train(towers.model, batches, len(batches(1)), loss_of, recipe, folder, **options)


def preference_loss(
    queries: Tensor, store: FeatureStore, preferences: Preferences, rows: Tensor, params: DPO
) -> tuple[Tensor, Tensor, Tensor]:
    """DPO losses (B,), chosen rewards (B,) and rejected rewards (B, K) of queries (B, D), the edits at ``rows``."""
    chosen = _similarities(queries, store, preferences.chosen[rows.numpy(), None], params.scale)[:, 0]
    rejected = _similarities(queries, store, preferences.rejected[rows.numpy()], params.scale)
    before = preferences.reference_chosen[rows].to(chosen.device)
    before_rejected = preferences.reference_rejected[rows].to(chosen.device)
    return dpo_loss(chosen, rejected, before, before_rejected, beta=params.beta, loss_type=params.loss_type)


def run_dpo(towers: TwoTowers, prepared: Prepared) -> History:
    """Mines the preferences of the study's train part and trains on them; nothing where there is no train part."""
    stage, splits = prepared.stage, prepared.splits
    if not splits.train:
        return History("retrieval_dpo")
    preferences = mine_preferences(towers, prepared.clip, splits.train, stage.study)
    return train_dpo(towers, prepared.clip, preferences, splits.dev, stage.study, stage.unfinished / "retrieval_dpo")


def score_trained(towers: TwoTowers, prepared: Prepared, history: History) -> list[Scored]:
    """The trained towers on the reported split; nothing where nothing was trained."""
    if not history.records:
        return []
    parts = prepared.splits.reported
    return score_text_query(towers, prepared.clip, parts, prepared.stage.study, "retrieval_dpo")


def learn_text_only(towers: TwoTowers) -> None:
    """Frees the text side of an open_clip model and freezes its image side and logit scale."""
    towers.model.requires_grad_(True)
    towers.model.visual.requires_grad_(False)
    towers.model.logit_scale.requires_grad_(False)


def _rewards(chosen: Tensor, rejected: Tensor) -> dict[str, float]:
    """What ``figures.dpo_curves`` shows of a batch: chosen (B,) and rejected (B, K) rewards."""
    mean = rejected.mean(-1)  # (B,)
    return {
        "margin": (chosen - mean).mean().item(),
        "chosen_reward": chosen.mean().item(),
        "rejected_reward": mean.mean().item(),
        "accuracy": (chosen > mean).float().mean().item(),
    }


def score_text_query(
    towers: TwoTowers, store: FeatureStore, parts: Mapping[str, Benchmark], study: Study, method: str
) -> list[Scored]:
    """The edit alone as the query, on every category."""
    embedded = embed(towers, store, parts, study.evaluation.captions)
    return score_composer(method, text_only, embedded, study.evaluation)
