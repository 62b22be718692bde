"""The Q-Former's two trainings on frozen image tokens: image–caption pairs, then triplets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from accelerate.utils import set_seed
from torch import Tensor

from cirlib.benchmarks import Benchmark, query_texts, sample_join
from cirlib.benchmarks.splits import annotations_key
from cirlib.losses.gradient_cache import in_chunks
from cirlib.losses.info_nce import info_nce
from cirlib.models.preparation import Prepared
from cirlib.models.qformer import (
    QFormerComposer,
    load_weights,
    mean_token,
    save_weights,
)
from cirlib.models.qformer_embedding import (
    Features,
    embed_gallery,
    embed_queries,
    new_composer,
)
from cirlib.retrieval.hard_negatives import mine_hard_negatives
from cirlib.retrieval.scoring import Scored, average_texts, mean_recall, score
from cirlib.study.errors import ParameterError
from cirlib.study.files import replace_file, write_table
from cirlib.study.parameters import Evaluation, QFormer, Study
from cirlib.study.processes import (
    all_gather,
    all_reduce,
    broadcast,
    launch,
    local_indices,
    process_count,
    process_group,
    shard,
)
from cirlib.study.stage import Stage, open_stage
from cirlib.training.loop import History, Recipe, as_table, shuffled_batches, train

HOW = {"processes", "chunk_size", "gradient_checkpointing"}  # parameters that change what a run needs, not its result


@dataclass(frozen=True)
class TripletBatch:
    """Rows of a feature store and texts: reference, target and K mined negatives (none: K = 0) of B queries."""

    references: np.ndarray  # (B,)
    targets: np.ndarray  # (B,)
    texts: list[str]  # B
    negatives: np.ndarray  # (B, K)

    def rows(self, own: np.ndarray) -> np.ndarray:
        """Every row of the store that the queries ``own`` (b,) of the batch read."""
        return np.concatenate([self.references[own], self.targets[own], self.negatives[own].ravel()])

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class PairBatch:
    """Rows of a feature store and the caption of each."""

    images: np.ndarray  # (B,)
    captions: list[str]  # B

    def __len__(self) -> int:
        return len(self.captions)


def pretrain(
    composer: QFormerComposer,
    store: Features,
    pairs: Sequence[Mapping[str, str]],
    study: Study,
    folder: Path,
) -> History:
    """Image–text contrastive pretraining (BLIP-2's ITC): the text's [CLS] against the image's best query token."""
    params = study.qformer
    rows = store.rows([pair["image"] for pair in pairs])
    captions = [pair["caption"] for pair in pairs]

    def batches(epoch: int) -> list[PairBatch]:
        parts = shuffled_batches(len(rows), params.batch_size, study.seed, epoch)
        return [PairBatch(rows[part.numpy()], [captions[i] for i in part.tolist()]) for part in parts]

    def loss_of(batch: PairBatch) -> tuple[Tensor, dict]:
        mine = local_indices(len(batch))
        images = _targets(composer, store, batch.images[mine], params.chunk_size)
        texts = in_chunks(composer.embed_texts, [batch.captions[i] for i in mine], params.chunk_size)
        images, texts = all_gather(images, len(batch)), all_gather(texts, len(batch))
        return info_nce(texts, images, temperature=composer.temperature, symmetric=True), {}

    recipe = _recipe(study, params.pretraining_epochs, params.pretraining_lr)
    fingerprint = {"store": store.key, "params": params.model_dump(exclude=HOW), "seed": study.seed, "pairs": pairs}
    options = {
        "run": "pretraining", "fingerprint": fingerprint, "unit": "pairs",
        "names": lambda batch: [store.ids[row] for row in batch.images],
        "prefetch": lambda batch: store.prefetch(batch.images[local_indices(len(batch))], composer.device),
    }  # fmt: skip
    return train(composer, batches, len(batches(1)), loss_of, recipe, folder, **options)


def finetune(
    composer: QFormerComposer,
    store: Features,
    train_parts: Mapping[str, Benchmark],
    dev_parts: Mapping[str, Benchmark],
    study: Study,
    folder: Path,
    *,
    run: str,
    hard_negatives: bool = False,
    fork: Path | None = None,
) -> History:
    """Fine-tuning on triplets with InfoNCE, with or without FAISS-mined hard negatives beside the batch's own.

    The composer is left at the epoch with the best dev recall@10.

    Args:
        fork: the folder of a run without mined negatives whose first ``mine_from`` epochs this run shares.
    """
    params = study.qformer
    sampler = TripletSampler(store, train_parts, params, study.seed)
    mine = partial(_mined, folder, partial(_mine, composer, store, sampler, study)) if hard_negatives else None

    def loss_of(batch: TripletBatch) -> tuple[Tensor, dict]:
        return triplet_loss(composer, store, batch, params.chunk_size), {}

    def validate() -> dict[str, float]:
        scored = score_qformer(composer, store, dev_parts, study.evaluation, run)
        return {"dev/recall@10": mean_recall(scored, 10)}

    recipe = _recipe(study, params.epochs, params.lr)
    fingerprint = {
        "store": store.key,
        "study": study.model_dump(include={"seed", "evaluation"}) | {"qformer": params.model_dump(exclude=HOW)},
        "annotations": annotations_key([*train_parts.values(), *dev_parts.values()]),
    }
    options = {
        "run": run, "validate": validate, "fingerprint": fingerprint, "keep": params.mine_from, "fork": fork,
        "names": lambda batch: [store.ids[row] for row in batch.targets],
        "prefetch": lambda batch: store.prefetch(batch.rows(local_indices(len(batch))), composer.device),
    }  # fmt: skip
    return train(composer, partial(sampler.batches, mine=mine), sampler.steps, loss_of, recipe, folder, **options)


def triplet_loss(
    composer: QFormerComposer, store: Features, batch: TripletBatch, chunk_size: int | None = None
) -> Tensor:
    """InfoNCE of a batch of triplets, mined negatives included where it has any.

    Of several processes each embeds its rows, and all compute the loss of the whole batch.

    Args:
        chunk_size: images whose activations are kept at a time (:mod:`cirlib.losses.gradient_cache`); None: of all.
    """
    device, mine, count = composer.device, local_indices(len(batch)), len(batch)
    texts = [batch.texts[i] for i in mine]

    def embed(part: list[tuple[int, str]]) -> Tensor:
        rows, words = zip(*part, strict=True)
        return composer.embed_queries(store.read(np.array(rows), device), words)

    queries = in_chunks(embed, list(zip(batch.references[mine].tolist(), texts, strict=True)), chunk_size)
    queries = all_gather(queries, count)  # (B, D)
    targets = all_gather(_targets(composer, store, batch.targets[mine], chunk_size), count)  # (B, Q, D) or (B, D)
    negatives = None
    if batch.negatives.shape[1]:
        rows = batch.negatives[mine]  # (b, K)
        mined = _targets(composer, store, rows.ravel(), chunk_size).unflatten(0, rows.shape)
        negatives = all_gather(mined, count)  # (B, K, Q, D) or (B, K, D)
    return info_nce(queries, targets, temperature=composer.temperature, negatives=negatives)


def _targets(composer: QFormerComposer, store: Features, rows: np.ndarray, chunk_size: int | None) -> Tensor:
    """Target embeddings of the store's ``rows``."""
    return in_chunks(lambda part: composer.embed_targets(store.read(part, composer.device)), rows, chunk_size)


class TripletSampler:
    """Batches of triplets with captions drawn anew each epoch, and negatives mined from time to time."""

    def __init__(self, store: Features, parts: Mapping[str, Benchmark], params: QFormer, seed: int) -> None:
        self.triplets = [triplet for part in parts.values() for triplet in part.triplets]
        self.category = np.repeat(np.arange(len(parts)), [len(part.triplets) for part in parts.values()])
        self.galleries = [store.rows(part.gallery) for part in parts.values()]
        self.references = store.rows([triplet.reference for triplet in self.triplets])
        self.targets = store.rows([triplet.targets[0] for triplet in self.triplets])
        self.params, self.seed = params, seed
        self.negatives = np.empty((len(self.triplets), 0), np.int64)  # (N, K) rows of the store

    @property
    def steps(self) -> int:
        """Batches an epoch."""
        return len(shuffled_batches(len(self.triplets), self.params.batch_size, self.seed, 1))

    def batches(self, epoch: int, mine: Callable[[int], np.ndarray] | None = None) -> list[TripletBatch]:
        """The batches of ``epoch``; ``mine`` is given the epoch whose mining is in force."""
        since = epoch - 1 - self.params.mine_from
        if mine is not None and since >= 0:
            self.negatives = mine(epoch)
        rng = np.random.default_rng((self.seed, epoch))
        texts = [sample_join(triplet.captions, rng) for triplet in self.triplets]
        parts = shuffled_batches(len(texts), self.params.batch_size, self.seed, epoch)
        return [self._batch(part.numpy(), texts) for part in parts]

    def _batch(self, rows: np.ndarray, texts: list[str]) -> TripletBatch:
        return TripletBatch(
            self.references[rows], self.targets[rows], [texts[row] for row in rows], self.negatives[rows]
        )


def _mined(folder: Path, mine: Callable[[], np.ndarray], epoch: int) -> np.ndarray:
    """The negatives mined at ``epoch``, (N, K): kept in ``folder``, so that a resumed run has the same."""
    file = folder / f"negatives-{epoch}.npy"
    if broadcast(PartialState().is_main_process and file.is_file()):
        return np.load(file)
    array = mine()
    if PartialState().is_main_process:
        replace_file(file, lambda path: _save_array(path, array))
    return array


def _save_array(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as stream:  # np.save would add a suffix to a path
        np.save(stream, array)


def _mine(composer: QFormerComposer, store: Features, sampler: TripletSampler, study: Study) -> np.ndarray:
    """Hard negatives of every train query among its category's train images, rows of the store (N, K).

    Of several processes each embeds and searches for a part; all get the whole.
    """
    params = study.qformer
    negatives = np.empty((len(sampler.triplets), params.hard_negatives), np.int64)
    composer.eval()
    for category, gallery in enumerate(sampler.galleries):
        mine = np.flatnonzero(sampler.category == category)
        queries = embed_queries(composer, store, sampler.references[mine], [_full_text(sampler, i) for i in mine])
        images = mean_token(embed_gallery(composer, store, gallery))
        own = np.stack([sampler.targets[mine], sampler.references[mine]], 1)
        mined = mine_hard_negatives(
            queries, images, _positions(gallery, own), num_negatives=params.hard_negatives,
            range_max=params.range_max, sampling_strategy="random", seed=study.seed,
            rows=shard(np.arange(len(mine))), progress=PartialState().is_main_process,
        )  # fmt: skip
        indices = all_reduce(torch.from_numpy(mined.indices)).numpy() + (
            PartialState().num_processes - 1
        )  # -1 is what the others left
        negatives[mine] = gallery[indices]
        rng = np.random.default_rng(study.seed)
        for row in np.flatnonzero((indices < 0).any(1)):  # too few: others of the gallery for the rest
            few = indices[row] < 0
            negatives[mine[row], few] = rng.choice(np.setdiff1d(gallery, own[row]), few.sum())
    composer.train()
    return negatives


def _full_text(sampler: TripletSampler, row: int) -> str:
    return " and ".join(sampler.triplets[row].captions)


def _positions(gallery: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Where store ``rows`` stand in ``gallery`` (store rows, without repeats)."""
    order = np.argsort(gallery)
    return order[np.searchsorted(gallery, rows, sorter=order)]


def benchmark_queries(
    composer: QFormerComposer, store: Features, benchmark: Benchmark, evaluation: Evaluation
) -> Tensor:
    """Query embeddings (N, D) of a benchmark, a query's several texts averaged."""
    texts, rows = query_texts(benchmark, evaluation.captions)
    references = store.rows([benchmark.triplets[row].reference for row in rows])
    features = embed_queries(composer, store, references, texts)
    return average_texts(features, rows, len(benchmark.triplets))


def score_qformer(
    composer: QFormerComposer,
    store: Features,
    parts: Mapping[str, Benchmark],
    evaluation: Evaluation,
    method: str,
) -> list[Scored]:
    """The composer on every category."""
    scored = []
    for category, benchmark in parts.items():
        queries = benchmark_queries(composer, store, benchmark, evaluation)
        gallery = embed_gallery(composer, store, store.rows(benchmark.gallery))
        scored.append(score(method, category, queries, gallery, benchmark, evaluation))
    return scored


def _recipe(study: Study, epochs: int, lr: float) -> Recipe:
    params = study.qformer
    return Recipe(
        epochs, lr, precision=study.models.precision,
        accumulation=params.accumulation,
    )  # fmt: skip


def train_qformer(prepared: Prepared) -> tuple[dict[str, QFormerComposer], pd.DataFrame]:
    """:func:`train_here`, or the same on ``qformer.processes`` processes where that is more than one."""
    stage = prepared.stage
    count = process_count(stage.study.qformer.processes, "qformer.processes")
    if count == 1 or not prepared.splits.train:
        return train_here(prepared)
    launch(_train_in_worker, stage, count)
    trained = stage.unfinished / "trained"
    composers = {folder.name: new_composer(prepared) for folder in sorted(trained.iterdir()) if folder.is_dir()}
    for method, composer in composers.items():
        load_weights(composer, trained / method)
        composer.eval()
    return composers, pd.read_csv(trained / "history.csv")


def require_negatives(parts: Mapping[str, Benchmark], params: QFormer) -> None:
    """Refuses hard negatives that the train images cannot give.

    Raises:
        ParameterError: a category has too few images beside a query's own two.
    """
    for category, part in parts.items():
        others = len(part.gallery) - 2
        if params.hard_negatives > others:
            raise ParameterError(
                f"qformer.hard_negatives is {params.hard_negatives}, "
                f"at most {others} is allowed: so many images has {category} beside a query's own two"
            )


def _train_in_worker(stage: Stage) -> None:
    composers, history = train_here(Prepared(stage))
    if PartialState().is_main_process:
        save_all(composers, stage.unfinished / "trained")
        write_table(history, stage.unfinished / "trained" / "history.csv")


def train_here(prepared: Prepared) -> tuple[dict[str, QFormerComposer], pd.DataFrame]:
    """Pretrains, then fine-tunes twice from there: without and with mined hard negatives.

    The two share their first ``mine_from`` epochs, in which nothing is mined; those are run once.

    Returns:
        Method → composer at its best epoch, and a row an epoch of every training. Where the data has no train
        split, the composer as the study gives it and no rows. What came out of pretraining is kept as well, as
        ``pretrained``, for preferences to start from.

    Raises:
        ParameterError: a category has too few images for the hard negatives that are asked for.
    """
    stage, splits = prepared.stage, prepared.splits
    require_negatives(splits.train, stage.study.qformer)
    set_seed(stage.study.seed)  # the same start wherever it is called from
    composer, study, folder = new_composer(prepared), stage.study, stage.unfinished
    if not splits.train:
        return {"qformer": composer.eval()}, as_table()
    histories = []
    if pairs := prepared.pairs("pretraining"):
        histories.append(pretrain(composer, prepared.tokens, pairs, study, folder / "pretraining"))
        if PartialState().is_main_process:
            save_weights(composer, stage.out / "checkpoints" / "pretrained")
    parts, plain = (prepared.tokens, splits.train, splits.dev, study), folder / "qformer"
    mined = deepcopy(composer)
    histories.append(finetune(composer, *parts, plain, run="qformer"))
    options = {"hard_negatives": True, "fork": plain if 0 < study.qformer.mine_from < study.qformer.epochs else None}
    name = "qformer_hard_negatives"
    histories.append(finetune(mined, *parts, folder / name, run=name, **options))
    composers = {"qformer": composer, name: mined}
    return composers, as_table(*histories)


def score_all(composers: Mapping[str, QFormerComposer], prepared: Prepared) -> list[Scored]:
    """Every composer on the reported split."""
    parts, evaluation = prepared.splits.reported, prepared.stage.study.evaluation
    return [
        one
        for method, composer in composers.items()
        for one in score_qformer(composer, prepared.tokens, parts, evaluation, method)
    ]


def save_all(composers: Mapping[str, QFormerComposer], folder: Path) -> None:
    """Each composer's weights in a folder of its name."""
    for method, composer in composers.items():
        save_weights(composer, folder / method)


def main() -> None:
    """Trains on the processes that a launcher started on one machine or several, which see the same folder.

    ``accelerate launch -m cirlib.training.qformer_training``; what it leaves is what 03_qformer finds and goes on from.
    """
    with process_group():
        _train_in_worker(broadcast(open_stage("qformer") if PartialState().is_main_process else None))


if __name__ == "__main__":
    main()
