"""Named protocols and how captions become text."""

import random
from collections import Counter

import numpy as np
import pytest

from cirlib.benchmarks import PROTOCOLS, BenchmarkError, join_captions, load_benchmark, query_texts, sample_join
from cirlib.benchmarks.caption_joining import clean_caption
from cirlib.benchmarks.protocols import REFERENCES

TWO = ["is Blue.", " has long sleeves, "]


STYLES = {  # what "is Blue" and "has long sleeves" become, and "is blue" beside nothing
    "both_orders": (("is Blue and has long sleeves", "has long sleeves and is Blue"), "is blue"),
    "first": (("is Blue",), "is blue"),
    "template": (
        tuple(
            f"a photo of something that {o}" for o in ("is Blue and has long sleeves", "has long sleeves and is Blue")
        ),
        "a photo of something that is blue",
    ),
}


@pytest.mark.parametrize("style", STYLES)
def test_captions_are_joined_as_the_style_says_and_empty_ones_dropped(style):
    two, one = STYLES[style]
    assert join_captions(TWO, style) == two
    for captions in (["", "is blue"], ["is blue", " . "], ["is blue"]):
        assert join_captions(captions, style) == (one,)
    assert join_captions(["", " "], style) == ("",)


@pytest.mark.parametrize(("cap1", "cap2"), [("  is SHORTER, ", "Has a V-neck?"), ("", "is blue"), ("Is blue", ".")])
def test_the_and_style_is_clip4cirs_formula(cap1, cap2):
    theirs = f"{cap1.strip('.?, ').capitalize()} and {cap2.strip('.?, ')}"
    assert join_captions([cap1, cap2], "and") == (theirs,)
    assert join_captions([cap1], "and") == (cap1.strip(".?, ").capitalize(),)
    assert join_captions(["", " "], "and") == ("",)


def test_raw_captions_stay_as_they_are_written(real_data):
    assert join_captions([" Fewer, towels. ", "IS red"], "raw") == (" Fewer, towels.  and IS red",)
    assert join_captions([""], "raw") == ("",)
    cirr = load_benchmark("cirr", real_data("cirr"))
    assert query_texts(cirr, "raw")[0] == [triplet.captions[0] for triplet in cirr.triplets]


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("Is blue. it's LONG", "is blue it's long"),
        ("a (v-neck); red:*white* ~ #1!", "a v-neck red white 1"),
        ('"Live", and more\n', "live , and more"),
        ("word " * 60, " ".join(["word"] * 50)),
    ],
)
def test_texts_for_blip2_are_cleaned_as_lavis_does(text, clean):
    assert clean_caption(text) == clean


def lavis(text: str) -> str:
    blanks = str.maketrans(dict.fromkeys('.!"()*#:;~', " "))
    return " ".join(text.lower().translate(blanks).split()[:50])


@pytest.mark.parametrize("split", ["train", "val"])
def test_every_real_text_reaches_blip2_as_sprc_and_covr_join_and_clean_it(real_data, split):
    part = load_benchmark("fashioniq", real_data("fashioniq"), split=split)
    for triplet in part.triplets:
        first, second = (caption.strip(".?, ") for caption in triplet.captions)
        sprc, covr = (clean_caption(join_captions(triplet.captions, style)[0]) for style in ("and", "raw"))
        assert sprc == lavis(f"{first.capitalize()} and {second}")
        assert covr == lavis(" and ".join(triplet.captions))
    assert len(part.triplets) == {"train": 18_000, "val": 6_016}[split]


@pytest.mark.parametrize("split", ["val", "test1"])
def test_every_real_caption_of_cirr_is_cleaned_as_in_lavis(real_data, split):
    for triplet in load_benchmark("cirr", real_data("cirr"), split=split).triplets:
        assert clean_caption(join_captions(triplet.captions, "raw")[0]) == lavis(triplet.captions[0])


def test_identical_captions_give_one_order():
    assert join_captions(["is red", "is red"], "both_orders") == ("is red and is red",)


def test_an_unknown_style_is_refused_with_those_allowed():
    with pytest.raises(BenchmarkError, match=r"'or': allowed are and, both_orders, first, template"):
        join_captions(TWO, "or")


@pytest.mark.parametrize("rng", [np.random.default_rng(0), random.Random(0)])
def test_training_texts_are_drawn_in_four_equal_parts(rng):
    counts = Counter(sample_join(["is red", "has dots"], rng) for _ in range(8_000))
    assert set(counts) == {"Is red and has dots", "Has dots and is red", "Is red", "Has dots"}
    assert all(abs(count - 2_000) < 200 for count in counts.values())


def test_training_texts_drop_empty_captions():
    rng = np.random.default_rng(0)
    assert {sample_join(["", "is red"], rng) for _ in range(50)} == {"Is red"}
    assert sample_join(["", ""], rng) == ""


def test_a_protocols_parts_are_ones_that_the_loader_and_the_scores_take(small_fashioniq):
    for protocol in PROTOCOLS.values():
        part = load_benchmark("fashioniq", small_fashioniq, protocol=protocol.gallery)
        assert query_texts(part, protocol.captions)[1].max() == 5
        assert protocol.reference in REFERENCES
