"""Prompt tuning (CoOp: Zhou et al., 2022) on triplets: of two frozen towers only vectors before the edit learn."""

from collections.abc import Mapping

import pandas as pd
import torch
from accelerate.utils import set_seed
from torch import Tensor

from cirlib.benchmarks import Benchmark, query_texts
from cirlib.benchmarks.splits import annotations_key
from cirlib.losses.info_nce import info_nce
from cirlib.models.prepared import Prepared
from cirlib.models.prompts import PromptTunedTowers
from cirlib.retrieval.scoring import Scored, average_texts, mean_recall, score
from cirlib.study.parameters import Evaluation
from cirlib.training.batches import Batch, TripletSampler
from cirlib.training.loop import SELECT, Hooks, TrainingConfig, train, training_folder
from cirlib.training.qformer_training import DEV_RULES


def tune_prompts(prepared: Prepared) -> tuple[dict[str, PromptTunedTowers], pd.DataFrame]:
    """Learns the vectors before the edit, and the edit's weight, with InfoNCE on the train triplets.

    The weight starts as zero-shot chose it; the temperature stays the towers' own. Images are read as stored.

    Returns:
        ``prompt_tuned`` → composer at its epoch with the best dev recall@10, and a row an epoch. Nothing and no rows
        without a train split, or where ``qformer.prompt_epochs`` is 0.

    >>> tune_prompts(prepared)
    Traceback (most recent call last):
    cirlib.study.errors.StageError: qformer needs results/small/zero_shot/weights.json, which is missing: ...
    """
    stage, splits, study, store = prepared.stage, prepared.splits, prepared.stage.study, prepared.clip
    params = study.qformer
    if not (splits.train and params.prompt_epochs):
        return {}, pd.DataFrame(columns=["epoch", "loss", SELECT])
    set_seed(study.seed)
    weight = stage.read_choice("zero_shot", "weights.json")["sum"]
    composer = PromptTunedTowers(prepared.towers(), params.prompt_vectors, weight)
    reads = study.model_copy(update={"qformer": params.model_copy(update={"edits": params.prompt_edits})})
    sampler, device = TripletSampler(store, splits.train, reads), composer.towers.device

    def loss_of(batch: Batch) -> tuple[Tensor, dict[str, float]]:
        queries = composer.embed_queries(store.read(batch.references, device), batch.texts)
        return info_nce(queries, store.read(batch.targets, device), temperature=composer.temperature), {}

    def validate() -> dict[str, float]:
        return {SELECT: mean_recall(score_prompts({"dev": composer}, prepared, splits.dev, DEV_RULES), 10)}

    config = TrainingConfig(
        "prompt_tuned", params.prompt_epochs, len(sampler.rows(1)), params.prompt_lr, study.models.precision
    )
    settings = {"seed": study.seed} | params.model_dump(include={"batch_size", "prompt_edits", "single_captions"})
    data = annotations_key([*splits.train.values(), *splits.dev.values()])
    fingerprint = {"features": store.key, "towers": composer.towers.key, "settings": settings, "data": data}
    folder = training_folder(stage.trainings, composer, config, fingerprint)
    history = train(
        composer, sampler.batches, loss_of, config, folder, Hooks(validate), fingerprint=fingerprint,
        retrain=params.retrain,
    )  # fmt: skip
    return {config.run: composer}, pd.DataFrame(history.records)


@torch.inference_mode()
def score_prompts(
    composers: Mapping[str, PromptTunedTowers], prepared: Prepared, parts: Mapping[str, Benchmark], rules: Evaluation
) -> list[Scored]:
    """Every composer on every category; the embeddings of a query's several texts are averaged.

    >>> composer = PromptTunedTowers(prepared.towers(), num_vectors=4)
    >>> scored = score_prompts({"mine": composer}, prepared, prepared.splits.reported, Evaluation())
    >>> [one.category for one in scored]
    ['hat', 'shoe']
    """
    store, scored = prepared.clip, []
    for name, composer in composers.items():
        for category, part in parts.items():
            texts, rows = query_texts(part, rules.captions)
            edits = average_texts(composer.towers.encode_texts(texts), rows, len(part.triplets))
            queries = composer.compose(store[[triplet.reference for triplet in part.triplets]], edits)
            scored.append(score(name, category, queries, store[part.gallery], part, rules))
    return scored
