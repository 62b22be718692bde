"""The parts of a study's data: train and dev (held out of train, for every choice) and the reported split."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import numpy as np

from cirlib.benchmarks import (
    Benchmark,
    BenchmarkError,
    categories,
    drop_missing,
    load_benchmark,
    mark_unusable,
    require_complete,
)
from cirlib.study.parameters import Study
from cirlib.study.stage import Stage


@dataclass(frozen=True)
class Splits:
    """Category → queries and gallery. ``train`` and ``dev`` are empty where the data has no train split."""

    train: dict[str, Benchmark]
    dev: dict[str, Benchmark]
    reported: dict[str, Benchmark]

    def parts(self) -> list[Benchmark]:
        """Every category of every part."""
        return [*self.train.values(), *self.dev.values(), *self.reported.values()]

    def images(self) -> dict[str, Path]:
        """Every image any part needs: id → file."""
        return {image: part.path(image) for part in self.parts() for image in part.gallery}


def load_splits(
    study: Study, root: Path, *, gallery: str | None = None, unusable: Mapping[str, str] | None = None
) -> Splits:
    """The study's data as its parameters describe it.

    Args:
        root: the folder with the benchmark's files. gallery: another gallery protocol than the study's.
        unusable: image id → why its file cannot be used; such an image counts as missing.

    Raises:
        BenchmarkError: files or images are missing and ``data.allow_missing`` does not allow it.
    """
    data, name, protocol = study.data, study.data.benchmark, gallery or study.evaluation.gallery

    def load(split: str, category: str | None, protocol: str) -> Benchmark:
        part = load_benchmark(name, root, split=split, category=category, protocol=protocol)
        part = mark_unusable(part, unusable or {})
        require_complete(part, data.allow_missing)
        return drop_missing(part) if part.missing else part

    reported = {category: load(data.split, key, protocol) for category, key in _categories(study, root, data.split)}
    if hidden := next((part for part in reported.values() if not all(t.targets for t in part.triplets)), None):
        raise BenchmarkError(
            f"{hidden.name} {data.split} has no public targets, so nothing can be scored on it: set data.split to val."
        )
    train: dict[str, Benchmark] = {}
    dev: dict[str, Benchmark] = {}
    for category, key in _train_categories(study, root):
        part = load("train", key, _train_gallery(name))
        train[category], dev[category] = hold_out(part, data.dev_fraction, study.seed)
    return Splits(train, dev, reported)


def unusable_file(stage: Stage) -> Path:
    """Where data preparation notes the images that are there but cannot be used: id → reason."""
    return stage.data / "unusable.json"


def annotations_key(parts: Iterable[Benchmark]) -> str:
    """A hash of the parts' queries and galleries: another value is other annotations."""
    said = [[[astuple(triplet) for triplet in one.triplets], one.gallery, list(one.missing)] for one in parts]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def hold_out(part: Benchmark, fraction: float, seed: int) -> tuple[Benchmark, Benchmark]:
    """``part`` in two: its queries without, and only, a random ``fraction``; both keep the whole gallery."""
    count = max(1, round(fraction * len(part.triplets)))
    held = set(np.random.default_rng(seed).permutation(len(part.triplets))[:count].tolist())
    kept = [t for i, t in enumerate(part.triplets) if i not in held]
    return replace(part, triplets=kept), replace(part, triplets=[part.triplets[i] for i in sorted(held)])


def _categories(study: Study, root: Path, split: str) -> list[tuple[str, str | None]]:
    if study.data.benchmark in ("cirr", "circo"):
        return [(study.data.benchmark, None)]
    names = study.data.categories or categories(study.data.benchmark, root, split)
    return [(name, name) for name in names]


def _train_categories(study: Study, root: Path) -> list[tuple[str, str | None]]:
    try:
        found = categories(study.data.benchmark, root, "train")
    except BenchmarkError:
        return []
    if study.data.benchmark in ("cirr", "circo"):
        return [(study.data.benchmark, None)]
    return [(name, name) for name in found if not study.data.categories or name in study.data.categories]


def _train_gallery(name: str) -> str:
    """Of a train split only the images that queries use are ever opened, where the benchmark can say so."""
    return "val_split" if name in ("fashioniq", "custom") else "original"
