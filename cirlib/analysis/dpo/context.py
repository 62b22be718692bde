"""What every run of a study shares: models, frozen features, edits, the queries that are scored."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd
from torch import Tensor

from cirlib.analysis.dpo.dual_encoder import DualEncoder, Memo, QFormerDualEncoder, TwoTowerDualEncoder
from cirlib.analysis.dpo.image_tower import ImageTower, LastStage, WholeTower, encode_early
from cirlib.analysis.dpo.train_edits import Edits, draw_edits
from cirlib.analysis.zero_shot import baseline_scores as zero_shot
from cirlib.models.clip import TwoTowers, fingerprint
from cirlib.models.preparation import Attributes, Prepared, needed_images
from cirlib.models.qformer import QFormerComposer, load_weights
from cirlib.models.qformer_embedding import embed_gallery, embed_queries, new_composer
from cirlib.study.errors import StageError
from cirlib.study.locks import hold, release
from cirlib.study.parameters import DPO


@dataclass
class RunContext:
    """The models of a study as they are before any preference is learnt, and what of them never changes.

    Attributes:
        folder: where runs and features are kept from one call to the next.
    """

    prepared: Prepared
    folder: Path
    _composers: dict[str, tuple[QFormerComposer, Memo, Memo]] = field(default_factory=dict)

    @property
    def checkpoints(self) -> Path:
        return self.prepared.stage.results("qformer") / "checkpoints"

    @cached_property
    def towers(self) -> TwoTowers:
        return self.prepared.towers()

    @cached_property
    def texts(self) -> Memo:
        """Frozen text vectors (D,), not normalised."""
        return Memo(lambda texts: self.towers.encode_texts(texts, normalize=False))

    @cached_property
    def weight(self) -> float:
        """The text's weight in the sum, the best on dev."""
        study, dev = self.prepared.stage.study, self.prepared.splits.dev
        embedded = zero_shot.embed(self.towers, self.prepared.clip, dev, study.evaluation.captions)
        return zero_shot.best_weights(zero_shot.sweep(study.zero_shot.weights, embedded, study.evaluation))["sum"]

    @property
    def attributes(self) -> Attributes | None:
        """The true attributes of every picture, where the data has them: drawn garments do."""
        return self.prepared.attributes

    def edits(self, params: DPO) -> Edits:
        """The train edits that a run with ``params`` uses."""
        return draw_edits(self.prepared.splits.train, params.edits, self.seed(params))

    def seed(self, params: DPO) -> int:
        """Of the run's draws: the study's, moved on by the repetition."""
        return self.prepared.stage.study.seed + 1000 * params.repetition

    def encoder(self, params: DPO, frozen: bool = False) -> DualEncoder:
        """Query and image side at their start, with what ``params`` lets learn; nothing where ``frozen``."""
        trains = None if frozen else params.trains
        if params.fusion == "qformer":
            composer, queries, images = self._qformer(params.start)
            return QFormerDualEncoder(composer, self.prepared.tokens, queries, images, trains)
        weight = self.weight if params.fusion == "sum" else None
        return TwoTowerDualEncoder(self.towers, self.prepared.clip, self.texts, self._image_tower, weight, trains)

    def _qformer(self, start: str) -> tuple[QFormerComposer, Memo, Memo]:
        if start not in self._composers:
            composer, tokens = new_composer(self.prepared), self.prepared.tokens
            folder = self.checkpoints / ("pretrained" if start == "pretrained" else self._best_finetuned())
            if folder.is_dir():  # a BLIP-2 comes pretrained
                load_weights(composer, folder)
            composer.eval()

            def queries(keys: list) -> Tensor:
                references = tokens.rows([reference for reference, _ in keys])
                return embed_queries(composer, tokens, references, [text for _, text in keys])

            def images(ids: list) -> Tensor:
                return embed_gallery(composer, tokens, tokens.rows(ids))

            self._composers[start] = (composer, Memo(queries), Memo(images))
        return self._composers[start]

    def _best_finetuned(self) -> str:
        """The fine-tuned Q-Former with the best dev recall@10."""
        history = pd.read_csv(self.checkpoints.parent / "history.csv").dropna(subset="dev/recall@10")
        return str(history.loc[history["dev/recall@10"].idxmax(), "run"])

    def _image_tower(self) -> ImageTower:
        """The image tower to learn: the mini tower's last stage, or the whole of a CLIP's."""
        if self.prepared.stage.study.models.clip != "mini":
            return WholeTower(self.towers, self.images)
        return LastStage(self.towers, self._early)

    @cached_property
    def _early(self):
        study = self.prepared.stage.study
        self.folder.mkdir(parents=True, exist_ok=True)
        if not hold(self.folder):
            raise StageError(f"another run is encoding images into {self.folder}: start this one again when it is done")
        try:
            return encode_early(
                self.towers, self.images, self.folder / "early", study.models.image_size,
                study.data_prep.batch_size, study.data_prep.num_workers,
            )  # fmt: skip
        finally:
            release(self.folder)

    @cached_property
    def images(self) -> dict[str, Path]:
        """Every image of the study that a run may read: id → file."""
        splits = self.prepared.splits
        wanted = {
            image
            for parts in (splits.train, splits.dev, splits.reported)
            for p in parts.values()
            for image in p.gallery
        }
        return {image: file for image, file in needed_images(self.prepared).items() if image in wanted}

    def identity(self, params: DPO) -> str:
        """Changes with the annotations, the weights and the features that a run with ``params`` starts from."""
        return f"{self._identity} {self.weight}" if params.fusion == "sum" else self._identity

    @cached_property
    def _identity(self) -> str:
        prepared = self.prepared
        keys = [prepared.annotations, fingerprint(self.towers.model), prepared.clip.key, prepared.tokens.key]
        for file in sorted(self.checkpoints.glob("*/model.safetensors")):
            with file.open("rb") as stream:
                keys.append(f"{file.parent.name} {hashlib.file_digest(stream, 'sha256').hexdigest()}")
        return " ".join(keys)
