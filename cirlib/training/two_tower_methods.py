"""What methods on the two-tower embeddings share: a training on triplets, embedding, saving."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cirlib.benchmarks.splits import annotations_key
from cirlib.losses.info_nce import info_nce
from cirlib.models.clip import TwoTowers
from cirlib.models.length_groups import by_length, quarters
from cirlib.models.prepared import Prepared
from cirlib.models.weights import ModelError
from cirlib.retrieval.method_scoring import score_methods
from cirlib.retrieval.scoring import mean_recall
from cirlib.study.files import replace_file
from cirlib.training.batches import Batch, TripletSampler
from cirlib.training.loop import SELECT, History, Hooks, TrainingConfig, train, training_folder
from cirlib.training.qformer_training import DEV_RULES


class LearnedMethod(nn.Module, ABC):
    """A method that is kept as a file of what it learned."""

    @abstractmethod
    def build(self, prepared: Prepared) -> None:
        """Makes the untrained parts."""

    def save(self, file: Path) -> None:
        """Writes what was learned as safetensors."""
        replace_file(file, lambda part: save_file(self.state_dict(), part))

    def load(self, prepared: Prepared, file: Path) -> None:
        """What :meth:`save` wrote, in ``fit``'s place; a ModelError where it does not fit."""
        self.build(prepared)
        try:
            self.load_state_dict(load_file(file))
        except (OSError, RuntimeError, SafetensorError) as error:
            raise ModelError.because(f"no method of this study could be loaded from {file}", error) from error
        self.eval()


class TwoTowerMethod(LearnedMethod):
    """A method whose targets are the stored image embeddings. B queries, D width."""

    towers: TwoTowers  # no part of the state, unless it learns

    @abstractmethod
    def compose(self, references: Tensor, texts: list[str]) -> Tensor:
        """Normalised queries (B, D) with gradients, of reference embeddings (B, D) on the towers' device and texts."""

    @property
    def temperature(self) -> float:
        """The two towers' own: one over their logit scale."""
        return 1 / self.towers.model.logit_scale.exp().item()

    def embed_queries(self, images: Any, texts: list[str]) -> Tensor:
        """Queries (B, D) of reference images and edits."""
        return self.compose(images.embeddings.to(self.towers.device), texts)

    def embed_targets(self, images: Any) -> Tensor:
        """The images' embeddings (B, D)."""
        return images.embeddings

    def read_texts(self, texts: list[str]) -> Tensor:
        """Normalised text embeddings (B, D) with gradients; texts of like length go through together."""
        return by_length(lambda rows: self.towers.text_features([texts[i] for i in rows]), texts, quarters(texts))


def dev_recall(method: Any, prepared: Prepared) -> dict[str, float]:
    """The score that chooses a method's epoch: its mean recall@10 on the dev part.

    >>> from cirlib.training.combiner import Combiner
    >>> method = Combiner()
    >>> method.build(prepared)
    >>> list(dev_recall(method.eval(), prepared))
    ['dev/recall@10']
    """
    scored = score_methods({"dev": method}, prepared.read, prepared.splits.dev, DEV_RULES)
    return {SELECT: mean_recall(scored, 10)}


def train_on_triplets(
    method: TwoTowerMethod, prepared: Prepared, run: str, *, epochs: int, lr: float, edits: int | None = None
) -> History:
    """InfoNCE on the train triplets between a method's queries and the stored embeddings of their targets.

    The temperature is the towers' own; the epoch with the best dev recall@10 stays. ``edits``: train edits that an
    epoch reads, drawn anew each time; None: all.

    >>> from cirlib.training.combiner import Combiner
    >>> method = Combiner()
    >>> method.build(prepared)
    >>> len(train_on_triplets(method, prepared, "toy", epochs=1, lr=1e-4).records)  # doctest: +ELLIPSIS
    toy 1/1 ...
    1
    """
    splits, store, device, params = prepared.splits, prepared.clip, method.towers.device, prepared.stage.study.qformer
    reads = prepared.stage.study.model_copy(update={"qformer": params.model_copy(update={"edits": edits})})
    sampler = TripletSampler(store, splits.train, reads)

    def loss_of(batch: Batch) -> tuple[Tensor, dict[str, float]]:
        queries = method.compose(store.read(batch.references, device), batch.texts)
        return info_nce(queries, store.read(batch.targets, device), temperature=method.temperature), {}

    precision = prepared.stage.study.models.precision
    config = TrainingConfig(run, epochs, len(sampler.rows(1)), lr, precision=precision)
    data = [annotations_key([*splits.train.values(), *splits.dev.values()]), edits, params.single_captions]
    return train_method(method, prepared, sampler.batches, loss_of, config, data, partial(dev_recall, method, prepared))


def train_method(
    method: nn.Module, prepared: Prepared, batches: Callable[[int], Sequence], loss_of: Callable,
    config: TrainingConfig, data: object, validate: Callable[[], dict[str, float]] | None = None,
) -> History:  # fmt: skip
    """The common loop (:func:`cirlib.training.loop.train`) for a method, kept among the study's trainings.

    ``data`` (JSON-able) is what else decides the result.

    >>> method, config = nn.Linear(2, 1), TrainingConfig("toy", epochs=1, steps_per_epoch=1, lr=0.01)
    >>> batches, loss_of = lambda epoch: [torch.ones(4, 2)], lambda x: (method(x).mean(), {})
    >>> train_method(method, prepared, batches, loss_of, config, "ones").run  # doctest: +ELLIPSIS
    toy 1/1  loss ...
    'toy'
    """
    study = prepared.stage.study
    settings = {"seed": study.seed, "batch_size": study.qformer.batch_size, "data": data}
    fingerprint = {"features": prepared.clip.key, "settings": settings}
    if hasattr(method, "towers"):
        fingerprint["towers"] = method.towers.key
    folder = training_folder(prepared.stage.trainings, method, config, fingerprint)
    return train(
        method, batches, loss_of, config, folder, Hooks(validate), fingerprint=fingerprint,
        retrain=study.qformer.retrain,
    )  # fmt: skip
