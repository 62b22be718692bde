"""Data preparation: the drawn data, the two-tower alignment, and every image encoded once."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from cirlib.benchmarks import Benchmark, join_captions
from cirlib.benchmarks.splits import Splits, annotations_key, load_splits, unusable_file
from cirlib.models.blip2 import Blip2Vision
from cirlib.models.clip import TwoTowers, align, load_clip, load_mini_towers, save_heads, wrap_mini_towers
from cirlib.models.devices import best_device, dtype_of
from cirlib.models.feature_store import FeatureStore, StoreError, build_store, contents_key, is_allocated, num_pending
from cirlib.models.image_encoding import ImageEncoder, encode_images
from cirlib.models.live_features import LiveFeatures
from cirlib.models.mini import MiniVision, build_two_towers
from cirlib.study import processes
from cirlib.study.files import write_json, write_table
from cirlib.study.resources import require_disk
from cirlib.study.stage import Stage

CACHE_ADVICE = "make room on it, move data/ to another, or set models.cache_tokens to false"

CLIP_WIDTH = 256  # of the mini two-tower model
ALIGNMENT = {"epochs": 20, "lr": 1e-3, "batch_size": 256}  # of its two heads

Attributes = Mapping[str, Mapping[str, str]]  # image id → attribute → value
Pairs = list[dict[str, str]]  # {"image": id, "caption": text}


@dataclass(frozen=True)
class Prepared:
    """What data preparation leaves for the later stages, opened when first asked for."""

    stage: Stage

    @cached_property
    def splits(self) -> Splits:
        return self.splits_under(self.stage.study.evaluation.gallery)

    def splits_under(self, gallery: str) -> Splits:
        """The parts with the galleries of a protocol, ``original`` or ``val_split``, without unusable images."""
        file = unusable_file(self.stage)
        unusable = json.loads(file.read_text()) if file.is_file() else {}
        return load_splits(self.stage.study, self.stage.images, gallery=gallery, unusable=unusable)

    @cached_property
    def tokens(self) -> FeatureStore | LiveFeatures:
        """Frozen image tokens for the Q-Former, from disk or, where the study caches none, from the vision tower."""
        study = self.stage.study
        if not study.models.cache_tokens:
            return LiveFeatures(vision_tower(self.stage), needed_images(self), study.data_prep.num_workers)
        return FeatureStore(self.stage.require(self.stage.data / "tokens", "data_prep"))

    @cached_property
    def clip(self) -> FeatureStore:
        """Image embeddings of the two-tower model."""
        return FeatureStore(self.stage.require(self.stage.data / "clip", "data_prep"))

    def towers(self) -> TwoTowers:
        """The two-tower model, freshly loaded."""
        return two_towers(self.stage)

    @cached_property
    def attributes(self) -> Attributes | None:
        """The true attributes of every picture, where the data has them: drawn garments do."""
        file = self.stage.images / "attributes.json"
        return json.loads(file.read_text()) if file.is_file() else None

    @cached_property
    def annotations(self) -> str:
        """A hash of every query, gallery, caption pair and attribute of the study."""
        pairs = [self.pairs(name) for name in ("alignment", "pretraining")]
        known = [annotations_key(self.splits_under("original").parts()), pairs, self.attributes]
        return hashlib.sha256(json.dumps(known).encode()).hexdigest()

    def pairs(self, name: str) -> Pairs:
        """The image–caption pairs ``alignment`` or ``pretraining``; empty where the data has none."""
        file = self.stage.images / "pairs" / f"{name}.json"
        return json.loads(file.read_text()) if file.is_file() else []


def local_name(stage: Stage, name: str | None) -> str | None:
    """A model's name as the study gives it, with the project's folder before it where it is a path in there."""
    prefix, path = ("local-dir:", name.removeprefix("local-dir:")) if name else ("", "")
    if not path or not (stage.root / path).exists():
        return name
    return (prefix if name.startswith(prefix) else "") + str(stage.root / path)


def _heads_file(stage: Stage) -> Path:
    """Where the aligned heads of the mini towers are: given by the study, or made by its data preparation."""
    given = stage.study.models.clip_pretrained
    if given is not None:
        return stage.root / given
    return stage.require(stage.data / "two_towers.safetensors", "data_prep")


def open_prepared(stage: Stage) -> Prepared:
    """The stage's data and features.

    Raises:
        StageError: data preparation has not run; the message names the command.
    """
    if stage.study.models.cache_tokens:
        stage.require(stage.data / "tokens" / "store.json", "data_prep")
    stage.require(stage.data / "clip" / "store.json", "data_prep")
    return Prepared(stage)


def needed_images(prepared: Prepared) -> dict[str, Path]:
    """Every image of the study, those of the pairs included: id → file."""
    images = prepared.splits_under("original").images()
    folder = prepared.stage.images / "images"
    for name in ("alignment", "pretraining"):
        images |= {pair["image"]: folder / f"{pair['image']}.jpg" for pair in prepared.pairs(name)}
    return images


def encode_tokens(prepared: Prepared, images: dict[str, Path]) -> FeatureStore | LiveFeatures:
    """The frozen vision tower's tokens of every image, float16 on disk unless the study caches none."""
    stage = prepared.stage
    if not stage.study.models.cache_tokens:
        print("models.cache_tokens is false: no tokens on disk, the vision tower runs whenever they are wanted")
        return prepared.tokens
    return _encode(_Encoding(stage, vision_tower, images, stage.data / "tokens", "image tokens"), CACHE_ADVICE)


