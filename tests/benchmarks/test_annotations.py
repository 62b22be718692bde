"""Annotation files that lie: one sentence that names file, record and key, never anything else."""

import json
import random
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from cirlib.benchmarks import Benchmark, BenchmarkError, load_benchmark

CAPTIONS, SPLIT = "captions/cap.dress.val.json", "image_splits/split.dress.val.json"
QUERY = {"target": "dress-val-2", "candidate": "dress-val-0", "captions": ["is blue", "has dots"]}


def load(root: Path) -> Benchmark:
    return load_benchmark("fashioniq", root, category="dress")


def refusal(root: Path) -> str:
    with pytest.raises(BenchmarkError) as caught:
        load(root)
    assert "dress.val.json" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        (CAPTIONS, [QUERY, QUERY | {"captions": []}], ", record 1, 'captions': List should have at least 1 item"),
        (
            CAPTIONS,
            [QUERY | {"captions": ["", None]}],
            ", record 0, 'captions', 1: Input should be a valid string, found None.",
        ),
        (CAPTIONS, [QUERY | {"target": ""}], ", record 0, 'target': String should have at least 1 character"),
        (CAPTIONS, [{"candidate": "dress-val-0", "captions": ["a"]}], ", record 0, 'target': Field required"),
        (CAPTIONS, {"a": 1}, ": Input should be a valid array, found {'a': 1}"),
        (CAPTIONS, [], ": holds no query"),
        (CAPTIONS, [QUERY | {"target": "dress-val-0"}], "1 queries have their own reference as a target"),
        (SPLIT, ["a", 3], ", record 1: Input should be a valid string, found 3"),
        (SPLIT, ["a", "b", "a"], "'a' appears 2 times"),
        (SPLIT, [], "outside the gallery of 0"),
    ],
)
def test_what_is_wrong_is_said_with_file_number_and_key(small_fashioniq, write_json, file, content, sentence):
    write_json(small_fashioniq / file, content)
    assert sentence in refusal(small_fashioniq)


@pytest.mark.parametrize(
    "content", [b'[\n  {"candidate": "a",\n  oops}\n]', b"\xff\xfe\x00[", b"[" * 100_000, b"[" + b"9" * 5000 + b"]"]
)
def test_what_is_no_json_is_refused(small_fashioniq, content):
    (small_fashioniq / CAPTIONS).write_bytes(content)
    assert ("at line 3" in refusal(small_fashioniq)) == (b"oops" in content)


@pytest.mark.parametrize("wrong", ["../../etc/passwd", "dress-val-0\0", "drеss-val-0", "shirt-val-2"])
@pytest.mark.parametrize("key", ["candidate", "target"])
def test_a_query_of_an_image_outside_the_gallery_is_refused(small_fashioniq, write_json, wrong, key):
    write_json(small_fashioniq / CAPTIONS, [QUERY, QUERY | {key: wrong}])
    assert "1 queries name images outside the gallery of 5, as 'dress-val-1 names " in refusal(small_fashioniq)


@pytest.mark.parametrize(
    "image", ["../secret", "/etc/passwd", "a//b", "a/./b", "a/", "a\\b", "..", "x\0y", "x" * 201, ""]
)
def test_no_image_id_leads_out_of_the_images_folder(small_fashioniq, write_json, image):
    write_json(small_fashioniq / SPLIT, ["dress-val-0", image])
    assert "is no path of a file" in refusal(small_fashioniq)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_does_not_count(small_fashioniq, encoding):
    for file in (CAPTIONS, SPLIT):
        text = (small_fashioniq / file).read_text(encoding="utf-8")
        (small_fashioniq / file).write_text(text.replace("is blue", "est bleuté 青"), encoding=encoding)
    assert load(small_fashioniq).triplets[0].captions[0] == "est bleuté 青."


@pytest.mark.parametrize("captions", [["one"], ["1", "2", "3", "4", "5"], ["", ""], ["word " * 10_000]])
def test_any_number_and_length_of_captions_is_read_and_the_same_triplet_twice(small_fashioniq, write_json, captions):
    write_json(small_fashioniq / CAPTIONS, [QUERY | {"captions": captions}] * 2)
    first, second = load(small_fashioniq).triplets
    assert first.captions == second.captions == tuple(captions) and first.id != second.id


# ------------------------------------------------------------------ anything at all
IDS = [f"dev-{i}" for i in range(8)]
REAL: dict[str, dict[str, Any]] = {
    "custom": {
        "captions/cap.hat.val.json": [
            {"target": IDS[i + 1], "candidate": IDS[i], "captions": ["red"]} for i in range(4)
        ],
        "image_splits/split.hat.val.json": IDS,
    },
    "cirr": {
        "captions/cap.rc2.val.json": [
            {"pairid": i, "reference": IDS[i], "target_hard": IDS[i + 1], "caption": "red", "img_set": {"members": IDS}}
            for i in range(4)
        ],
        "image_splits/split.rc2.val.json": {image: f"./dev/{image}.png" for image in IDS},
    },
    "circo": {
        "annotations/val.json": [
            {"id": i, "reference_img_id": i, "relative_caption": "red", "gt_img_ids": [i + 1, i + 2]} for i in range(4)
        ],
        "annotations/image_info_unlabeled2017.json": {"images": [{"id": i} for i in range(8)]},
    },
}
ODD = [
    None, True, -1, 0.5, 10**20, float("inf"), float("nan"), "", "1", "\0", "../x", "/etc/passwd", "é" * 300, "\ud800",
    "dеv-1", "word " * 10_000, [], {}, [[]], [1, 1], ["a"] * 9, {"a": 1},
]  # fmt: skip


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every list or object in a tree of JSON with every index or key of it."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield tree, key
        yield from places(value)


def mutated(content: Any, rng: random.Random) -> bytes:
    """The file with a value replaced or left out, and perhaps a byte overwritten, cut or made long."""
    tree = {"": deepcopy(content)}
    inner, key = rng.choice(list(places(tree)))
    if key != "" and rng.random() < 0.3:
        del inner[key]
    else:
        inner[key] = rng.choice(ODD)
    data = json.dumps(tree[""]).encode()
    at = rng.randrange(len(data))
    spoilt = [data[:at], data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :], data[:at] + b"1" * 5000 + data[at:]]
    return rng.choice(spoilt) if rng.random() < 0.2 else data


@pytest.mark.parametrize("name", REAL)
def test_whatever_the_files_hold_loading_gives_a_benchmark_or_a_sentence(tmp_path, name):
    outcomes = Counter[bool]()
    for seed in range(500):
        rng = random.Random(seed)
        for file, content in REAL[name].items():
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).write_bytes(mutated(content, rng) if rng.random() < 0.6 else json.dumps(content).encode())
        try:
            outcomes[isinstance(load_benchmark(name, tmp_path), Benchmark)] += 1
        except BenchmarkError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000, f"seed {seed}: {error!r}"
            outcomes[False] += 1
    assert min(outcomes[True], outcomes[False]) > 50, outcomes
