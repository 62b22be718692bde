"""What an edit speaks of, by the open list of words; checked on FashionIQ's real captions."""

import json

import pandas as pd
import pytest

from cirlib.analysis.failures.edit_kinds import LEXICON, manners, subjects


def unclassified(edits: list) -> float:
    return sum(not subjects(captions) for captions in edits) / len(edits)


@pytest.mark.parametrize(
    ("caption", "kinds"),
    [
        ("Is RED", ["colour"]),
        ("is tired", []),  # red inside another word
        ("is striped black", ["colour", "pattern"]),
        ("has a v-shaped neck", ["neckline"]),
        ("has short lace sleeves", ["sleeves", "fabric"]),
        ("is longer with short sleeves", ["sleeves", "length"]),
        ("is longer and sleeveless", ["sleeves", "length"]),
        ("has a vneckline and a collar", ["neckline"]),
        ("has a tunic length", ["length"]),
        ("is a tunic", ["garment type"]),
        ("is an A line dress", ["fit"]),
        ("has an animal print", ["pattern"]),
        ("has an animal on it", ["graphic"]),
    ],
)
def test_the_words_of_an_edit_tell_what_it_changes(caption, kinds):
    assert subjects([caption]) == kinds


@pytest.mark.parametrize(
    ("caption", "how"),
    [
        ("is blue, not red", ["negation"]),
        ("doesn’t have a collar", ["negation"]),
        ("is longer and darker", ["comparison"]),
        ("is not as long", ["negation", "comparison"]),
        ("is a nothing", []),
    ],
)
def test_the_words_of_an_edit_tell_how_it_is_put(caption, how):
    assert manners([caption]) == how


def test_the_kinds_of_all_captions_count_once_each_and_their_words_do_not_run_together():
    assert subjects(["is red with a logo", "is bright red", "has a belt"]) == ["colour", "graphic", "detail"]
    assert subjects(["is long", "sleeves are red"]) == ["colour", "sleeves", "length"]
    assert subjects([]) == manners([]) == []


def test_no_term_has_two_kinds():
    table = pd.read_csv(LEXICON)
    assert set(table["group"]) == {"subject", "manner"}
    for _, terms in table.groupby("group")["terms"]:
        terms = [term.strip() for line in terms for term in line.split(";")]
        assert len(terms) == len(set(terms))
        assert all(term == term.lower() and 1 <= len(term.split()) <= 3 for term in terms)


@pytest.mark.parametrize("data", ["fashioniq", "photos"])
def test_under_15_percent_of_real_edits_stay_unclassified(real_data, data):
    parts: dict[str, list] = {}
    for file in sorted((real_data(data) / "captions").glob("*.json")):
        edits = [record["captions"] for record in json.loads(file.read_text())]
        parts.setdefault(file.name.split(".")[1], []).extend(edits)
    for edits in parts.values():  # a category each
        assert unclassified(edits) < 0.15
