"""The parts of a study's data: train and dev (held out of train, for every choice) and the reported split."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cirlib.benchmarks import (
    Benchmark,
    BenchmarkError,
    categories,
    drop_missing,
    load_benchmark,
    require_complete,
)
from cirlib.params import Study


@dataclass(frozen=True)
class Splits:
    """Category → queries and gallery. ``train`` and ``dev`` are empty where the data has no train split."""

    train: dict[str, Benchmark]
    dev: dict[str, Benchmark]
    reported: dict[str, Benchmark]

    def images(self) -> dict[str, Path]:
        """Every image any part needs: id → file."""
        parts = [*self.train.values(), *self.dev.values(), *self.reported.values()]
        return {image: part.path(image) for part in parts for image in part.gallery}


def load_splits(study: Study, root: Path, *, gallery: str | None = None) -> Splits:
    """The study's data as its parameters describe it.

    Args:
        root: the folder with the benchmark's files. gallery: another gallery protocol than the study's.

    Raises:
        BenchmarkError: files or images are missing and ``data.allow_missing`` does not allow it.
    """
    data, name = study.data, study.data.benchmark
    reported = {
        category: _usable(load_benchmark(name, root, split=data.split, category=key, protocol=protocol), data)
        for category, key in _categories(study, root, data.split)
        for protocol in [gallery or study.evaluation.gallery]
    }
    train: dict[str, Benchmark] = {}
    dev: dict[str, Benchmark] = {}
    for category, key in _train_categories(study, root):
        part = _usable(load_benchmark(name, root, split="train", category=key, protocol=_train_gallery(name)), data)
        train[category], dev[category] = hold_out(part, data.dev_fraction, study.seed)
    return Splits(train, dev, reported)


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


def _usable(part: Benchmark, data) -> Benchmark:
    require_complete(part, data.allow_missing)
    return drop_missing(part) if part.missing else part
