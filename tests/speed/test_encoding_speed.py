"""Drawing garments and encoding pictures: what the study does beside the plain loop, side by side in one run.

Timings are reported and not asserted.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest
import torch
from measuring import taking_turns

from cirlib.benchmarks.garments import draw_garments
from cirlib.models.devices import DTYPES, best_device, dtype_of, precision_here
from cirlib.models.image_encoding import encode_images
from cirlib.models.mini import MiniVision
from cirlib.study.parameters import Drawing
from cirlib.study.pictures import open_rgb

SIDE, DEVICE, CORES = 160, best_device(), os.cpu_count() or 1
SIZES = Drawing(train_triplets=60, val_queries=20, gallery_size=100, alignment_pairs=1, pretraining_pairs=1)


def draw(root: Path, workers: int) -> dict[str, Path]:
    """Some hundred drawn garments, id → file, in place of what was there."""
    shutil.rmtree(root, ignore_errors=True)
    draw_garments(root, SIZES, image_size=SIDE, workers=workers)
    return {file.stem: file for file in sorted((root / "images").iterdir())}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return draw(tmp_path_factory.mktemp("drawn") / "raw", CORES)


@torch.inference_mode()
def plain_loop(vision: MiniVision, images: Mapping[str, Path]) -> None:
    """Opens, transforms and encodes one picture after the other."""
    for file in images.values():
        vision.encode_pixels(vision.transform(open_rgb(file))[None]).half().cpu()


def encode(vision: MiniVision, images: Mapping[str, Path], root: Path) -> None:
    folder = root / "tokens"
    shutil.rmtree(folder, ignore_errors=True)
    encode_images(vision, images, folder, num_workers=CORES)


def test_encoding_against_the_plain_loop(images, tmp_path, report, benchmark) -> None:
    towers = {dtype: MiniVision(SIDE, device=DEVICE, dtype=dtype) for dtype in {torch.float32, dtype_of("auto")}}
    ways = {
        "batches": partial(encode, towers[dtype_of("auto")], images, tmp_path),
        "plain loop": partial(plain_loop, towers[torch.float32], images),
    }
    spent = taking_turns(ways, rounds=3)
    benchmark.extra_info |= spent
    benchmark.pedantic(ways["batches"], rounds=1)
    ratio = spent["plain loop"] / spent["batches"]
    speed = f"{len(images) / spent['batches']:.0f} images/s in {precision_here('auto')}"
    report(f"encoding: {speed}, over one after the other in fp32", f"{ratio:.1f}", ">= 1", ratio >= 1)


def test_auto_is_the_faster_precision(report, benchmark) -> None:
    pixels = torch.randn(16, 3, SIDE, SIDE)
    towers = {name: MiniVision(SIDE, device=DEVICE, dtype=DTYPES[name]) for name in ("fp32", "bf16")}
    with torch.inference_mode():
        ways = {name: partial(tower.encode_pixels, pixels) for name, tower in towers.items()}
        spent = taking_turns(ways, rounds=5)
        benchmark.extra_info |= spent
        benchmark.pedantic(ways[precision_here("auto")], rounds=1)
    taken = precision_here("auto")
    (other,) = spent.keys() - {taken}
    ratio = spent[other] / spent[taken]
    report(f"a vision tower in {taken}, which auto takes here, over {other}", f"{ratio:.1f}", ">= 1", ratio >= 1)


def test_drawing_on_all_cores_against_one(tmp_path, report, benchmark) -> None:
    ways = {str(workers): partial(draw, tmp_path / f"by-{workers}", workers) for workers in dict.fromkeys((1, CORES))}
    spent = taking_turns(ways, rounds=3)
    benchmark.extra_info |= spent
    benchmark.pedantic(ways[str(CORES)], rounds=1)
    count = len(draw(tmp_path / "counted", CORES))
    ratio = spent["1"] / spent[str(CORES)]
    report(f"drawing on {CORES} cores: {count / spent[str(CORES)]:.0f} images/s, over one", f"{ratio:.2f}", "", True)
