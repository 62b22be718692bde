"""BLIP-2 at its full size on a GPU, with random weights: encoding, training and memory as FashionIQ's study needs them.

Timings are reported and not asserted; memory is asserted.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from measuring import needs_gpu, taking_turns
from PIL import Image
from training_ways import TimedStore, Trainer, batch_of, run_steps, share_waiting

from cirlib.app.rehearsal import save_random_blip2
from cirlib.models.blip2 import Blip2Vision
from cirlib.models.feature_store import FeatureStore, build_store
from cirlib.models.image_encoding import encode_images
from cirlib.models.live_features import LiveFeatures
from cirlib.models.qformer import QFormerComposer, QFormerSettings, blip2_qformer

pytestmark = needs_gpu
DEVICE = torch.device("cuda")
BATCH, NEGATIVES, IMAGES, STORED = 128, 3, 1024, 4096
GIGABYTE = 2**30
WORKERS = os.cpu_count() or 1


@pytest.fixture(scope="module")
def blip2(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Saved in the format of ``Salesforce/blip2-itm-vit-g`` and of its size."""
    folder = tmp_path_factory.mktemp("blip2")
    sizes = {"num_query_tokens": 32, "image_text_hidden_size": 256}
    return str(save_random_blip2(folder, {"initializer_range": 0.02}, {}, noise=0.0, **sizes))


@pytest.fixture(scope="module")
def vision(blip2: str) -> Blip2Vision:
    return Blip2Vision(blip2, device=DEVICE, dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def fresh(blip2: str) -> QFormerComposer:
    return blip2_qformer(blip2, QFormerSettings())


@pytest.fixture
def composer(fresh: QFormerComposer) -> QFormerComposer:
    return fresh.train().to(DEVICE)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Photographs' size, JPEG, some structure."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    files = {f"i{number}": folder / f"{number}.jpg" for number in range(IMAGES)}
    for file in files.values():
        patches = Image.fromarray(rng.integers(0, 256, (12, 8, 3), np.uint8))
        patches.resize((400, 600), Image.Resampling.BICUBIC).save(file, quality=90)
    return files


@pytest.fixture(scope="module")
def encoded(vision: Blip2Vision, images: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return encode_images(vision, images, tmp_path_factory.mktemp("encoded") / "tokens", num_workers=WORKERS)


def test_encoding(vision, images, tmp_path, report, benchmark) -> None:
    run = partial(encode_images, vision, images, num_workers=WORKERS)
    seconds = taking_turns({"encode": lambda: run(tmp_path / os.urandom(4).hex())}, rounds=1)["encode"]
    benchmark.pedantic(vision.encode_pixels, args=(torch.zeros(64, 3, 224, 224),), rounds=5)
    forward = benchmark.stats.stats.median
    report(
        f"BLIP-2 ViT-g: {IMAGES / seconds:.0f} images/s encoded; tower alone, images/s", f"{64 / forward:.0f}", "", True
    )


def test_a_step_on_cached_tokens_and_with_the_frozen_tower_in_it(
    composer, vision, images, encoded, report, benchmark
) -> None:
    rng, steps = np.random.default_rng(0), 6
    batches = [batch_of(rng.permutation(IMAGES)[:BATCH]) for _ in range(steps)]
    stores = {"cached": encoded, "live": LiveFeatures(vision, images, WORKERS)}
    ways = {way: partial(run_steps, Trainer(composer, store), batches) for way, store in stores.items()}
    spent = taking_turns(ways, rounds=3)
    benchmark.extra_info |= spent
    benchmark.pedantic(ways["cached"], rounds=1)
    ratio, speed = spent["live"] / spent["cached"], steps * BATCH / spent["cached"]
    report(
        f"BLIP-2: {speed:.0f} triplets/s on cached tokens, over those with the tower",
        f"{ratio:.1f}",
        ">= 10",
        ratio >= 10,
    )


@pytest.mark.parametrize("cold", [False, True], ids=["page cache", "cold disk"])
def test_share_of_a_step_that_waits_for_features(composer, encoded, tmp_path, report, benchmark, cold) -> None:
    tokens = encoded[encoded.ids]
    many = build_store(tmp_path / "tokens", "key", [str(n) for n in range(STORED)], tuple(tokens.shape[1:]),
                       lambda rows: [tokens[np.arange(rows.start, rows.stop) % len(tokens)]])  # fmt: skip
    trainer = Trainer(composer, TimedStore(many.folder))
    rng = np.random.default_rng(0)
    batches = [batch_of(rng.permutation(STORED)[:BATCH]) for _ in range(9)]
    for ahead in (True, False):
        share = statistics.median(share_waiting(trainer, batches, ahead=ahead, cold=cold) for _ in range(3))
        what = f"BLIP-2: share of a step spent on reading, {'cold disk' if cold else 'page cache'}"
        aim = "< 5 %" if ahead else ""
        report(f"{what}, {'ahead' if ahead else 'on demand'}", f"{100 * share:.1f} %", aim, share < 0.05)
    benchmark.pedantic(many.read, args=(batches[0].references, DEVICE), rounds=3)


@pytest.mark.parametrize(
    ("batch", "chunk", "checkpointing"),
    [(BATCH, None, False), (BATCH, None, True), (8 * BATCH, BATCH // 2, False)],
    ids=["plain", "checkpointing", "chunks"],
)
def test_memory_of_a_step_with_hard_negatives(
    composer, vision, encoded, report, benchmark, batch: int, chunk: int | None, checkpointing: bool
) -> None:
    vision.vision.cpu()  # a training on cached tokens has none
    if checkpointing:
        composer.qformer.activation_checkpointing_enable()
    trainer = Trainer(composer, encoded, chunk)
    triplets = batch_of(np.arange(batch) % IMAGES, NEGATIVES)
    trainer.step(triplets)
    torch.cuda.reset_peak_memory_stats()
    benchmark.pedantic(lambda: (trainer.step(triplets), torch.cuda.synchronize()), rounds=3)
    peak = torch.cuda.max_memory_allocated() / GIGABYTE
    how = f", chunks of {chunk}" if chunk else ", checkpointing" if checkpointing else ""
    speed = batch / benchmark.stats.stats.median
    limit = "" if how == "" else "<= 24"
    report(
        f"BLIP-2: batch {batch}, {NEGATIVES} hard negatives{how}, {speed:.0f} triplets/s, peak GB",
        f"{peak:.1f}",
        limit,
        peak <= 24,
    )
    composer.qformer.activation_checkpointing_disable()
    assert not limit or peak <= 24
