"""What data preparation leaves, opened: splits, features, and the study's two frozen towers."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from cirlib.benchmarks import BenchmarkError
from cirlib.benchmarks.image_files import locate
from cirlib.benchmarks.splits import Splits, annotations_key, load_splits
from cirlib.models.blip2 import Blip2Vision
from cirlib.models.clip import TwoTowers, check_clip, load_clip
from cirlib.models.devices import DTYPES, best_device, precision_here
from cirlib.models.feature_store import FeatureStore, ImageFeatures
from cirlib.models.image_encoding import ImageEncoder, LiveFeatures
from cirlib.models.mini import MiniVision, mini_towers
from cirlib.models.weights import local_name
from cirlib.study.files import read_json
from cirlib.study.pictures import open_rgb
from cirlib.study.provenance import require_same
from cirlib.study.stage import Stage

ImageAttributes = Mapping[str, Mapping[str, str]]  # image id → attribute → value


class Images:
    """B images of a study, by their ids; each view of them is made when first asked for.

    ``known`` gives views of images that are not stored, such as an upload.

    >>> images = prepared.read(["hat-val-0", "hat-val-1"])
    >>> len(images), images.embeddings.shape, images.tokens.shape, images.pictures[0].size
    (2, torch.Size([2, 256]), torch.Size([2, 4, 1280]), (48, 64))
    """

    def __init__(self, prepared: "Prepared", ids: Sequence[str], **known: Any) -> None:
        self.prepared, self.ids = prepared, list(ids)
        vars(self).update(known)

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def pictures(self) -> list[Image.Image]:
        """In RGB, as they are on the disk."""
        return [open_rgb(self.prepared.images[image]) for image in self.ids]

    @cached_property
    def embeddings(self) -> Tensor:
        """Of the two-tower model, normalised, (B, D)."""
        return self.prepared.clip[self.ids]

    @cached_property
    def tokens(self) -> Tensor:
        """What the Q-Former reads, (B, T, C)."""
        return self.prepared.tokens[self.ids]


@dataclass(frozen=True)
class Prepared:
    """What data preparation leaves for the later stages, opened when first asked for."""

    stage: Stage

    @cached_property
    def splits(self) -> Splits:
        return self.splits_under(self.stage.study.evaluation.gallery)

    def splits_under(self, gallery: str) -> Splits:
        """The parts with the galleries of a protocol, ``original`` or ``val_split``, without unusable images."""
        if gallery not in self._splits:
            self._splits[gallery] = load_splits(self.stage, gallery)
        return self._splits[gallery]

    @cached_property
    def _splits(self) -> dict[str, Splits]:
        return {}

    @cached_property
    def pairs(self) -> list[dict[str, str]]:
        """The pairs {"image": id, "caption": text} for alignment and pretraining; empty without any."""
        return _read_json(self.stage.images / "pairs.json", [])

    @cached_property
    def catalogue(self) -> list[str]:
        """Every image of a catalogue, whatever it is used for; empty where the study is of none."""
        return _read_json(self.stage.images / "catalogue.json", [])

    @cached_property
    def images(self) -> dict[str, Path]:
        """Every image of the study, those of the pairs and of the whole catalogue included: id → file."""
        wanted = [pair["image"] for pair in self.pairs] + self.catalogue
        others = locate({image: image for image in wanted}, self.stage.images / "images")
        for image, file in others.items():
            if isinstance(file, str):
                raise BenchmarkError(f"pairs.json: image {image!r} is missing: {file}.")
        return self.splits_under("original").images() | others

    @cached_property
    def attributes(self) -> ImageAttributes | None:
        """The true attributes of every picture, where the data has them: drawn garments do."""
        return _read_json(self.stage.images / "attributes.json", None)

    @cached_property
    def annotations(self) -> str:
        """A hash of every query, gallery, caption pair and attribute of the study."""
        known = [annotations_key(self.splits_under("original").parts()), self.pairs, self.attributes]
        return hashlib.sha256(json.dumps(known).encode()).hexdigest()

    @cached_property
    def tokens(self) -> ImageFeatures:
        """Frozen image tokens for the Q-Former, from disk or, where the study caches none, from the vision tower."""
        if not self.stage.study.models.cache_tokens:
            return LiveFeatures(self.vision_tower(), self.images, self.stage.study.data_prep.num_workers)
        return FeatureStore(self.stage.require(self.stage.data / "tokens", "data_prep"))

    @cached_property
    def clip(self) -> FeatureStore:
        """Image embeddings of the two-tower model."""
        return FeatureStore(self.stage.require(self.stage.data / "clip", "data_prep"))

    def read(self, ids: Sequence[str]) -> Images:
        """Images of the study as methods read them."""
        return Images(self, ids)

    def vision_tower(self) -> ImageEncoder:
        """The vision tower whose tokens the Q-Former reads, freshly loaded."""
        models = self.stage.study.models
        options = {"device": best_device(), "dtype": DTYPES[precision_here(models.precision)], "fit": models.transform}
        if models.fusion == "mini":
            return MiniVision(models.image_size, **options)
        return Blip2Vision(self.local_name(models.fusion), normed=not models.trains_ln_vision, **options)

    def towers(self) -> TwoTowers:
        """The two-tower model, freshly loaded; a StageError where data preparation has still to align it."""
        stage, models = self.stage, self.stage.study.models
        options = {"device": best_device(), "dtype": DTYPES[precision_here(models.precision)], "fit": models.transform}
        if models.clip != "mini":
            return load_clip(self.local_name(models.clip), self.local_name(models.clip_pretrained), **options)
        given = models.clip_pretrained
        heads = stage.root / given if given else stage.require(stage.data / "two_towers.safetensors", "data_prep")
        return mini_towers(models.image_size, heads, **options)

    def check_models(self) -> None:
        """A StudyError where the precision or the CLIP that the study names cannot be had here; nothing is loaded."""
        models = self.stage.study.models
        precision_here(models.precision)
        if models.clip != "mini":
            check_clip(models.clip, self.local_name(models.clip_pretrained))

    def local_name(self, name: str | None) -> str | None:
        """See :func:`~cirlib.models.weights.local_name`."""
        return local_name(name, self.stage.root)


def open_prepared(stage: Stage) -> Prepared:
    """The stage's data and features; a StageError, with the command, where data preparation has not run with the
    parameters that the study has now.

    >>> open_prepared(stage).clip.shape
    (34, 256)
    """
    require_same(stage, "data_prep")
    for name in ("tokens", "clip") if stage.study.models.cache_tokens else ("clip",):
        stage.require(stage.data / name / "store.json", "data_prep")
    return Prepared(stage)


def _read_json(file: Path, otherwise: Any) -> Any:
    return read_json(file) if file.is_file() else otherwise
