"""Annotation files that lie: one sentence that names file, record and key, never anything else."""

from __future__ import annotations

from pathlib import Path

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
        (CAPTIONS, [QUERY, QUERY | {"captions": []}], ", 1, captions: List should have at least 1 item"),
        (CAPTIONS, [QUERY | {"captions": ["", None]}], ", 0, captions, 1: Input should be a valid string, found None."),
        (CAPTIONS, [QUERY | {"target": ""}], ", 0, target: String should have at least 1 character"),
        (CAPTIONS, [{"candidate": "dress-val-0", "captions": ["a"]}], ", 0, target: Field required"),
        (CAPTIONS, {"a": 1}, ": Input should be a valid array, found {'a': 1}"),
        (CAPTIONS, [], ": holds no query"),
        (CAPTIONS, [QUERY | {"target": "dress-val-0"}], "1 queries have their own reference as a target"),
        (SPLIT, ["a", 3], ", 1: Input should be a valid string, found 3"),
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


@pytest.mark.parametrize("image", ["../secret", "/etc/passwd", "a/b", "a\\b", "..", "x\0y", "x" * 201, ""])
def test_no_image_id_leads_out_of_the_images_folder(small_fashioniq, write_json, image):
    write_json(small_fashioniq / SPLIT, ["dress-val-0", image])
    assert "is no file name" in refusal(small_fashioniq)


@pytest.mark.parametrize("captions", [["one"], ["1", "2", "3", "4", "5"], ["", ""], ["word " * 10_000]])
def test_any_number_and_length_of_captions_is_read_and_the_same_triplet_twice(small_fashioniq, write_json, captions):
    write_json(small_fashioniq / CAPTIONS, [QUERY | {"captions": captions}] * 2)
    first, second = load(small_fashioniq).triplets
    assert first.captions == second.captions == tuple(captions) and first.id != second.id
