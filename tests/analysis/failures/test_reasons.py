"""Why a query was missed, by true attributes and by likeness."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from cirlib.analysis.failures import reasons
from cirlib.analysis.failures.reasons import (
    ALSO_RIGHT,
    IGNORED_EDIT,
    IGNORED_REFERENCE,
    NEAR_MISS,
    NEITHER,
    PART_OF_EDIT,
    agreeing,
    agreement,
    attribute_reason,
    by_attributes,
    by_likeness,
    confusions,
    first_wrong,
    reason_table,
    word_overlap,
)


def garment(colour="red", sleeves="long", neck="crew", fit="slim") -> dict[str, str]:
    return {"colour": colour, "sleeves": sleeves, "neck": neck, "fit": fit}


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (garment(), IGNORED_EDIT),  # the reference
        (garment(fit="wide"), IGNORED_EDIT),  # its look-alike
        (garment("green", "short"), NEAR_MISS),
        (garment("blue", "long"), NEAR_MISS),
        (garment("blue", "short", "boat"), NEAR_MISS),  # one thing more, that nobody spoke of
        (garment("blue", "short", "boat", "wide"), IGNORED_REFERENCE),
        (garment("blue", "long", "boat"), PART_OF_EDIT),
        (garment("blue", "long", "boat", "wide"), NEITHER),
        (garment("blue", "short"), ALSO_RIGHT),
    ],
)
def test_the_attributes_of_what_was_retrieved_give_the_reason(found, reason):
    assert attribute_reason(garment(), garment("blue", "short"), found) == reason


def test_one_change_not_made_ignores_the_edit_and_is_no_near_miss():
    assert attribute_reason(garment(), garment("blue"), garment("green")) == IGNORED_EDIT


def test_the_judge_looks_at_the_first_image_that_is_no_target(make_scored):
    one = make_scored("m", "hat", [20, 20], size=5)
    assert first_wrong(one) == ["hat-2", "hat-3"]
    attributes = {f"hat-{i}": garment(colour) for i, colour in enumerate(["red", "blue", "red", "green", "black"])}
    assert by_attributes(attributes)(one) == [IGNORED_EDIT, IGNORED_EDIT]


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ([0.1, 0.1], IGNORED_EDIT),
        ([0.9, 0.1], NEAR_MISS),
        ([0.9, 1.2], IGNORED_REFERENCE),
        ([0.1, 1.2], NEITHER),
        ([0.4, 0.7], IGNORED_EDIT),
        ([0.6, 0.7], NEAR_MISS),
    ],
)
def test_the_way_in_the_image_space_stands_in_for_attributes(make_scored, make_store, tmp_path, found, reason):
    one = make_scored("m", "hat", [20], size=3)
    features = torch.tensor([[0.0, 0.0], [1.0, 0.0], found])  # reference, target, found
    assert by_likeness(make_store(tmp_path / "clip", one.benchmark.gallery, features))(one) == [reason]


def test_what_another_query_asks_for_in_the_same_words_is_right_too(make_scored, make_store, tmp_path):
    one = make_scored("m", "hat", [20, 20], captions=[("is dark blue",), ("is dark blue",)], size=4)
    store = make_store(tmp_path / "clip", one.benchmark.gallery, torch.tensor([[0.0], [1.0], [0.0], [5.0]]))
    assert one.top[0][0] == one.benchmark.triplets[1].targets[0] == "hat-2"
    assert by_likeness(store)(one)[0] == ALSO_RIGHT


def test_agreement_is_said_as_a_share_and_beyond_chance():
    assert agreeing([[NEITHER, NEAR_MISS]], [[NEITHER, NEAR_MISS]]) == (1.0, 1.0)
    assert agreeing([[NEITHER, NEAR_MISS] * 2], [[NEITHER, NEITHER, NEAR_MISS, NEAR_MISS]]) == (0.5, 0.0)


def test_words_overlap_by_their_share_of_all():
    assert word_overlap(["is red"], ["Is RED."]) == 1
    assert word_overlap(["is red"], ["is blue"]) == pytest.approx(1 / 3)
    assert word_overlap([], []) == 0


def test_the_table_of_reasons_counts_misses_only(make_scored):
    one = make_scored("m", "hat", [0, 20, 30, 40])
    table = reason_table([one], [[NEITHER, IGNORED_EDIT, IGNORED_EDIT, NEAR_MISS]]).set_index("reason")
    assert table.loc[IGNORED_EDIT, "misses"] == 2 and table.loc[NEITHER, "misses"] == 0
    assert table["value"].sum() == pytest.approx(1)
    assert table.index.tolist() == list(reasons.REASONS)
    assert reason_table([make_scored("m", "hat", [0])], [[NEITHER]]).empty


def test_agreement_crosses_true_and_estimated_reasons():
    table = agreement([[NEITHER, NEAR_MISS], [NEITHER]], [[NEITHER, NEITHER], [IGNORED_EDIT]])
    assert table.loc[NEITHER, NEITHER] == 1 and table.loc[NEAR_MISS, NEITHER] == 1
    assert table.to_numpy().sum() == 3


def test_confusions_count_wanted_against_first_retrieved_and_leave_out_what_no_edit_changes(make_scored):
    one = make_scored("m", "hat", [20, 20, 20], size=5)  # first retrieved: hats 2, 3, 4; wanted: 1, 2, 3
    colours = ["red", "blue", "blue", None, "red"]
    tables = confusions([one], {f"hat-{i}": {"colour": c, "kind": "hat"} for i, c in enumerate(colours)})
    assert list(tables) == ["colour"]
    assert tables["colour"].loc["blue", "blue"] == 1  # hat-1 wanted, hat-2 found
    assert tables["colour"].loc["blue", "none"] == 1 and tables["colour"].loc["none", "red"] == 1
    assert tables["colour"].to_numpy().sum() == 3


def test_the_judge_of_drawn_garments_never_needs_the_towers():
    """The towers are loaded only where they decide."""
    judge = by_attributes({})
    assert judge(SimpleNamespace(benchmark=SimpleNamespace(triplets=[]), top=[])) == []
