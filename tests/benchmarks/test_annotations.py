"""Annotation files that lie: a benchmark or one sentence that names file, record and key, never anything else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cirlib.benchmarks import Benchmark, BenchmarkError, load_benchmark

CAPTIONS, SPLIT = "captions/cap.dress.val.json", "image_splits/split.dress.val.json"
QUERY = {"target": "dress-val-2", "candidate": "dress-val-0", "captions": ["is blue", "has dots"]}


def load(root: Path) -> Benchmark:
    return load_benchmark("fashioniq", root, category="dress")


def refusal(root: Path) -> str:
    with pytest.raises(BenchmarkError) as caught:
        load(root)
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"captions": []}, "record 1: 'captions' must have at least 1 item, found []."),
        ({"captions": "is blue"}, "record 1: 'captions' must be a valid array, found 'is blue'."),
        ({"captions": ["is blue", None]}, "record 1: 'captions.1' must be a valid string, found None."),
        ({"target": 7}, "record 1: 'target' must be a valid string, found 7."),
        ({"target": ""}, "record 1: 'target' must have at least 1 character, found ''."),
    ],
)
def test_a_wrong_record_is_refused_with_file_number_and_key(small_fashioniq, write_json, change, sentence):
    file = write_json(small_fashioniq / CAPTIONS, [QUERY, QUERY | change])
    assert refusal(small_fashioniq) == f"{file}, {sentence}"


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        (CAPTIONS, {"a": 1}, "must be a valid array, found {'a': 1}"),
        (CAPTIONS, ["a"], "record 0: must be an object, found 'a'"),
        (CAPTIONS, [{"candidate": "dress-val-0", "captions": ["a"]}], "record 0: 'target' is required"),
        (CAPTIONS, [], "holds no query"),
        (CAPTIONS, [QUERY | {"target": "dress-val-0"}], "1 queries have their own reference as a target"),
        (SPLIT, ["a", 3], "record 1: must be a valid string, found 3"),
        (SPLIT, ["a", "b", "a", "b"], "must appear once each: 2 do not, the first is 'a'"),
        (SPLIT, [], ": the gallery is empty"),
    ],
)
def test_a_file_of_the_wrong_shape_is_refused(small_fashioniq, write_json, file, content, sentence):
    write_json(small_fashioniq / file, content)
    said = refusal(small_fashioniq)
    assert (sentence in said and "cap.dress.val.json" in said) or file in said


@pytest.mark.parametrize(
    "content", [b'[\n  {"candidate": "a",\n  oops}\n]', b"\xff\xfe\x00[", b"[" * 100_000, b"[" + b"9" * 5000 + b"]"]
)
def test_what_is_no_json_is_refused(small_fashioniq, content):
    (small_fashioniq / CAPTIONS).write_bytes(content)
    said = refusal(small_fashioniq)
    assert "cap.dress.val.json" in said
    assert ("at line 3" in said) == (b"oops" in content)


@pytest.mark.parametrize("wrong", ["../../etc/passwd", "/etc/passwd", "dress-val-0\0", "drеss-val-0", "shirt-val-2"])
@pytest.mark.parametrize(("key", "role"), [("candidate", "references"), ("target", "targets")])
def test_a_query_of_an_image_outside_the_gallery_is_refused(small_fashioniq, write_json, wrong, key, role):
    write_json(small_fashioniq / CAPTIONS, [QUERY, QUERY | {key: wrong}])
    said = refusal(small_fashioniq)
    assert f"1 {role} are not in the split's gallery of 5 images" in said and "of query 'dress-val-1'" in said


@pytest.mark.parametrize("image", ["../secret", "/etc/passwd", "a/b", "a\\b", "..", "x\0y", "x" * 201])
def test_no_image_id_leads_out_of_the_images_folder(small_fashioniq, write_json, write_image, image):
    write_image(small_fashioniq / "secret.png")
    write_json(small_fashioniq / SPLIT, ["dress-val-0", image])
    assert "split.dress.val.json, record 1: must be a file name" in refusal(small_fashioniq)


@pytest.mark.parametrize("captions", [["one"], ["1", "2", "3", "4", "5"], ["", ""], ["word " * 10_000]])
def test_any_number_and_length_of_captions_is_read(small_fashioniq, write_json, captions):
    write_json(small_fashioniq / CAPTIONS, [QUERY | {"captions": captions}])
    assert load(small_fashioniq).triplets[0].captions == tuple(captions)


def test_the_same_triplet_twice_is_two_queries(small_fashioniq, write_json):
    write_json(small_fashioniq / CAPTIONS, [QUERY, QUERY])
    triplets = load(small_fashioniq).triplets
    assert len(triplets) == 2 and triplets[0].id != triplets[1].id


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
