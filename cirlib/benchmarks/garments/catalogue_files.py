"""Writes the catalogue in FashionIQ's layout: every file whole or not at all, and the record of it last."""

import io
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from cirlib.benchmarks.base import BenchmarkError
from cirlib.benchmarks.garments.attributes import CATEGORIES
from cirlib.benchmarks.garments.catalogue import (
    SPLITS,
    STREAMS,
    VERSION,
    Catalogue,
    CatalogueImage,
    CatalogueQuery,
    plan_catalogue,
)
from cirlib.benchmarks.garments.drawing import render_garment
from cirlib.study.files import write_bytes
from cirlib.study.parameters import Drawing
from cirlib.study.processes import process_pool
from cirlib.study.progress import progress

JPEG_QUALITY = 92
IMAGE_NAME = re.compile(r"G[A-Z2-7]{9}\.jpg(\.tmp)?")


def draw_garments(
    root: Path, sizes: Drawing, *, image_size: int = 160, seed: int = 0, workers: int | None = None
) -> None:
    """Draws the catalogue into `root` in FashionIQ's layout, plus `pairs.json`, `attributes.json`, `drawn.json`.

    Images are `image_size` pixels square. The files depend on `sizes`, `image_size` and `seed` only, not on
    `workers` (processes, by default one a core). A finished catalogue of the same arguments is left as it
    is; an unfinished one is checked file by file and completed.

    Raises:
        BenchmarkError: counts that cannot be met, or a folder that holds other images; nothing is written then.

    >>> sizes = Drawing(train_images=8, train_triplets=2, val_queries=1, gallery_size=8, pairs=1, family_size=8)
    >>> draw_garments(folder, sizes, image_size=32, workers=1)
    >>> len(list((folder / "images").glob("*.jpg")))
    49
    """
    arguments = {**sizes.model_dump(), "seed": seed, "image_size": image_size}
    root = Path(root)
    _check_folder(root)
    if _is_drawn(root, arguments):
        return
    catalogue = plan_catalogue(sizes, seed=seed)
    (root / "drawn.json").unlink(missing_ok=True)
    _write_images(root / "images", catalogue.images, image_size, workers or os.cpu_count() or 1)
    _write_captions(root, catalogue)
    named = {image.id: asdict(image.garment) for image in catalogue.images}
    _write_json(root / "attributes.json", named)
    _write_json(root / "drawn.json", {"version": VERSION, **arguments})


def _check_folder(root: Path) -> None:
    """Raises BenchmarkError where `root/images` holds files that `draw_garments` did not write."""
    for path in (root / "images").glob("*"):
        if not IMAGE_NAME.fullmatch(path.name):
            raise BenchmarkError(f"{root} holds other images ({path.name}): give draw_garments a folder of its own.")


def _is_drawn(root: Path, arguments: dict[str, int]) -> bool:
    """True where the last run had these arguments, finished, and its files are still there."""
    try:
        if json.loads((root / "drawn.json").read_text()) != {"version": VERSION, **arguments}:
            return False
        named = json.loads((root / "attributes.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    texts = [*_layout(root).values(), root / "pairs.json"]
    present = {path.stem for path in (root / "images").glob("*.jpg")}
    return present == set(named) and all(path.is_file() for path in texts)


def _layout(root: Path) -> dict[tuple[str, str, str], Path]:
    """(kind, category, split) → FashionIQ's file for it."""
    places = {}
    for category, split in itertools.product(CATEGORIES, SPLITS):
        places["captions", category, split] = root / "captions" / f"cap.{category}.{split}.json"
        places["images", category, split] = root / "image_splits" / f"split.{category}.{split}.json"
    return places


def _write_captions(root: Path, catalogue: Catalogue) -> None:
    places = _layout(root)
    for group in catalogue.collections:
        triplets = [_as_fashioniq(query) for query in group.queries]
        _write_json(places["captions", group.category, group.split], triplets)
        _write_json(places["images", group.category, group.split], [image.id for image in group.images])
    rows = [{"image": pair.image.id, "caption": pair.caption.text} for pair in catalogue.pairs]
    _write_json(root / "pairs.json", rows)


def _as_fashioniq(query: CatalogueQuery) -> dict[str, object]:
    texts = [caption.text for caption in query.captions]
    return {"target": query.target.id, "candidate": query.reference.id, "captions": texts}


def _write_images(folder: Path, images: list[CatalogueImage], size: int, workers: int) -> None:
    """Draw the images that are missing or damaged; remove the ones of an earlier, different catalogue."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {f"{image.id}.jpg" for image in images}
    for path in folder.iterdir():
        if path.name not in wanted:
            path.unlink()
    with _mapper(workers) as spread:
        done = spread(partial(_write_image, folder, size), images)
        for _ in progress(done, total=len(images), desc="drawing garments", unit="image"):
            pass


@contextmanager
def _mapper(workers: int) -> Iterator[Callable[..., Iterator[None]]]:
    """`map`, or the same over several processes."""
    if workers == 1:
        yield map
        return
    with process_pool(workers) as pool:
        yield partial(pool.map, chunksize=32)


def _write_image(folder: Path, size: int, image: CatalogueImage) -> None:
    path = folder / f"{image.id}.jpg"
    if path.exists() and _is_whole(path.read_bytes(), size):
        return
    rng = np.random.default_rng(np.random.SeedSequence((*image.seed, STREAMS["pictures"])))
    buffer = io.BytesIO()
    render_garment(image.garment, rng, size).save(buffer, "JPEG", quality=JPEG_QUALITY)
    write_bytes(buffer.getvalue(), path)


def _is_whole(data: bytes, size: int) -> bool:
    """True for a JPEG of this size that decodes to its last byte."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return image.size == (size, size) and data.endswith(b"\xff\xd9")
    except OSError:
        return False


def _write_json(path: Path, value: object) -> None:
    write_bytes(json.dumps(value, indent=1).encode(), path)
