"""The data preparation stage: the two towers aligned, every image encoded once, and what was made counted."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from cirlib.benchmarks import Benchmark, join_captions
from cirlib.models.devices import DTYPES, best_device, precision_here
from cirlib.models.feature_store import FeatureStore, ImageFeatures, begin_store, build_store, contents_key
from cirlib.models.image_encoding import ImageEncoder, LiveFeatures, encode_images
from cirlib.models.mini import align, mini_towers, save_heads
from cirlib.models.prepared import Prepared
from cirlib.study import processes
from cirlib.study.files import link_folder, write_json, write_table
from cirlib.study.stage import Stage


def encode_tokens(prepared: Prepared) -> ImageFeatures:
    """The frozen vision tower's tokens of every image, on disk unless the study caches none.

    >>> encode_tokens(unprepared).shape
    (34, 4, 1280)
    """
    stage = prepared.stage
    if not stage.study.models.cache_tokens:
        print("models.cache_tokens is false: no tokens on disk, the vision tower runs whenever they are wanted")
        return prepared.tokens
    advice = "make room on it, move data/ to another, or set models.cache_tokens to false"
    return _encode(prepared, Prepared.vision_tower, "tokens", "image tokens", advice)


def align_towers(prepared: Prepared) -> pd.DataFrame:
    """Aligns the mini towers' heads and saves them; one row an epoch, none where the study brings its own weights.

    >>> tokens = encode_tokens(unprepared)
    >>> align_towers(unprepared).columns.tolist()
    ['epoch', 'loss']
    """
    stage, models = prepared.stage, prepared.stage.study.models
    if models.clip != "mini" or models.clip_pretrained is not None:
        return pd.DataFrame(columns=["epoch", "loss"])
    towers = mini_towers(models.image_size, device=best_device(), dtype=DTYPES[precision_here(models.precision)])
    pairs, text = prepared.pairs, towers.model.text
    pooled = _pooled_tokens(prepared.tokens, [pair["image"] for pair in pairs])
    head, text.proj = text.proj, torch.nn.Identity()  # for MiniLM's own sentence embeddings, (N, 384)
    texts = towers.encode_texts([pair["caption"] for pair in pairs], normalize=False)
    text.proj = head
    history = pd.DataFrame(
        align(towers, pooled, texts, epochs=models.alignment_epochs, lr=1e-3, batch_size=256, seed=stage.study.seed)
    )
    save_heads(towers, stage.data / "two_towers.safetensors")
    return history


def encode_two_towers(prepared: Prepared) -> FeatureStore:
    """The two-tower embeddings of every image.

    Those of the mini pair are its head on the mean of the stored tokens: no second pass over the pictures.

    >>> encode_two_towers(prepared).shape
    (34, 256)
    """
    models = prepared.stage.study.models
    if models.clip != "mini" or models.fusion != "mini":
        advice = "make room on it, or move data/ to another"
        return _encode(prepared, Prepared.towers, "clip", "image embeddings", advice)
    ids, towers = list(prepared.images), prepared.towers()

    def encode(rows: slice) -> Iterator[Tensor]:
        with torch.inference_mode():
            pooled = _pooled_tokens(prepared.tokens, ids[rows]).to(towers.device)
            yield F.normalize(towers.model.visual.head(pooled), dim=-1)

    key = hashlib.sha256(f"{towers.key} on {prepared.tokens.key}".encode()).hexdigest()
    folder = _kept(prepared.stage, "clip", key)
    build_store(folder, key, ids, towers.shape, encode, description="image embeddings")
    return _published(prepared.stage, "clip", folder)


def _encode(
    prepared: Prepared, tower: Callable[[Prepared], ImageEncoder], name: str, what: str, advice: str
) -> FeatureStore:
    """Encodes what is not encoded yet, on as many processes as the study says."""
    stage, encoder = prepared.stage, tower(prepared)
    key = contents_key(encoder.key, list(prepared.images.values()))
    folder = _kept(stage, name, key)
    pending = begin_store(folder, key, list(prepared.images), encoder.shape, advice)
    count = processes.process_count(stage.study.data_prep.processes, "data_prep.processes") if pending else 1
    if count > 1:
        del encoder  # the GPU's memory is for the processes
        processes.launch(_encode_shards, (stage, tower, folder, key, what), count)
    else:
        _encode_shards((stage, lambda _: encoder, folder, key, what))
    return _published(stage, name, folder)


def _kept(stage: Stage, name: str, key: str) -> Path:
    """Where the features of ``key`` are made, and found again by every data preparation that asks for the same."""
    return stage.features / f"{name}-{key[:12]}"


def _published(stage: Stage, name: str, folder: Path) -> FeatureStore:
    """The finished store in ``folder`` as what this data preparation hands on."""
    link_folder(folder, stage.data / name)
    return FeatureStore(stage.data / name)


def _encode_shards(task: tuple[Stage, Callable[[Prepared], ImageEncoder], Path, str, str]) -> FeatureStore:
    """What :func:`_encode` asks of every process."""
    (stage, tower, folder, key, what), prepared = task, Prepared(task[0])
    params = stage.study.data_prep
    options = {"batch_size": params.batch_size, "num_workers": params.num_workers}
    return encode_images(tower(prepared), prepared.images, folder, key=key, description=what, **options)


def _pooled_tokens(tokens: ImageFeatures, ids: list[str]) -> Tensor:
    """The mean token of each image, (N, C): what EfficientNet's average pooling gives."""
    return torch.cat([tokens[ids[i : i + 512]].mean(1) for i in range(0, len(ids), 512)])


def count(prepared: Prepared) -> pd.DataFrame:
    """Queries and gallery images a part and category, and whether all their images are there.

    >>> count(prepared)["queries"].tolist()
    [6, 6, 1, 1, 3, 3]
    """
    rows = [
        (part, category, len(benchmark.triplets), len(benchmark.gallery), benchmark.complete)
        for part, benchmarks in vars(prepared.splits).items()
        for category, benchmark in benchmarks.items()
    ]
    return pd.DataFrame(rows, columns=["part", "category", "queries", "gallery", "complete"])


def example_triplets(parts: Mapping[str, Benchmark], number: int, seed: int) -> list[tuple[Path, str, Path]]:
    """Triplets drawn at random, spread over the categories: reference file, edit, target file.

    >>> reference, edit, target = example_triplets(prepared.splits.reported, 1, seed=0)[0]
    >>> edit.endswith("sizes bigger and has stripes")
    True
    """
    rng, benchmarks, rows = np.random.default_rng(seed), list(parts.values()), []
    for index in range(number):
        benchmark = benchmarks[index % len(benchmarks)]
        triplet = benchmark.triplets[rng.integers(len(benchmark.triplets))]
        text = join_captions(triplet.captions, "and")[0]
        rows.append((benchmark.path(triplet.reference), text, benchmark.path(triplet.targets[0])))
    return rows


def write_report(prepared: Prepared, folder: Path) -> None:
    """``counts.csv``, and ``contents.json``: hashes of all that the later stages read.

    DVC compares this one file for each of them, instead of walking over every image once a stage.

    >>> write_report(prepared, folder)
    """
    counts, tokens = count(prepared), prepared.tokens
    write_table(counts, folder / "counts.csv")
    contents = {
        "annotations": prepared.annotations,
        "tokens": contents_key(tokens.key, tokens.files) if isinstance(tokens, LiveFeatures) else tokens.key,
        "embeddings": prepared.clip.key,
    }
    write_json(contents, folder / "contents.json")