@dataclass(frozen=True)
class _Encoding:
    """What to encode, by which tower, into which folder; to be done by one process or by several."""

    stage: Stage
    tower: Callable[[Stage], ImageEncoder]
    images: Mapping[str, Path]
    folder: Path
    what: str
    encoder_key: str = ""
    key: str = ""

    def run(self, encoder: ImageEncoder | None = None) -> FeatureStore:
        params, encoder = self.stage.params, encoder or self.tower(self.stage)
        if encoder.key != self.encoder_key:
            raise StoreError(f"processes encode differently, one by {encoder.key}, another by {self.encoder_key}")
        options = {"batch_size": params.batch_size, "num_workers": params.num_workers}
        return encode_images(encoder, self.images, self.folder, key=self.key, description=self.what, **options)


def _encode(encoding: _Encoding, advice: str) -> FeatureStore:
    """Encodes what is not encoded yet.

    Raises:
        ResourceError: the disk is too small.
    """
    params, files, ids = encoding.stage.params, list(encoding.images.values()), list(encoding.images)
    encoder = encoding.tower(encoding.stage)
    encoding = replace(encoding, encoder_key=encoder.key, key=contents_key(encoder.key, files))
    store = (encoding.folder, encoding.key, ids, encoder.shape)
    if left := num_pending(*store):
        count = processes.process_count(params.processes, "data_prep.processes")
        bytes_an_image = 0 if is_allocated(*store) else 2 * math.prod(encoder.shape)  # float16
        require_disk(encoding.folder, left * bytes_an_image, advice)
        if count > 1:
            del encoder  # the GPU's memory is for the processes
            processes.launch(_Encoding.run, encoding, count)
            return FeatureStore(encoding.folder)
    return encoding.run(encoder)


def two_towers(stage: Stage) -> TwoTowers:
    """The two-tower model, freshly loaded."""
    models, device = stage.study.models, best_device()
    dtype = dtype_of(models.precision)
    if models.clip != "mini":
        names = [local_name(stage, name) for name in (models.clip, models.clip_pretrained)]
        return load_clip(*names, device=device, dtype=dtype)
    return load_mini_towers(_heads_file(stage), models.image_size, device=device, dtype=dtype)


def vision_tower(stage: Stage) -> ImageEncoder:
    """The vision tower whose tokens the Q-Former reads."""
    models, device = stage.study.models, best_device()
    if models.fusion == "mini":
        return MiniVision(models.image_size, device=device, dtype=dtype_of(models.precision))
    return Blip2Vision(local_name(stage, models.fusion), device=device, dtype=dtype_of(models.precision))


def align_towers(prepared: Prepared) -> pd.DataFrame:
    """Aligns the mini towers' two heads on the alignment pairs and saves them; one row an epoch.

    Nothing is done, and the table is empty, where the study brings its own two-tower weights.
    """
    stage, models = prepared.stage, prepared.stage.study.models
    if models.clip != "mini" or models.clip_pretrained is not None:
        return pd.DataFrame(columns=["epoch", "loss"])
    model, pairs = build_two_towers(CLIP_WIDTH), prepared.pairs("alignment")
    pooled = pooled_tokens(prepared.tokens, [pair["image"] for pair in pairs])
    texts = _text_tower_outputs(model, [pair["caption"] for pair in pairs], models.image_size)
    history = pd.DataFrame(align(model, pooled, texts, seed=stage.study.seed, **ALIGNMENT))
    save_heads(model, stage.data / "two_towers.safetensors")
    return history


