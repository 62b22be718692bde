"""Annotation files that lie: a benchmark or one sentence that names the file, never anything else."""

from __future__ import annotations

import copy
import json
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cirlib.benchmarks import Benchmark, BenchmarkError, load_benchmark

SECONDS = float(os.environ.get("CIRLIB_FUZZ_SECONDS", "60"))
CAPTIONS, SPLIT = "captions/cap.dress.val.json", "image_splits/split.dress.val.json"
QUERY = {"target": "dress-val-2", "candidate": "dress-val-0", "captions": ["is blue", "has dots"]}


def load(root: Path) -> Benchmark:
    return load_benchmark("fashioniq", root, split="val", category="dress")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"captions": []}, "'captions' must be a list of one or more texts"),
        ({"captions": "is blue"}, "'captions' must be a list of one or more texts"),
        ({"captions": [1, 2]}, "'captions' must be a list of one or more texts"),
        ({"candidate": "../../etc/passwd"}, "is not"),
        ({"candidate": "/etc/passwd"}, "is not"),
        ({"candidate": "dress-val-0\0"}, "not in the split's gallery"),
        ({"candidate": "drеss-val-0"}, "not in the split's gallery"),  # a Cyrillic е
        ({"target": 7}, "'target' must be a non-empty text"),
        ({"target": "shirt-val-2"}, "not in the split's gallery"),
    ],
)
def test_a_wrong_entry_is_refused_with_its_file(small_fashioniq, write_json, change, told):
    file = write_json(small_fashioniq / CAPTIONS, [QUERY | change])
    with pytest.raises(BenchmarkError) as caught:
        load(small_fashioniq)
    assert told in str(caught.value) or "not in the split's gallery" in str(caught.value)
    assert file.name in str(caught.value)


@pytest.mark.parametrize("captions", [["one"], ["1", "2", "3", "4", "5"], ["", ""], ["word " * 10_000]])
def test_any_number_and_length_of_captions_is_read(small_fashioniq, write_json, captions):
    write_json(small_fashioniq / CAPTIONS, [QUERY | {"captions": captions}])
    assert load(small_fashioniq).triplets[0].captions == tuple(captions)


def test_the_same_triplet_twice_is_two_queries(small_fashioniq, write_json):
    write_json(small_fashioniq / CAPTIONS, [QUERY, QUERY])
    triplets = load(small_fashioniq).triplets
    assert len(triplets) == 2 and triplets[0].id != triplets[1].id


@pytest.mark.parametrize("image", ["../secret", "/etc/passwd", "a/b", "a\\b", "..", "x\0y"])
def test_no_image_id_leads_out_of_the_images_folder(small_fashioniq, write_json, write_image, image):
    write_image(small_fashioniq / "secret.png")
    write_json(small_fashioniq / SPLIT, [image, "dress-val-0", "dress-val-2"])
    with pytest.raises(BenchmarkError, match=r"split\.dress\.val\.json.* is no file name"):
        load(small_fashioniq)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=ANYTHING, file=st.sampled_from([CAPTIONS, SPLIT]))
def test_whatever_json_a_file_holds_loading_gives_a_benchmark_or_a_sentence(small_fashioniq, content, file):
    path = small_fashioniq / file
    before = path.read_bytes()
    try:
        path.write_text(json.dumps(content))
        assert isinstance(load(small_fashioniq), Benchmark)
    except BenchmarkError as error:
        assert "\n" not in str(error)
    finally:
        path.write_bytes(before)


def mutated(content: Any, rng: random.Random) -> bytes:
    """A file of the real form with something wrong: in its values, its keys, or its bytes."""
    tree, odd = (
        copy.deepcopy(content),
        [None, -1, 1e400, "", "\0", "../x", "é" * 300, [], {}, ["a"] * 9, True, "\ud800"],
    )
    for _ in range(rng.randint(1, 4)):
        place = rng.choice(tree) if tree else tree
        if isinstance(place, dict) and place:
            key = rng.choice(list(place))
            if rng.random() < 0.3:
                place[rng.choice(["x", "captions", "target"])] = place.pop(key)
            else:
                place[key] = rng.choice(odd)
        elif tree:
            tree[rng.randrange(len(tree))] = rng.choice(odd)
    data = bytearray(json.dumps(tree).encode())
    for _ in range(rng.choice([0, 0, 1, 5])):
        if data:
            data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data[: rng.randrange(len(data) + 1)] if rng.random() < 0.2 else data)


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 300)
def test_mutated_annotation_files_give_a_benchmark_or_a_sentence(small_fashioniq):
    """As many as fit into CIRLIB_FUZZ_SECONDS (60); the seed of a failure is in its message."""
    contents = {file: json.loads((small_fashioniq / file).read_text()) for file in (CAPTIONS, SPLIT)}
    seed, end, outcomes = 0, time.monotonic() + SECONDS, {"loaded": 0, "refused": 0}
    while time.monotonic() < end:
        seed += 1
        rng = random.Random(seed)
        for file, content in contents.items():
            (small_fashioniq / file).write_bytes(
                mutated(content, rng) if rng.random() < 0.7 else json.dumps(content).encode()
            )
        try:
            load(small_fashioniq)
            outcomes["loaded"] += 1
        except BenchmarkError as error:
            assert str(error) and "\n" not in str(error), f"seed {seed}: {error!r}"
            outcomes["refused"] += 1
        except Exception as error:
            pytest.fail(f"seed {seed}: {type(error).__name__}: {error}")
    assert min(outcomes.values()) > 10, outcomes
