"""What every run of a study shares: models, frozen features, edits, the queries that are scored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

import torch
from torch import Tensor

import cirlib
from cirlib.analysis.dpo import dual_encoder
from cirlib.analysis.dpo.dual_encoder import DualEncoder, Memo
from cirlib.analysis.dpo.negatives import Edits, draw_edits
from cirlib.benchmarks.splits import Splits
from cirlib.models.clip import TwoTowers
from cirlib.models.prepared import Prepared
from cirlib.models.qformer import QFormerComposer, load_weights
from cirlib.models.qformer_embedding import embed_gallery, embed_queries, new_composer
from cirlib.models.weights import fingerprint
from cirlib.study.parameters import DPO, Evaluation, Study

# The folders of cirlib that decide a run's numbers: those that dvc.yaml names for the stage, which a test compares.
CODE = ("study", "losses", "benchmarks", "models", "retrieval", "training", "analysis/dpo")


@dataclass
class RunContext:
    """The models of a study as they are before any preference is learnt, and what of them never changes.

    Attributes:
        evaluation, splits: the protocol and the queries that runs are scored by.
        folder: where runs and features are kept from one call to the next.
    """

    prepared: Prepared
    evaluation: Evaluation
    splits: Splits
    folder: Path
    _qformers: dict[str, tuple[QFormerComposer, Memo, Memo, str]] = field(default_factory=dict)

    @property
    def study(self) -> Study:
        return self.prepared.stage.study

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
        """The text's weight in the sum, chosen by the zero-shot stage."""
        return self.prepared.stage.read_choice("zero_shot", "weights.json")["sum"]

    def seed(self, params: DPO) -> int:
        """Of the run's draws: the study's, moved on by the repetition."""
        return self.study.seed + 1000 * params.repetition

    def edits(self, params: DPO) -> Edits:
        """The train edits that a run with ``params`` uses."""
        return draw_edits(self.splits.train, params.edits, self.seed(params))

    def encoder(self, params: DPO, frozen: bool = False) -> DualEncoder:
        """Query and image side at their start, with what ``params`` lets learn; nothing where ``frozen``."""
        trains = None if frozen else params.trains
        learns, both = trains in ("query_tower", "both_towers"), trains == "both_towers"
        if params.fusion == "qformer":
            composer, queries, images, _ = self._qformer(params.start)
            width, device = composer.vision_projection.out_features, composer.device
            if not learns:
                return DualEncoder(lambda *pairs: queries([*zip(*pairs, strict=True)]), images, width, device, trains)
            tower = dual_encoder.QFormerTower(composer, self.prepared.tokens)
            return DualEncoder(tower, tower.images if both else images, width, device, trains)
        queries = dual_encoder.TextTower(self.towers) if learns else lambda references, texts: self.texts(texts)
        images = self._image_tower() if both else self.prepared.clip.__getitem__
        weight = self.weight if params.fusion == "sum" else None
        return DualEncoder(queries, images, self.towers.shape[0], self.towers.device, trains, weight)

    def _qformer(self, start: str) -> tuple[QFormerComposer, Memo, Memo, str]:
        """The Q-Former ``pretrained``, or ``finetuned`` as is best on dev; its fused queries, its targets, its key."""
        if start not in self._qformers:
            torch.manual_seed(self.study.seed)  # for one that neither a checkpoint nor a BLIP-2 gives
            composer, tokens = new_composer(self.prepared), self.prepared.tokens
            name = (
                start if start == "pretrained" else self.prepared.stage.read_choice("qformer", "best_run.json")["run"]
            )
            if (self.checkpoints / name).is_dir():  # a BLIP-2 comes pretrained
                load_weights(composer, self.checkpoints / name)
            composer.eval()

            def queries(pairs: Sequence[tuple[str, str]]) -> Tensor:
                references, texts = zip(*pairs, strict=True)
                return embed_queries(composer, tokens, tokens.rows(references), list(texts))

            images = Memo(lambda ids: embed_gallery(composer, tokens, tokens.rows(ids)))
            key = f"{composer.settings} {fingerprint(composer)}"
            self._qformers[start] = composer, Memo(queries), images, key
        return self._qformers[start]

    def _image_tower(self) -> dual_encoder.ImageTower:
        """The image tower to learn: the mini tower's last stage, or the whole of a CLIP's."""
        if self.study.models.clip == "mini":
            return dual_encoder.LastStage(self.towers, self._early)
        return dual_encoder.WholeTower(self.towers, self.prepared.images)

    @cached_property
    def _early(self) -> Memo:
        files = self.prepared.images
        return Memo(lambda ids: dual_encoder.early_features(self.towers, [files[image] for image in ids]))

    def identity(self, params: DPO) -> str:
        """Changes with all that decides a run's numbers beside ``params``: code, study, data, models."""
        study = self.study.model_dump(mode="json", include={"seed", "data", "evaluation", "models"})
        parts = [_code_hash(), json.dumps(study), self.prepared.annotations]
        if params.fusion == "qformer":
            return " ".join([*parts, self.prepared.tokens.key, self._qformer(params.start)[3]])
        weight = self.weight if params.fusion == "sum" else ""
        return " ".join([*parts, self.prepared.clip.key, self._towers_key, str(weight)])

    @cached_property
    def _towers_key(self) -> str:
        return fingerprint(self.towers.model)


@cache
def _code_hash() -> str:
    """Of the code that decides a run's numbers: what was measured by other code is never read."""
    digest, root = hashlib.sha256(), Path(cirlib.__file__).parent
    for file in sorted(file for folder in CODE for file in (root / folder).rglob("*.py")):
        digest.update(f"{file.relative_to(root)} {hashlib.sha256(file.read_bytes()).hexdigest()}".encode())
    return digest.hexdigest()
