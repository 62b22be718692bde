"""Drawing garments and encoding pictures: what the study does beside the plain loop, side by side in one run.

Timings are reported and not asserted.
"""

import os
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from measuring import medians
from training_ways import SIDE, draw

from cirlib.models.devices import DTYPES, best_device, precision_here
from cirlib.models.image_encoding import encode_images
from cirlib.models.mini import MiniVision
from cirlib.study.pictures import open_rgb

DEVICE, CORES = best_device(), os.cpu_count() or 1


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return draw(tmp_path_factory.mktemp("drawn") / "raw", CORES)


def test_encoding_against_the_plain_loop(images, tmp_path, report) -> None:
    fast = DTYPES[precision_here("auto")]
    towers = {dtype: MiniVision(SIDE, device=DEVICE, dtype=dtype) for dtype in {torch.float32, fast}}

    @torch.inference_mode()
    def plain_loop() -> None:
        vision = towers[torch.float32]
        for file in images.values():
            vision.encode_pixels(vision.transform(open_rgb(file))[None]).half().cpu()

    def batches() -> None:
        shutil.rmtree(tmp_path / "tokens", ignore_errors=True)
        encode_images(towers[fast], images, tmp_path / "tokens", num_workers=CORES)

    spent = medians({"batches": batches, "plain loop": plain_loop}, rounds=3)
    ratio = spent["plain loop"] / spent["batches"]
    speed = f"{len(images) / spent['batches']:.0f} images/s in {precision_here('auto')}"
    report(f"encoding: {speed}, over one after the other in fp32", f"{ratio:.1f}", ">= 1", ratio >= 1)


def test_auto_is_the_faster_precision(report) -> None:
    pixels = torch.randn(16, 3, SIDE, SIDE)
    towers = {name: MiniVision(SIDE, device=DEVICE, dtype=DTYPES[name]) for name in ("fp32", "bf16")}
    with torch.inference_mode():
        spent = medians({name: partial(tower.encode_pixels, pixels) for name, tower in towers.items()}, rounds=5)
    taken = precision_here("auto")
    (other,) = spent.keys() - {taken}
    ratio = spent[other] / spent[taken]
    report(f"a vision tower in {taken}, which auto takes here, over {other}", f"{ratio:.1f}", ">= 1", ratio >= 1)


def test_drawing_on_all_cores_against_one(tmp_path, report) -> None:
    ways = {str(workers): partial(draw, tmp_path / f"by-{workers}", workers) for workers in dict.fromkeys((1, CORES))}
    spent = medians(ways, rounds=3)
    speed = len(draw(tmp_path / "counted", CORES)) / spent[str(CORES)]
    report(f"drawing on {CORES} cores: {speed:.0f} images/s, over one", f"{spent['1'] / spent[str(CORES)]:.2f}")
