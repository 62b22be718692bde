"""Annotation files of the real forms with something wrong in them: a benchmark or a sentence, never anything else.

Runs CIRLIB_FUZZ_SECONDS (60) in all, a third on each benchmark; the seed of a failure is in its message.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from cirlib.benchmarks import Benchmark, BenchmarkError, load_benchmark

SECONDS = float(os.environ.get("CIRLIB_FUZZ_SECONDS", "60"))
IDS = [f"dev-{i}" for i in range(8)]
QUERIES = range(4)
FILES: dict[str, dict[str, Any]] = {
    "custom": {
        "captions/cap.hat.val.json": [
            {"target": IDS[i + 1], "candidate": IDS[i], "captions": ["is blue", "has dots"]} for i in QUERIES
        ],
        "image_splits/split.hat.val.json": IDS,
    },
    "cirr": {
        "captions/cap.rc2.val.json": [
            {
                "pairid": i, "reference": IDS[i], "target_hard": IDS[i + 1], "target_soft": {IDS[i + 1]: 1.0},
                "caption": "is blue", "img_set": {"id": i, "members": IDS[i : i + 3], "reference_rank": 0},
            }
            for i in QUERIES
        ],
        "image_splits/split.rc2.val.json": {image: f"./dev/{image}.png" for image in IDS},
    },
    "circo": {
        "annotations/val.json": [
            {"id": i, "reference_img_id": i, "relative_caption": "is blue", "gt_img_ids": [i + 1, i + 2]}
            for i in QUERIES
        ],
        "COCO2017_unlabeled/annotations/image_info_unlabeled2017.json": {"images": [{"id": i} for i in range(8)]},
    },
}  # fmt: skip
ODD = [
    None, True, -1, 0.5, 10**20, float("inf"), float("nan"), "", "1", "\0", "../x", "/etc/passwd", "é" * 300, "\ud800",
    "dеv-1", "word " * 10_000, [], {}, [[]], [1, 1], ["a"] * 9, {"a": 1},
]  # fmt: skip


def places(tree: Any, path: tuple = ()) -> Iterator[tuple]:
    """The way to every value in a tree of JSON but the tree itself."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in inner:
        yield (*path, key)
        yield from places(value, (*path, key))


def mutated(content: Any, rng: random.Random) -> bytes:
    """The file with values replaced, keys renamed or left out, and perhaps bytes overwritten, cut or made long."""
    tree = deepcopy(content)
    for _ in range(rng.randint(1, 3)):
        *way, last = rng.choice(list(places(tree)) or [(None,)])
        inner = tree
        for key in way:
            inner = inner[key]
        if last is None or rng.random() < 0.03:
            tree = deepcopy(rng.choice(ODD))
        elif rng.random() < 0.2:
            del inner[last]
        elif isinstance(inner, dict) and rng.random() < 0.2:
            inner[rng.choice(["id", "captions", ""])] = inner.pop(last)
        else:
            inner[last] = deepcopy(rng.choice(ODD))
    return spoiled(json.dumps(tree).encode(), rng)


def spoiled(data: bytes, rng: random.Random) -> bytes:
    how, at = rng.random(), rng.randrange(len(data))
    if how < 0.1:
        return data[:at]
    if how < 0.2:
        return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
    if how < 0.23:
        return data[:at] + rng.choice([b"1" * 5000, b"[" * 100_000]) + data[at:]
    return data


def write(root: Path, name: str, content: bytes) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(content)


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 300)
@pytest.mark.parametrize("name", FILES)
def test_mutated_annotation_files_give_a_benchmark_or_a_sentence(tmp_path, name):
    seed, end, outcomes = 0, time.monotonic() + SECONDS / len(FILES), Counter[str]()
    while time.monotonic() < end:
        seed += 1
        rng = random.Random(seed)
        for file, content in FILES[name].items():
            write(tmp_path, file, mutated(content, rng) if rng.random() < 0.6 else json.dumps(content).encode())
        try:
            outcomes[type(load_benchmark(name, tmp_path)).__name__] += 1
        except BenchmarkError as error:
            assert str(error) and "\n" not in str(error) and len(str(error)) < 1000, f"seed {seed}: {error!r}"
            outcomes["refused"] += 1
        except Exception as error:
            pytest.fail(f"seed {seed}: {type(error).__name__}: {error}")
    assert set(outcomes) == {Benchmark.__name__, "refused"} and min(outcomes.values()) > 10, outcomes
