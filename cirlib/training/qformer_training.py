"""The Q-Former's two trainings on frozen image tokens: image–caption pairs, then triplets.

``accelerate launch -m cirlib.training.qformer_training`` runs them on the processes that a launcher started on one
machine or several, which see the same folder; 03_qformer finds what is trained there.
"""

from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
from accelerate import PartialState
from accelerate.utils import set_seed
from torch import Tensor

from cirlib.benchmarks import Benchmark, query_texts
from cirlib.benchmarks.splits import annotations_key
from cirlib.models.feature_store import ImageFeatures
from cirlib.models.prepared import Prepared
from cirlib.models.qformer import QFormerComposer, save_weights
from cirlib.models.qformer_embedding import embed_gallery, embed_queries, new_composer, pretrains
from cirlib.retrieval.scoring import Scored, average_texts, mean_recall, score
from cirlib.study.files import write_json, write_table
from cirlib.study.parameters import Evaluation, Study
from cirlib.study.processes import broadcast, launch, local_indices, process_count, process_group
from cirlib.study.stage import Stage, open_stage
from cirlib.training.batches import Batch, TripletSampler, batch_loss
from cirlib.training.loop import SELECT, History, Hooks, TrainingConfig, shuffled_batches, train, training_folder
from cirlib.training.mined_negatives import mine_for_triplets

DEV_RULES = Evaluation()  # of every choice by dev
_PLAIN = ("batch_size", "target", "fusion", "sprc_terms", "edits", "single_captions")
DECIDES = {  # training → the parameters of its own that decide the weights, beside those in its configuration
    "pretraining": ("batch_size", "target"),
    "qformer": _PLAIN,
    "qformer_hard_negatives": (*_PLAIN, "hard_negatives", "sampling", "range_max", "mine_from"),
}


@dataclass(frozen=True)
class QFormerTrainer:
    """Trains a composer on stored image tokens; ``trainings`` keeps every training, found again by what decides it."""

    composer: QFormerComposer
    tokens: ImageFeatures
    study: Study
    trainings: Path

    def pretrain(self, pairs: Sequence[Mapping[str, str]]) -> History:
        """Image–text contrastive pretraining (BLIP-2's ITC): the text's [CLS] against the image's best query token."""
        params, seed = self.study.qformer, self.study.seed
        images = self.tokens.rows([pair["image"] for pair in pairs])

        def batches(epoch: int) -> list[Batch]:
            parts = shuffled_batches(len(pairs), params.batch_size, seed, epoch)
            return [Batch(None, images[part.numpy()], [pairs[i]["caption"] for i in part.tolist()]) for part in parts]

        return self._train(
            "pretraining", batches, pairs, epochs=params.pretraining_epochs, steps_per_epoch=len(batches(1)),
            lr=params.pretraining_lr, unit="pairs",
        )  # fmt: skip

    def finetune(
        self, sampler: TripletSampler, dev_parts: Mapping[str, Benchmark], *, hard_negatives: bool = False,
        warm_start: Path | None = None,
    ) -> History:  # fmt: skip
        """Fine-tuning on triplets with InfoNCE; the composer is left at the epoch with the best dev recall@10, without
        dev parts at its last.

        Dev is scored under :data:`DEV_RULES` whatever the study's protocol is, so that one training serves them all.

        ``hard_negatives``: after ``mine_from`` epochs images mined each epoch stand beside the batch's own;
        ``warm_start`` is the checkpoint of a run without, whose first ``mine_from`` epochs this run shares.
        """
        params = self.study.qformer

        def batches(epoch: int) -> list[Batch]:
            mines = hard_negatives and epoch > params.mine_from
            return sampler.batches(epoch, mine_for_triplets(self.composer, sampler, epoch) if mines else None)

        def validate() -> dict[str, float]:
            scored = score_composers({"dev": self.composer}, self.tokens, dev_parts, DEV_RULES)
            return {SELECT: mean_recall(scored, 10)}

        data = annotations_key([*sampler.parts.values(), *dev_parts.values()])
        return self._train(
            "qformer_hard_negatives" if hard_negatives else "qformer", batches, data, validate if dev_parts else None,
            warm_start, recipe=params.recipe,
            epochs=params.epochs, steps_per_epoch=len(sampler.batches(1)), lr=params.lr,
            keep_epoch=params.mine_from if params.hard_negatives and not hard_negatives else 0,
        )  # fmt: skip

    def _train(
        self, run: str, batches: Callable[[int], list[Batch]], data: object,
        validate: Callable[[], dict[str, float]] | None = None, warm_start: Path | None = None, **options: Any,
    ) -> History:  # fmt: skip
        composer, tokens, study, params = self.composer, self.tokens, self.study, self.study.qformer
        options |= {"precision": study.models.precision, "accumulation": params.accumulation}
        options["temperature_lr"] = params.temperature_lr
        config = TrainingConfig(run, **options)
        hooks = Hooks(
            validate,
            names=lambda batch: ", ".join(tokens.ids[row] for row in batch.targets),
            prefetch=lambda batch: tokens.prefetch(batch.rows(local_indices(len(batch))), composer.device),
        )
        settings = params.model_dump(include=set(DECIDES[run])) | {"seed": study.seed}
        fingerprint = {"tokens": tokens.key, "settings": settings, "data": data}
        folder = training_folder(self.trainings, composer, config, fingerprint)

        def loss_of(batch: Batch) -> tuple[Tensor, dict[str, float]]:
            return batch_loss(composer, tokens, batch, params.chunk_size, params.sprc_terms), {}

        def read_ahead(epoch: int) -> list[Batch]:
            parts = batches(epoch)
            composer.read_ahead([batch.texts[row] for batch in parts for row in local_indices(len(batch))])
            return parts

        return train(
            composer, read_ahead, loss_of, config, folder, hooks, fingerprint=fingerprint, warm_start=warm_start,
            retrain=params.retrain,
        )  # fmt: skip


