"""What every run of a study shares: models, frozen features, edits, the queries that are scored."""

from collections.abc import Sequence
from copy import deepcopy
from functools import cache, cached_property
from pathlib import Path

import torch
from torch import Tensor

from cirlib.analysis.dpo.dual_encoder import DualEncoder, LastStage, QFormerTower, TextTower, WholeTower
from cirlib.analysis.dpo.grid import REPETITIONS
from cirlib.analysis.dpo.negatives import Edits
from cirlib.benchmarks import Benchmark, query_texts
from cirlib.models.clip import TwoTowers
from cirlib.models.memo import Memo
from cirlib.models.prepared import Prepared
from cirlib.models.qformer import QFormerComposer
from cirlib.models.qformer_embedding import embed_gallery, embed_queries, pretrained_composer, trained_composer
from cirlib.models.qformer_layers import FrozenTextStates
from cirlib.models.weights import fingerprint
from cirlib.study.code_hash import code_hash
from cirlib.study.parameters import DPO

# The folders of cirlib that decide a run's numbers: those that dvc.yaml names for the stage, which a test compares.
CODE = ("study", "losses", "benchmarks", "models", "retrieval", "training", "analysis/dpo")


class RunContext:
    """The models of a study before any preference is learnt; ``folder`` keeps finished runs."""

    def __init__(self, prepared: Prepared, folder: Path) -> None:
        self.prepared, self.stage, self.study, self.folder = prepared, prepared.stage, prepared.stage.study, folder
        self.evaluation, self.splits = self.study.evaluation, prepared.splits
        self._texts = Memo(lambda texts: self.towers.encode_texts(texts, normalize=False))
        self._early = Memo(lambda ids: LastStage.read(self.towers, [prepared.images[image] for image in ids]))
        self._lower = cache(self._read_lower)
        self._qformers: dict[str, tuple[QFormerComposer, Memo, Memo, str]] = {}

    @cached_property
    def towers(self) -> TwoTowers:
        return self.prepared.towers()

    @cached_property
    def _towers_key(self) -> str:
        return fingerprint(self.towers.model)

    def _read_lower(self, layers: int) -> FrozenTextStates:
        """The mini text tower below its last ``layers``, which has read what is read often."""
        lower = FrozenTextStates(deepcopy(self.towers.model.text.transformer), layers)
        ids = self.towers.tokenize(self._read_often([*self.splits.dev.values(), *self.splits.reported.values()]))
        lower.read_ahead(ids, lower.mask(ids))
        return lower

    def _read_often(self, parts: Sequence[Benchmark]) -> list[str]:
        """The texts that every run is measured on, those of ``parts``, and those that the grid's runs learn from."""
        measured = [text for part in parts for text in query_texts(part, self.evaluation.captions)[0]]
        params = self.study.dpo.model_copy(update={"edits": self.study.dpo.grid_edits})
        runs = (params.model_copy(update={"repetition": n}) for n in range(REPETITIONS.get(params.grid, 0)))
        return measured + [text for run in runs for text in self.edits(run).texts]

    def _weight(self, params: DPO) -> float | None:
        """The text's weight in the sum, chosen by the zero-shot stage."""
        return self.stage.read_choice("zero_shot", "weights.json")["sum"] if params.fusion == "sum" else None

    def seed(self, params: DPO) -> int:
        """Of the run's draws: the study's, moved on by the repetition."""
        return self.study.seed + 1000 * params.repetition

    def edits(self, params: DPO) -> Edits:
        """The train edits that a run with ``params`` uses."""
        return Edits.draw(self.splits.train, params.edits, self.seed(params))

    def encoder(self, params: DPO, frozen: bool = False) -> DualEncoder:
        """Query and image side at their start, with what ``params`` lets learn; nothing where ``frozen``."""
        trains = None if frozen else params.trains
        learns, both = trains in ("query_tower", "both_towers"), trains == "both_towers"
        if params.fusion == "qformer":
            composer, queries, images, _ = self._qformer(params.start)
            width, device = composer.vision_projection.out_features, composer.device
            if not learns:
                return DualEncoder(lambda *pairs: queries([*zip(*pairs, strict=True)]), images, width, device, trains)
            tower = QFormerTower(composer, self.prepared.tokens)
            return DualEncoder(tower, tower.images if both else images, width, device, trains)
        towers = self.towers
        queries, mini = lambda references, texts: self._texts(texts), self.study.models.clip == "mini"
        if learns:
            in_part = mini and params.layers < len(towers.model.text.transformer.encoder.layer)
            queries = TextTower(towers, self._lower(params.layers) if in_part else None)
        images = self.prepared.clip.__getitem__
        if both:  # the mini tower's last stage, or the whole of a CLIP's
            images = LastStage(towers, self._early) if mini else WholeTower(towers, self.prepared.images)
        return DualEncoder(queries, images, towers.shape[0], towers.device, trains, self._weight(params))

    def _qformer(self, start: str) -> tuple[QFormerComposer, Memo, Memo, str]:
        """The Q-Former ``pretrained``, or ``finetuned`` as is best on dev; its fused queries, its targets, its key."""
        if start not in self._qformers:
            torch.manual_seed(self.study.seed)  # for one that neither a checkpoint nor a BLIP-2 gives
            tokens = self.prepared.tokens
            if start == "pretrained":
                composer = pretrained_composer(self.prepared)
            else:
                composer = trained_composer(self.prepared, self.stage.read_choice("qformer", "best_run.json")["run"])
            composer.read_ahead(self._read_often(list(self.splits.reported.values())))

            def queries(pairs: Sequence[tuple[str, str]]) -> Tensor:
                references, texts = zip(*pairs, strict=True)
                return embed_queries(composer, tokens, tokens.rows(references), list(texts))

            images = Memo(lambda ids: embed_gallery(composer, tokens, tokens.rows(ids)))
            key = f"{tokens.key} {composer.settings} {fingerprint(composer)}"
            self._qformers[start] = composer, Memo(queries), images, key
        return self._qformers[start]

    def identity(self, params: DPO) -> str:
        """Changes with all that decides a run's numbers beside ``params``: code, protocol, study, data, models."""
        return " ".join([code_hash(*CODE), self.evaluation.model_dump_json(), self.start(params)])

    def start(self, params: DPO) -> str:
        """Changes with all that decides what a run with ``params`` starts from and learns from."""
        study = self.study.model_dump_json(include={"seed", "data", "models"})
        if params.fusion == "qformer":
            models = self._qformer(params.start)[3]
        else:
            models = f"{self.prepared.clip.key} {self._towers_key} {self._weight(params)}"
        return " ".join([study, self.prepared.annotations, models])
