"""What cached tokens, gradient caching and fetching ahead are worth in training, side by side in one run.

Timings are reported and not asserted; memory is asserted.
"""

from __future__ import annotations

import os
import statistics
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from measuring import measured, needs_linux, taking_turns
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from training_ways import TimedStore, Trainer, batch_of, run_steps, share_waiting
from transformers import AutoTokenizer, Blip2QFormerConfig, Blip2VisionConfig, Blip2VisionModel

from cirlib.models.devices import best_device, dtype_of
from cirlib.models.feature_store import FeatureStore, build_store
from cirlib.models.image_encoding import LiveFeatures, encode_images
from cirlib.models.mini import MiniVision
from cirlib.models.weights import minilm_folder
from cirlib.models.qformer import QFormerComposer, QFormerSettings, mini_qformer

BATCH, IMAGES, SIDE = 64, 512, 160
DEVICE = best_device()


@pytest.fixture(scope="module")
def vision() -> MiniVision:
    return MiniVision(SIDE, device=DEVICE, dtype=dtype_of("auto"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Drawn garments, as the study has them."""
    from cirlib.benchmarks.garments import draw_garments
    from cirlib.study.parameters import Drawing

    root = tmp_path_factory.mktemp("drawn")
    sizes = Drawing(train_triplets=100, val_queries=20, gallery_size=100, alignment_pairs=1, pretraining_pairs=1)
    draw_garments(root, sizes, image_size=SIDE)
    files = sorted((root / "images").iterdir())[:IMAGES]
    return {file.stem: file for file in files}


@pytest.fixture(scope="module")
def stored(vision: MiniVision, images: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return encode_images(vision, images, tmp_path_factory.mktemp("stored") / "tokens")


def test_a_step_on_cached_tokens_and_with_the_frozen_tower_in_it(vision, images, stored, report, benchmark) -> None:
    rng, steps = np.random.default_rng(0), 6
    batches = [batch_of(rng.permutation(len(images))[:BATCH]) for _ in range(steps)]
    stores = {"cached": stored, "live": LiveFeatures(vision, images, os.cpu_count() or 1)}
    trainers = {
        way: Trainer(mini_qformer(8, 256, QFormerSettings()).train().to(DEVICE), own) for way, own in stores.items()
    }
    spent = taking_turns({way: partial(run_steps, own, batches) for way, own in trainers.items()}, rounds=3)
    benchmark.extra_info |= spent
    benchmark.pedantic(run_steps, args=(trainers["cached"], batches[:1]), rounds=3)
    ratio = spent["live"] / spent["cached"]
    speed = steps * BATCH / spent["cached"]
    report(
        f"garments: {speed:.0f} triplets/s on cached tokens, over those with the tower",
        f"{ratio:.1f}",
        ">= 10",
        ratio >= 10,
    )


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
    report(
        f"BLIP-2: {frozen / 1e9:.0f} GFLOP of tower and {trained / 1e9:.0f} of Q-Former a triplet",
        f"{ratio:.1f}",
        ">= 10",
        ratio >= 10,
    )
    assert frozen > trained > 0


@needs_linux
def test_share_of_a_step_that_waits_for_features_from_a_cold_disk(stored, tmp_path, report, benchmark) -> None:
    """The page cache is dropped before the steps, as if the store were larger than memory."""
    tokens = stored[stored.ids]
    count = 6000
    many = build_store(tmp_path / "tokens", "key", [str(n) for n in range(count)], tuple(tokens.shape[1:]),
                       lambda rows: [tokens[np.arange(rows.start, rows.stop) % len(tokens)]])  # fmt: skip
    store = TimedStore(many.folder)
    trainer = Trainer(mini_qformer(8, 256, QFormerSettings()).train().to(DEVICE), store)
    rng = np.random.default_rng(0)
    batches = [batch_of(rng.permutation(count)[:BATCH]) for _ in range(9)]
    found: dict[str, list[float]] = {"ahead": [], "on demand": []}
    for _ in range(3):
        for way, shares in found.items():
            shares.append(share_waiting(trainer, batches, ahead=way == "ahead", cold=True))
    benchmark.extra_info |= found
    benchmark.pedantic(lambda: store.read(batches[0].references, DEVICE), rounds=3)
    for way, shares in found.items():
        value = statistics.median(shares)
        report(
            f"share of a step spent on reading features, cold disk, {way}",
            f"{100 * value:.1f} %",
            "< 5 %" if way == "ahead" else "",
            value < 0.05,
        )


@needs_linux
def test_batch_1024_in_the_memory_of_batch_64(report, benchmark) -> None:
    sizes = {"64": ("64", "0"), "1,024 in chunks": ("1024", "64"), "1,024": ("1024", "0")}
    extra = {name: measured("step_memory.py", *size)["extra_bytes"] / 2**20 for name, size in sizes.items()}
    benchmark.extra_info |= extra
    benchmark.pedantic(lambda: None, rounds=1)
    shown = "; ".join(f"{name}: {size:,.0f}" for name, size in extra.items())
    ratio = extra["1,024 in chunks"] / extra["64"]
    report(f"peak MB of a step by batch, {shown}; chunks over 64", f"{ratio:.2f}", "<= 1.2", ratio <= 1.2)
    assert extra["1,024 in chunks"] < 0.5 * extra["1,024"]
