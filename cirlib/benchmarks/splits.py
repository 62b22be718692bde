"""The parts of a study's data: train and dev (held out of train, for every choice) and the reported split."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import numpy as np

from cirlib.study.files import read_json
from cirlib.study.parameters import Study
from cirlib.study.stage import Stage

from . import SPLITS, categories, load_benchmark
from .base import Benchmark, BenchmarkError
from .families import families

UNUSABLE = "unusable.json"  # the images that are there but cannot be used: id → reason


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


def load_splits(stage: Stage, gallery: str | None = None) -> Splits:
    """The study's data as its parameters describe it, with another ``gallery`` protocol where one is given.

    Raises `BenchmarkError` where files or images are missing and ``data.allow_missing`` does not allow it. Images of
    `UNUSABLE` are missing too. Dev is held out of train, unless the data has files of it.

    >>> list(load_splits(stage).reported)
    ['hat', 'shoe']
    """
    study, file = stage.study, stage.data / UNUSABLE
    unusable = read_json(file) if file.exists() else {}

    def load(split: str, gallery: str) -> dict[str, Benchmark]:
        parts = load_parts(study, stage.images, split, gallery).items()
        return {name: part.mark_unusable(unusable).drop_missing(study.data.allow_missing) for name, part in parts}

    reported = load(study.data.split, gallery or study.evaluation.gallery)
    for part in reported.values():
        if not all(t.targets for t in part.triplets):
            raise BenchmarkError(f"{part.name} {part.split} has no public targets to score: set data.split to val.")
    data, trained = study.data, load("train", "val_split")
    if data.benchmark == "custom" and (dev := load("dev", "original")):
        return Splits(trained, dev, reported)
    halves = {name: hold_out(part, data.dev_fraction, data.seed) for name, part in trained.items()}
    train, dev = ({name: pair[half] for name, pair in halves.items()} for half in (0, 1))
    return Splits(train, dev, reported)


def load_parts(study: Study, root: Path, split: str, gallery: str) -> dict[str, Benchmark]:
    """Category → its queries and gallery, of what the study uses of a split; empty where the data has no train split.

    A benchmark without categories is one part of its own name. CIRR's train gallery is always the original one.

    >>> [len(part.gallery) for part in load_parts(stage.study, stage.images, "train", "val_split").values()]
    [8, 8]
    """
    name = study.data.benchmark
    if split == "train" and not (study.data.train and split in SPLITS[name]):
        return {}
    found = categories(name, root, split)
    wanted = study.data.categories or found
    if split in ("train", "dev") and name != "cirr":
        names = {category: category for category in found if category in wanted}
    else:
        names = {category: category for category in wanted} or {name: None}
        gallery = "original" if split == "train" else gallery
    return {
        part: load_benchmark(name, root, split=split, category=category, protocol=gallery)
        for part, category in names.items()
    }


def annotations_key(parts: Iterable[Benchmark]) -> str:
    """A hash of the parts' queries and galleries: another value is other annotations.

    >>> len(annotations_key(prepared.splits.parts()))
    64
    """
    said = [[[astuple(triplet) for triplet in one.triplets], one.gallery, list(one.missing)] for one in parts]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def hold_out(part: Benchmark, fraction: float, seed: int) -> tuple[Benchmark, Benchmark]:
    """``part`` in two: its queries without, and only, about a random ``fraction``; both keep the whole gallery.

    Whole families (:func:`~cirlib.benchmarks.families.families`) are held out: what is chosen on dev was not seen.

    >>> [len(one.triplets) for one in hold_out(prepared.splits.reported["hat"], 0.3, seed=0)]
    [2, 1]
    """
    family = families(part.triplets)  # (N,)
    sizes, wanted = np.bincount(family), max(1, round(fraction * len(family)))
    order = np.random.default_rng(seed).permutation(len(sizes))
    before = np.cumsum(sizes[order]) - sizes[order]  # queries in the families drawn earlier
    held = np.isin(family, order[before < wanted])  # (N,)
    parts = ([t for t, out in zip(part.triplets, held, strict=True) if out == of_dev] for of_dev in (False, True))
    train, dev = (replace(part, triplets=triplets) for triplets in parts)
    return train, dev
