"""What cached tokens, gradient caching and fetching ahead are worth in training, side by side in one run.

Timings are reported and not asserted; memory is asserted.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from measuring import measured, needs_linux, taking_turns
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoTokenizer, Blip2QFormerConfig, Blip2VisionConfig, Blip2VisionModel

from cirlib.composers.qformer import Form, QFormerComposer, mini_qformer
from cirlib.encoders.images import encode_images
from cirlib.encoders.live import LiveFeatures
from cirlib.encoders.mini import MiniVision, minilm_folder
from cirlib.encoders.store import FeatureStore, build_store
from cirlib.qformer_training import TripletBatch, triplet_loss

BATCH, IMAGES, SIDE = 64, 512, 160
TEXTS = ["is blue with long sleeves and a v-neck", "is shorter and has a floral print, not stripes"]


@pytest.fixture(scope="module")
def vision() -> MiniVision:
    return MiniVision(SIDE, device=torch.device("cpu"), dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Drawn garments, as the study has them."""
    from cirlib.benchmarks.garments import draw_garments

    root = tmp_path_factory.mktemp("drawn")
    counts = {"train_triplets": 100, "val_queries": 20, "gallery_size": 100, "alignment_pairs": 1}
    draw_garments(root, **counts, pretraining_pairs=1, family_size=25, image_size=SIDE)
    files = sorted((root / "images").iterdir())[:IMAGES]
    return {file.stem: file for file in files}


@pytest.fixture(scope="module")
def stored(vision: MiniVision, images: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return encode_images(vision, images, tmp_path_factory.mktemp("stored") / "tokens")


def batch_of(rows: np.ndarray) -> TripletBatch:
    texts = [TEXTS[number % 2] for number in range(len(rows))]
    return TripletBatch(rows, np.roll(rows, 1), texts, np.empty((len(rows), 0), np.int64))


def step_of(composer: QFormerComposer, store: Any) -> Callable[[], None]:
    """A training step of a batch drawn at random: forward, backward, AdamW."""
    optimizer = torch.optim.AdamW(composer.parameters(), lr=1e-5, fused=True)
    rng = np.random.default_rng(0)

    def step() -> None:
        batch = batch_of(rng.permutation(len(store.ids))[:BATCH])
        with torch.autocast("cpu", torch.bfloat16):
            loss = triplet_loss(composer, store, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def test_a_step_on_cached_tokens_and_with_the_frozen_tower_in_it(vision, images, stored, report, benchmark) -> None:
    composers = [mini_qformer(8, 256, Form()).train() for _ in range(2)]
    cached, live = step_of(composers[0], stored), step_of(composers[1], LiveFeatures(vision, images))
    spent = taking_turns({"cached": cached, "live": live}, rounds=7)
    benchmark.extra_info |= spent
    benchmark.pedantic(cached, rounds=3)
    ratio = spent["live"] / spent["cached"]
    speed = BATCH / spent["cached"]
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
        composer = QFormerComposer(config, 32, 256, tokenizer, Form()).train()
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


def test_share_of_a_step_that_waits_for_features_from_a_cold_disk(stored, tmp_path, report, benchmark) -> None:
    """The page cache is dropped before every step, as if the store were larger than memory."""
    tokens = stored[stored.ids]
    count = 6000
    many = build_store(tmp_path / "tokens", "key", [str(n) for n in range(count)], tuple(tokens.shape[1:]),
                       lambda rows: [tokens[np.arange(rows.start, rows.stop) % len(tokens)]])  # fmt: skip
    store = Timed(many.folder)
    composer = mini_qformer(8, 256, Form()).train()
    optimizer = torch.optim.AdamW(composer.parameters(), lr=1e-5, fused=True)
    rng = np.random.default_rng(0)
    rows = [rng.permutation(count)[:BATCH] for _ in range(9)]

    def share(ahead: bool) -> float:
        store.waited, total = 0.0, 0.0
        for now, after in pairwise(rows):
            if not ahead:
                store.forget(now)
            begun = time.perf_counter()
            if ahead:
                store.expect(batch_of(after).rows)
            with torch.autocast("cpu", torch.bfloat16):
                triplet_loss(composer, store, batch_of(now)).backward()
            optimizer.step()
            optimizer.zero_grad()
            total += time.perf_counter() - begun
            store.forget(now)
        return store.waited / total

    for own in rows:
        store.forget(own)
    found = {way: statistics.median(share(way == "ahead") for _ in range(3)) for way in ("ahead", "on demand")}
    benchmark.extra_info |= found
    benchmark.pedantic(lambda: store.read(rows[0], torch.device("cpu")), rounds=3)
    for way, value in found.items():
        report(
            f"share of a step spent on reading features, cold disk, {way}",
            f"{100 * value:.1f} %",
            "< 5 %",
            value < 0.05,
        )


class Timed(FeatureStore):
    """A store that counts the seconds spent on reading."""

    waited = 0.0

    def read(self, rows: np.ndarray, device: torch.device) -> torch.Tensor:
        begun = time.perf_counter()
        features = super().read(rows, device)
        self.waited += time.perf_counter() - begun
        return features

    def forget(self, rows: np.ndarray) -> None:
        """Drops the rows' pages from memory."""
        import mmap

        size = self.array.strides[0]
        with (self.folder / "features.npy").open("rb") as file:
            for row in rows.tolist():
                start = (self.array.offset + row * size) // mmap.PAGESIZE * mmap.PAGESIZE
                self.array._mmap.madvise(mmap.MADV_DONTNEED, start, size + mmap.PAGESIZE)
                os.posix_fadvise(file.fileno(), start, size + mmap.PAGESIZE, os.POSIX_FADV_DONTNEED)


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