def score_composers(
    composers: Mapping[str, QFormerComposer], tokens: ImageFeatures, parts: Mapping[str, Benchmark], rules: Evaluation
) -> list[Scored]:
    """Every composer on every category; the embeddings of a query's several texts are averaged.

    Several composers share what the frozen layers below a mini Q-Former make of the texts.

    >>> scored = score_composers({"start": composer}, prepared.tokens, prepared.splits.reported, Evaluation())
    >>> [one.category for one in scored]
    ['hat', 'shoe']
    """
    scored, texts = [], [text for part in parts.values() for text in query_texts(part, rules.captions)[0]]
    for composer in composers.values() if len(composers) > 1 else ():
        composer.read_ahead(texts)
    for (name, composer), (category, part) in product(composers.items(), parts.items()):
        texts, rows = query_texts(part, rules.captions)
        references = tokens.rows([part.triplets[row].reference for row in rows])
        queries = average_texts(embed_queries(composer, tokens, references, texts), rows, len(part.triplets))
        gallery = embed_gallery(composer, tokens, tokens.rows(part.gallery))
        scored.append(score(name, category, queries, gallery, part, rules))
    return scored


def train_qformer(prepared: Prepared) -> tuple[dict[str, QFormerComposer], pd.DataFrame]:
    """Pretrains, then fine-tunes twice from there, without and with mined hard negatives, on ``qformer.processes``.

    The two share their first ``mine_from`` epochs, in which nothing is mined; those are run once. A ParameterError
    where a category has too few images for the hard negatives.

    Returns:
        Method → composer at its best epoch, and a row an epoch of every training. ``qformer_pretrained`` is the start
        of both, where this study or BLIP-2 pretrained it. Without a train split, the composer as the study gives it
        and no rows.

    >>> composers, history = train_qformer(Prepared(replace(stage, out=folder)))  # doctest: +ELLIPSIS
    pretraining 1/2  loss ...
    >>> sorted(composers)
    ['qformer', 'qformer_hard_negatives', 'qformer_pretrained']
    """
    stage = prepared.stage
    study = stage.study
    count = process_count(study.qformer.processes, "qformer.processes")
    if count > 1 and prepared.splits.train:
        launch(_train_in_worker, stage, count)
        study = study.model_copy(update={"qformer": study.qformer.model_copy(update={"retrain": False})})
    return _train_here(prepared, study)


