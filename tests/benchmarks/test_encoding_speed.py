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
from cirlib.devices import best_device
from cirlib.encoders.images import encode_images, open_rgb
from cirlib.encoders.mini import MiniVision

SIDE, DEVICE, CORES = 160, best_device(), os.cpu_count() or 1
COUNTS = {"train_triplets": 60, "val_queries": 20, "gallery_size": 100, "alignment_pairs": 1, "pretraining_pairs": 1}


def draw(root: Path, workers: int) -> dict[str, Path]:
    """Some hundred drawn garments, id → file, in place of what was there."""
    shutil.rmtree(root, ignore_errors=True)
    draw_garments(root, **COUNTS, family_size=25, image_size=SIDE, workers=workers)
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
    towers = {name: MiniVision(SIDE, device=DEVICE, dtype=getattr(torch, name)) for name in ("float32", "bfloat16")}
    ways = {f"batches in {name}": partial(encode, tower, images, tmp_path / name) for name, tower in towers.items()}
    ways["plain loop in float32"] = partial(plain_loop, towers["float32"], images)
    spent = taking_turns(ways, rounds=3)
    benchmark.extra_info |= spent
    benchmark.pedantic(ways["batches in bfloat16"], rounds=1)
    plain = spent["plain loop in float32"]
    for name in towers:
        ours = spent[f"batches in {name}"]
        what = f"encoding in {name}: {len(images) / ours:.0f} images/s, over the plain loop's {len(images) / plain:.0f}"
        report(what, f"{plain / ours:.1f}", ">= 1" if name == "bfloat16" else "", plain >= ours)


def test_drawing_on_all_cores_against_one(tmp_path, report, benchmark) -> None:
    ways = {str(workers): partial(draw, tmp_path / f"by-{workers}", workers) for workers in dict.fromkeys((1, CORES))}
    spent = taking_turns(ways, rounds=3)
    benchmark.extra_info |= spent
    benchmark.pedantic(ways[str(CORES)], rounds=1)
    count = len(draw(tmp_path / "counted", CORES))
    ratio = spent["1"] / spent[str(CORES)]
    report(f"drawing on {CORES} cores: {count / spent[str(CORES)]:.0f} images/s, over one", f"{ratio:.2f}", "", True)
