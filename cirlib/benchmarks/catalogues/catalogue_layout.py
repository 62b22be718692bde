"""A catalogue in the layout that every loader reads: pairs, train edits, and the reported split's edits and gallery."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cirlib.benchmarks.base import MADE, BenchmarkError
from cirlib.benchmarks.catalogues.columns import find_table, read_table
from cirlib.benchmarks.catalogues.items import CatalogueItems, Look, read_items
from cirlib.benchmarks.catalogues.pairing import made_edits, made_pairs
from cirlib.benchmarks.catalogues.wording import Item
from cirlib.benchmarks.fashioniq import load
from cirlib.benchmarks.image_files import locate
from cirlib.study.files import write_json
from cirlib.study.parameters import Data

HELD_OUT, MOST_HELD_OUT, REPORTED = 0.2, 1000, 400  # share and number of items, and edits, without hand-written ones
LEAST, LEAST_DEV = 40, 6  # items to train on, dev's among them


def read_catalogue(data: Data, folder: Path, look: Look) -> CatalogueItems:
    """What a catalogue's folder holds; its ``overview`` says how it is read, ``look`` what pictures are compared by.

    >>> _ = write_image(folder / "a.jpg"), (folder / "mine.csv").write_text("image,title\\na.jpg,red coat")
    >>> read_catalogue(Data(benchmark="custom", root=folder, catalogue={}), folder, np.ravel).items[0].kind
    'coat'
    """
    table = find_table(folder, data.catalogue.table)
    return read_items(folder, read_table(table, data.catalogue.sheet), data.catalogue, look)


def write_catalogue(catalogue: CatalogueItems, data: Data, folder: Path, raw: Path) -> None:
    """Writes ``catalogue`` into ``raw`` in FashionIQ's layout, with ``pairs.json`` and ``catalogue.json``, every id.

    Hand-written edits of ``folder`` are the reported split, and their gallery stays out of training; without any, edits
    are made between items held out. Dev's items are no others'. BenchmarkError: too few items are left to train on.

    >>> items = [Item(str(n), kind="coat", colour=f"shade {n}") for n in range(60)]
    >>> catalogue = CatalogueItems(items, {}, {item.id: np.ones(3) for item in items}, None)
    >>> write_catalogue(catalogue, Data(benchmark="custom", root=folder, catalogue={}), folder, folder / "raw")
    >>> sorted(file.name for file in (folder / "raw/captions").iterdir())
    ['cap.catalogue.dev.json', 'cap.catalogue.train.json', 'cap.made_edits.val.json']
    """
    _require_items(catalogue.items, folder)
    for name in ("captions", "image_splits", "images"):
        shutil.rmtree(raw / name, ignore_errors=True)
        (raw / name).mkdir(parents=True)
    written = sorted((folder / "captions").glob(f"cap.*.{data.split}.json"))
    gallery = _copy_reported(written, folder, raw, data.split) if written else _make_reported(catalogue, data, raw)
    found = locate({image: image for image in gallery}, folder)
    located = {image: path.resolve() for image, path in found.items() if isinstance(path, Path)}
    shown, files = set(located.values()), catalogue.files
    items = [item for item in catalogue.items if item.id not in gallery and _file(files, item) not in shown]
    _require_items(items, folder)
    order, size = np.random.default_rng(data.seed).permutation(len(items)), round(data.dev_fraction * len(items))
    size = max(LEAST_DEV, size)
    dev, train = ([items[row] for row in rows] for rows in (order[:size], order[size:]))
    for split, part, each in (("dev", dev, 2), ("train", train, data.catalogue.edits)):
        _write_made(catalogue, part, each * len(part), raw, "catalogue", split, data.seed)
    write_json(made_pairs(train, data.catalogue.captions, data.seed), raw / "pairs.json")
    for image, file in (files | located).items():
        link = raw / "images" / f"{image}{file.suffix.lower()}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file.resolve())
    write_json(sorted(catalogue.files), raw / "catalogue.json")


def _require_items(items: Sequence[Item], folder: Path) -> None:
    if len(items) < LEAST:
        raise BenchmarkError(f"{folder}: {len(items)} items are left to train on, expected at least {LEAST}.")


def _file(files: Mapping[str, Path], item: Item) -> Path | None:
    return files[item.id].resolve() if item.id in files else None


def _copy_reported(written: Sequence[Path], folder: Path, raw: Path, split: str) -> set[str]:
    gallery = set(load(folder, "custom", split, None, "original").gallery)
    for file in written:
        shutil.copy(file, raw / "captions")
        shutil.copy(folder / "image_splits" / file.name.replace("cap.", "split.", 1), raw / "image_splits")
    return gallery


def _make_reported(catalogue: CatalogueItems, data: Data, raw: Path) -> set[str]:
    order = np.random.default_rng((data.seed, 2)).permutation(len(catalogue.items))
    held = [catalogue.items[row] for row in order[: min(MOST_HELD_OUT, round(HELD_OUT * len(order)))]]
    _write_made(catalogue, held, min(REPORTED, 2 * len(held)), raw, MADE, data.split, data.seed)
    return {item.id for item in held}


def _write_made(
    catalogue: CatalogueItems, items: Sequence[Item], count: int, raw: Path, category: str, split: str, seed: int
) -> None:
    looks = np.stack([catalogue.looks[item.id] for item in items])
    if not (edits := made_edits(items, looks, count, seed)):
        raise BenchmarkError(
            f"what is written about {len(items)} items of {split} is the same: no edit can be made of it."
        )
    write_json(edits, raw / "captions" / f"cap.{category}.{split}.json", indent=1)
    write_json([item.id for item in items], raw / "image_splits" / f"split.{category}.{split}.json", indent=1)
