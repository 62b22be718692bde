"""What cached tokens, gradient caching and fetching ahead are worth in training, side by side in one run.

Timings are reported and not asserted; memory is asserted.
"""

import os
import statistics
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from measuring import MEGABYTE, medians, needs_linux, peak
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from training_ways import SIDE, TimedStore, Trainer, batch_of, draw, repeated, run_steps
from transformers import AutoTokenizer, Blip2QFormerConfig, Blip2VisionConfig, Blip2VisionModel

from cirlib.models.devices import DTYPES, best_device, precision_here
from cirlib.models.feature_store import FeatureStore
from cirlib.models.image_encoding import LiveFeatures, encode_images
from cirlib.models.mini import MiniVision, minilm_folder
from cirlib.models.qformer import QFormerComposer, QFormerSettings, mini_qformer

BATCH, DEVICE, CORES = 64, best_device(), os.cpu_count() or 1


@pytest.fixture(scope="module")
def vision() -> MiniVision:
    return MiniVision(SIDE, device=DEVICE, dtype=DTYPES[precision_here("auto")])


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return draw(tmp_path_factory.mktemp("drawn") / "raw", CORES)


@pytest.fixture(scope="module")
def stored(vision: MiniVision, images: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return encode_images(vision, images, tmp_path_factory.mktemp("stored") / "tokens")


def trainer(store) -> Trainer:
    return Trainer(mini_qformer(8, 256, QFormerSettings()).train().to(DEVICE), store)


def test_a_step_on_cached_tokens_and_with_the_frozen_tower_in_it(vision, images, stored, report) -> None:
    rng, steps = np.random.default_rng(0), 6
    batches = [batch_of(rng.permutation(len(images))[:BATCH]) for _ in range(steps)]
    stores = {"cached": stored, "live": LiveFeatures(vision, images, CORES)}
    spent = medians({way: partial(run_steps, trainer(own), batches) for way, own in stores.items()}, rounds=3)
    ratio, speed = spent["live"] / spent["cached"], steps * BATCH / spent["cached"]
    what = f"garments: {speed:.0f} triplets/s on cached tokens, over those with the tower"
    report(what, f"{ratio:.1f}", ">= 10", ratio >= 10)


def test_the_same_at_the_size_of_blip2_by_counted_operations(report) -> None:
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
    with torch.device("meta"), FlopCounterMode(display=False) as seeing, torch.no_grad():  # shapes only
        Blip2VisionModel(Blip2VisionConfig()).eval()(torch.zeros(2, 3, 224, 224))  # reference and target of a triplet
    with FakeTensorMode(allow_non_fake_inputs=True):
        config = Blip2QFormerConfig(vocab_size=30_523, use_qformer_text_input=True)
        composer = QFormerComposer(config, 32, 256, tokenizer, QFormerSettings()).train()
        ids, tokens = torch.ones(2, 25, dtype=torch.long), torch.zeros(2, 257, 1408)
        with FlopCounterMode(display=False) as fusing:
            queries, targets = composer._embed_group(tokens, ids, torch.ones_like(ids)), composer.embed_targets(tokens)
            (queries @ targets.flatten(0, 1).T).sum().backward()  # of two triplets
    frozen, trained = seeing.get_total_flops(), fusing.get_total_flops() / 2
    ratio = (frozen + trained) / trained
    what = f"BLIP-2: {frozen / 1e9:.0f} GFLOP of tower and {trained / 1e9:.0f} of Q-Former a triplet"
    report(what, f"{ratio:.1f}", ">= 10", ratio >= 10)
    assert frozen > trained > 0


@needs_linux
def test_share_of_a_step_that_waits_for_features_from_a_cold_disk(stored, tmp_path, report) -> None:
    """The page cache is dropped before the steps, as if the store were larger than memory."""
    count, rng, shares = 6000, np.random.default_rng(0), []
    store = TimedStore(repeated(stored, tmp_path / "tokens", count).folder)
    trained, batches = trainer(store), [batch_of(rng.permutation(count)[:BATCH]) for _ in range(9)]
    for _ in range(3):
        store.forget()
        run_steps(trained, batches[:1])  # the first batch of a training is never fetched ahead
        trained.prefetch(batches[1])
        store.waited = 0.0
        begun = time.perf_counter()
        run_steps(trained, batches[1:])
        shares.append(store.waited / (time.perf_counter() - begun))
    share = statistics.median(shares)
    report("share of a step spent on reading features, cold disk", f"{share:.1%}", "< 5 %", share < 0.05)


@needs_linux
def test_batch_1024_in_the_memory_of_batch_64(report) -> None:
    sizes = {"64": ("64", "0"), "1,024 in chunks": ("1024", "64"), "1,024": ("1024", "0")}
    extra = {name: peak("step", *size)["extra_bytes"] / MEGABYTE for name, size in sizes.items()}
    shown = "; ".join(f"{name}: {size:,.0f}" for name, size in extra.items())
    ratio = extra["1,024 in chunks"] / extra["64"]
    report(f"peak MB of a step by batch, {shown}; chunks over 64", f"{ratio:.2f}", "<= 1.2", ratio <= 1.2)
    assert extra["1,024 in chunks"] < 0.5 * extra["1,024"]
