"""Named protocols and how captions become text."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from cirlib.benchmarks import (
    PROTOCOLS,
    BenchmarkError,
    EvaluationProtocol,
    get_protocol,
    join_captions,
    load_benchmark,
    sample_join,
)

TWO = ["is Blue.", " has long sleeves, "]


@pytest.mark.parametrize(
    ("style", "texts"),
    [
        ("and", ("Is blue and has long sleeves",)),
        ("both_orders", ("is Blue and has long sleeves", "has long sleeves and is Blue")),
        ("first", ("is Blue",)),
        (
            "template",
            (
                "a photo of something that is Blue and has long sleeves",
                "a photo of something that has long sleeves and is Blue",
            ),
        ),
    ],
)
def test_two_captions_are_joined_as_the_style_says(style, texts):
    assert join_captions(TWO, style) == texts


def test_the_and_style_is_clip4cirs_formula():
    cap1, cap2 = "  is SHORTER, ", "Has a V-neck?"
    theirs = f"{cap1.strip('.?, ').capitalize()} and {cap2.strip('.?, ')}"
    assert join_captions([cap1, cap2], "and") == (theirs,)


@pytest.mark.parametrize("captions", [["", "is blue"], ["is blue", " . "], ["is blue"]])
@pytest.mark.parametrize(
    ("style", "text"),
    [
        ("and", "Is blue"),
        ("both_orders", "is blue"),
        ("first", "is blue"),
        ("template", "a photo of something that is blue"),
    ],
)
def test_an_empty_caption_is_dropped(captions, style, text):
    assert join_captions(captions, style) == (text,)


@pytest.mark.parametrize("style", ["and", "both_orders", "first", "template"])
def test_nothing_but_empty_captions_gives_one_empty_text(style):
    assert join_captions(["", " "], style) == ("",)


def test_identical_captions_give_one_order():
    assert join_captions(["is red", "is red"], "both_orders") == ("is red and is red",)


def test_more_than_two_captions_are_all_joined():
    assert join_captions(["a", "b", "c"], "both_orders") == ("a and b and c", "c and b and a")


def test_an_unknown_style_is_refused_with_those_allowed():
    with pytest.raises(BenchmarkError, match=r"'or': allowed are and, both_orders, first, template"):
        join_captions(TWO, "or")


@pytest.mark.parametrize("rng", [np.random.default_rng(0), random.Random(0)])
def test_training_texts_are_drawn_in_four_equal_parts(rng):
    counts = Counter(sample_join(["is red", "has dots"], rng) for _ in range(8_000))
    assert set(counts) == {"Is red and has dots", "Has dots and is red", "Is red", "Has dots"}
    assert all(abs(count - 2_000) < 200 for count in counts.values())


def test_training_texts_are_repeatable():
    def draw():
        rng = np.random.default_rng(3)
        return [sample_join(TWO, rng) for _ in range(20)]

    assert draw() == draw()


def test_training_texts_drop_empty_captions():
    rng = np.random.default_rng(0)
    assert {sample_join(["", "is red"], rng) for _ in range(50)} == {"Is red"}
    assert sample_join(["", ""], rng) == ""


def test_every_protocol_is_listed_under_its_name_with_who_uses_it():
    assert {"clip4cir", "searle", "pic2word", "magiclens", "covr", "val_split"} <= PROTOCOLS.keys()
    for name, protocol in PROTOCOLS.items():
        assert protocol.name == name
        assert protocol.used_by


def test_protocols_differ_in_what_the_papers_differ_in():
    assert get_protocol("covr").reference == "removed"
    assert get_protocol("clip4cir").reference == "kept"
    assert get_protocol("val_split").gallery == "val_split"
    assert get_protocol("searle").captions == "template"


def test_a_protocols_gallery_is_one_that_the_loader_takes(small_fashioniq):
    for protocol in PROTOCOLS.values():
        assert load_benchmark("fashioniq", small_fashioniq, protocol=protocol.gallery).triplets


def test_unknown_protocols_and_parts_are_refused():
    with pytest.raises(BenchmarkError, match="Unknown protocol 'mine': allowed are clip4cir"):
        get_protocol("mine")
    with pytest.raises(BenchmarkError, match="Unknown reference 'gone': allowed are kept, removed"):
        EvaluationProtocol("mine", "original", "gone", "and")
    with pytest.raises(BenchmarkError, match="Unknown gallery 'half'"):
        EvaluationProtocol("mine", "half", "kept", "and")
    with pytest.raises(BenchmarkError, match="Unknown caption style 'or'"):
        EvaluationProtocol("mine", "original", "kept", "or")
