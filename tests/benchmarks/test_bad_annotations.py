"""Annotation files that lie: a benchmark or one sentence that names the file, never anything else."""

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