def _train_in_worker(stage: Stage) -> None:
    _train_here(Prepared(stage), stage.study)


def _train_here(prepared: Prepared, study: Study) -> tuple[dict[str, QFormerComposer], pd.DataFrame]:
    """Trains what is not trained yet; the rest is loaded."""
    splits = prepared.splits
    set_seed(study.seed)  # the same start wherever it is called from
    composer, composers, histories = new_composer(prepared), {}, []
    pretrained = study.models.fusion != "mini" and study.models.fusion_checkpoint is None  # a BLIP-2 as it comes
    if not splits.train:
        return {"qformer_pretrained" if pretrained else "qformer": composer.eval()}, _table([])
    train, dev = splits.train, splits.dev
    if study.qformer.whole_train:
        train = {name: replace(part, triplets=part.triplets + dev[name].triplets) for name, part in train.items()}
        dev = {}
    sampler = TripletSampler(prepared.tokens, train, study)
    trainer = QFormerTrainer(composer, prepared.tokens, study, prepared.stage.trainings)
    if pretrains(prepared):
        histories.append(trainer.pretrain(prepared.pairs))
        pretrained = True
    elif study.qformer.pretraining_epochs:
        print("the data has no pairs of images and captions: the Q-Former is not pretrained")
    if pretrained:
        composers["qformer_pretrained"] = deepcopy(composer).eval()
    mined, name = replace(trainer, composer=deepcopy(composer)), "qformer_hard_negatives"
    histories.append(trainer.finetune(sampler, dev))
    composers["qformer"] = composer
    if not study.qformer.hard_negatives:
        return composers, _table(histories)
    shared = histories[-1].folder / f"epoch-{study.qformer.mine_from}.pt"
    histories.append(mined.finetune(sampler, dev, hard_negatives=True, warm_start=shared))
    if PartialState().is_main_process:
        shared.unlink(missing_ok=True)  # several times as large as the weights
    return {**composers, name: mined.composer}, _table(histories)


def _table(histories: Sequence[History]) -> pd.DataFrame:
    """The records of some trainings one after the other, the column ``run`` first; no dev score is NaN."""
    rows = [{"run": history.run, **record} for history in histories for record in history.records]
    table = pd.DataFrame(rows, columns=None if rows else ["run", "epoch", "loss", SELECT])
    return table if SELECT in table else table.assign(**{SELECT: float("nan")})


def save_training(composers: Mapping[str, QFormerComposer], history: pd.DataFrame, folder: Path) -> None:
    """Writes ``checkpoints/``, a folder a composer, ``history.csv``, and which run is best on dev: ``best_run.json``.

    Without a dev score that is the last one trained.

    >>> save_training({}, pd.DataFrame({"run": ["qformer"], "epoch": [1], "dev/recall@10": [0.5]}), folder)
    >>> pd.read_json(folder / "best_run.json", typ="series")["run"]
    'qformer'
    """
    for name, composer in composers.items():
        save_weights(composer, folder / "checkpoints" / name)
    write_table(history, folder / "history.csv")
    (folder / "best_run.json").unlink(missing_ok=True)
    if SELECT in history and history[SELECT].notna().any():
        best = history.loc[history[SELECT].idxmax()]
        write_json({"run": best["run"], SELECT: float(best[SELECT])}, folder / "best_run.json")
    elif len(history):
        write_json({"run": list(composers)[-1]}, folder / "best_run.json")


def main() -> None:
    """Trains on the processes of a launcher; 03_qformer then finds it trained."""
    ArgumentParser(prog="python -m cirlib.training.qformer_training", description=main.__doc__).parse_args()
    with process_group():
        _train_in_worker(broadcast(open_stage("qformer") if PartialState().is_main_process else None))


if __name__ == "__main__":
    main()