def pooled_tokens(store: FeatureStore, ids: list[str], chunk: int = 512) -> Tensor:
    """The mean token of each image, (N, C): what EfficientNet's average pooling gives."""
    return torch.cat([store[ids[i : i + chunk]].mean(1) for i in range(0, len(ids), chunk)])


@torch.inference_mode()
def _text_tower_outputs(model, captions: list[str], image_size: int) -> Tensor:
    """MiniLM's sentence embeddings before the head, (N, 384)."""
    towers = wrap_mini_towers(model, image_size, device=torch.device("cpu"), dtype=torch.float32)
    head, model.text.proj = model.text.proj, torch.nn.Identity()
    outputs = [model.text(towers.tokenize(captions[i : i + 256])) for i in range(0, len(captions), 256)]
    model.text.proj = head
    return torch.cat(outputs).clone()


def encode_two_towers(prepared: Prepared, images: dict[str, Path]) -> FeatureStore:
    """The two-tower image embeddings of every image.

    The mini pair shares its vision tower with the Q-Former: its embeddings are the head on the mean of the stored
    tokens, no second pass over the pictures.
    """
    stage, folder = prepared.stage, prepared.stage.data / "clip"
    if stage.study.models.clip != "mini" or stage.study.models.fusion != "mini":
        encoding = _Encoding(stage, two_towers, images, folder, "image embeddings")
        return _encode(encoding, "make room on it, or move data/ to another")
    ids, towers = list(images), two_towers(stage)

    def encode(rows: slice) -> Iterator[Tensor]:
        with torch.inference_mode():
            pooled = pooled_tokens(prepared.tokens, ids[rows]).to(towers.device)
            yield F.normalize(towers.model.visual.head(pooled), dim=-1)

    key = f"{towers.key} on {prepared.tokens.key}"
    return build_store(folder, key, ids, towers.shape, encode, description="image embeddings")


def count(prepared: Prepared) -> pd.DataFrame:
    """Queries and gallery images a part and category, and whether all their images are there."""
    rows = [
        {
            "part": part,
            "category": category,
            "queries": len(benchmark.triplets),
            "gallery": len(benchmark.gallery),
            "complete": benchmark.complete,
        }
        for part, benchmarks in vars(prepared.splits).items()
        for category, benchmark in benchmarks.items()
    ]
    return pd.DataFrame(rows)


def example_triplets(parts: Mapping[str, Benchmark], number: int, seed: int) -> list[tuple[Path, str, Path]]:
    """Triplets drawn at random, spread over the categories: reference file, edit, target file."""
    rng, benchmarks, rows = np.random.default_rng(seed), list(parts.values()), []
    for index in range(number):
        benchmark = benchmarks[index % len(benchmarks)]
        triplet = benchmark.triplets[rng.integers(len(benchmark.triplets))]
        text = join_captions(triplet.captions, "and")[0]
        rows.append((benchmark.path(triplet.reference), text, benchmark.path(triplet.targets[0])))
    return rows


def contents(prepared: Prepared) -> dict[str, str]:
    """Hashes of all that the later stages read: they run again where one of these has changed.

    DVC compares this one file for each of them, instead of walking over every image once a stage.
    """
    tokens = prepared.tokens
    live = isinstance(tokens, LiveFeatures)
    return {
        "annotations": prepared.annotations,
        "tokens": contents_key(tokens.key, tokens.files) if live else tokens.key,
        "embeddings": prepared.clip.key,
    }


def write_report(prepared: Prepared, folder: Path) -> None:
    """The counts, to ``counts.csv`` and in short to ``metrics.json``; what they are of, to ``contents.json``."""
    counts = count(prepared)
    write_table(counts, folder / "counts.csv")
    queries = {part: int(rows["queries"].sum()) for part, rows in counts.groupby("part", sort=False)}
    values = {"queries": queries, "images": len(prepared.tokens)}
    write_json(values, folder / "metrics.json")
    write_json(contents(prepared), folder / "contents.json")
