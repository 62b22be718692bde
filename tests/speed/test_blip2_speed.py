"""BLIP-2 at its full size on a GPU, with random weights: encoding, and the memory that docs/fashioniq.md promises.

Timings are reported and not asserted; memory is asserted.
"""

import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from measuring import medians, needs_gpu
from PIL import Image
from training_ways import MemoryStore, Trainer, batch_of

from cirlib.app.rehearsal import save_random_blip2
from cirlib.models.blip2 import Blip2Vision
from cirlib.models.image_encoding import encode_images
from cirlib.models.qformer import QFormerSettings, blip2_qformer

pytestmark = needs_gpu
BATCH, NEGATIVES, IMAGES, GIGABYTE = 128, 3, 1024, 2**30


@pytest.fixture(scope="module")
def blip2(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Saved in the format of ``Salesforce/blip2-itm-vit-g`` and of its size."""
    sizes = {"num_query_tokens": 32, "image_text_hidden_size": 256}
    folder = tmp_path_factory.mktemp("blip2")
    return str(save_random_blip2(folder, {"initializer_range": 0.02}, {}, noise=0.0, **sizes))


def photographs(folder: Path) -> dict[str, Path]:
    """Photographs' size, JPEG, some structure."""
    rng = np.random.default_rng(0)
    files = {f"i{number}": folder / f"{number}.jpg" for number in range(IMAGES)}
    for file in files.values():
        patches = Image.fromarray(rng.integers(0, 256, (12, 8, 3), np.uint8))
        patches.resize((400, 600), Image.Resampling.BICUBIC).save(file, quality=90)
    return files


def test_encoding(blip2, tmp_path, report) -> None:
    vision = Blip2Vision(blip2, device=torch.device("cuda"), dtype=torch.bfloat16)
    images, pixels = photographs(tmp_path), torch.zeros(64, 3, 224, 224)
    run = partial(encode_images, vision, images, num_workers=os.cpu_count() or 1)
    encode = medians({"encode": lambda: run(tmp_path / os.urandom(4).hex())}, rounds=1)["encode"]
    with torch.inference_mode():
        tower = medians({"tower": partial(vision.encode_pixels, pixels)}, rounds=5)["tower"]
    report(f"BLIP-2 ViT-g: {IMAGES / encode:.0f} images/s encoded; tower alone, images/s", f"{64 / tower:.0f}")


@pytest.mark.parametrize(
    ("how", "batch", "chunk"), [("", BATCH, None), (", checkpointing", BATCH, None), (", chunks of 64", 8 * BATCH, 64)]
)
def test_memory_of_a_step_with_hard_negatives(blip2, report, how: str, batch: int, chunk: int | None) -> None:
    composer = blip2_qformer(blip2, QFormerSettings()).train().to("cuda")
    if how == ", checkpointing":
        composer.qformer.activation_checkpointing_enable()
    trainer, triplets = (
        Trainer(composer, MemoryStore(IMAGES, 257, 1408), chunk),
        batch_of(np.arange(batch) % IMAGES, NEGATIVES),
    )
    trainer.step(triplets)
    torch.cuda.reset_peak_memory_stats()
    speed = batch / medians({"step": partial(trainer.step, triplets)}, rounds=3)["step"]
    peak = torch.cuda.max_memory_allocated() / GIGABYTE
    what = f"BLIP-2: batch {batch}, {NEGATIVES} hard negatives{how}, {speed:.0f} triplets/s, peak GB"
    report(what, f"{peak:.1f}", "<= 24" if how else "", peak <= 24)
    assert not how or peak <= 24
