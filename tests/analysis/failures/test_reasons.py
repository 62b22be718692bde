"""Why a query was missed, by true attributes and by likeness."""

from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from cirlib.analysis.failures.query_table import query_table
from cirlib.analysis.failures.reasons import REASONS, add_reasons, confusions, reason_table

IGNORED_EDIT, PART_OF_EDIT, IGNORED_REFERENCE, NEAR_MISS, ALSO_RIGHT, NEITHER = REASONS


def garment(colour="red", sleeves="long", neck="crew", fit="slim") -> dict[str, str]:
    return {"colour": colour, "sleeves": sleeves, "neck": neck, "fit": fit}


@pytest.fixture
def judged(make_store, tmp_path):
    """Scores with reasons; where each image lies in the two-tower space, and what it shows, may be given."""

    def judge(one, features: torch.Tensor | None = None, attributes: dict | None = None) -> pd.DataFrame:
        features = torch.randn(len(one.benchmark.gallery), 2) if features is None else features
        store = make_store(tmp_path / "clip", one.benchmark.gallery, features)
        return add_reasons(query_table([one]), SimpleNamespace(clip=store, attributes=attributes))

    return judge


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (garment(fit="wide"), IGNORED_EDIT),  # a look-alike of the reference
        (garment("green", "short"), NEAR_MISS),
        (garment("blue", "long"), NEAR_MISS),
        (garment("blue", "short", "boat"), NEAR_MISS),  # one thing more, that nobody spoke of
        (garment("blue", "short", "boat", "wide"), IGNORED_REFERENCE),
        (garment("blue", "long", "boat"), PART_OF_EDIT),
        (garment("blue", "long", "boat", "wide"), NEITHER),
        (garment("blue", "short"), ALSO_RIGHT),
    ],
)
def test_the_attributes_of_what_was_retrieved_give_the_reason(make_scored, judged, found, reason):
    known = {"hat-0": garment(), "hat-1": garment("blue", "short"), "hat-2": found}
    queries = judged(make_scored("m", "hat", [20], size=3), attributes=known)
    assert queries["reason"].tolist() == [reason]
    assert set(queries["likely_reason"]) <= set(REASONS)


def test_one_change_not_made_ignores_the_edit_and_is_no_near_miss(make_scored, judged):
    known = {"hat-0": garment(), "hat-1": garment("blue"), "hat-2": garment("green")}
    assert judged(make_scored("m", "hat", [20], size=3), attributes=known)["reason"].tolist() == [IGNORED_EDIT]


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ([0.4, 0.7], IGNORED_EDIT),
        ([0.6, 0.7], NEAR_MISS),
        ([0.9, 1.2], IGNORED_REFERENCE),
        ([0.1, 1.2], NEITHER),
    ],
)
def test_the_way_in_the_image_space_stands_in_for_attributes(make_scored, judged, found, reason):
    features = torch.tensor([[0.0, 0.0], [1.0, 0.0], found])  # reference, target, found
    queries = judged(make_scored("m", "hat", [20], size=3), features)
    assert queries["reason"].tolist() == queries["likely_reason"].tolist() == [reason]


def test_the_first_image_that_is_no_target_is_judged_and_what_another_asks_for_in_these_words_is_right(
    make_scored, judged
):
    captions = [("is dark blue",), ("Is dark BLUE.",), ("has dots",)]
    one = make_scored("m", "hat", [20, 20, 0], captions=captions, size=5)
    queries = judged(one, torch.tensor([[0.0], [1.0], [0.0], [5.0], [5.1]]))
    assert queries["found"].tolist() == ["hat-2", "hat-3", "hat-4"]
    assert queries["reason"].tolist()[0] == ALSO_RIGHT  # hat-2 is the second query's target
    assert queries["reason"].tolist()[1] != ALSO_RIGHT  # hat-3 is the third's, in other words


def test_the_table_of_reasons_counts_each_methods_misses_only():
    reasons = [NEITHER, IGNORED_EDIT, IGNORED_EDIT, NEAR_MISS]
    edit = {"method": ["sum"] * 4, "recall": [1, 0, 0.5, 0], "family": range(4)}
    queries = pd.DataFrame(edit | {"reason": reasons})
    table = reason_table(pd.concat([queries, queries.assign(method="slerp").tail(1)])).set_index(["method", "reason"])
    assert table.loc[("sum", IGNORED_EDIT), "misses"] == 2 and table.loc[("sum", NEITHER), "misses"] == 0
    assert table.loc["sum", "value"].sum() == pytest.approx(1) and table.loc[("slerp", NEAR_MISS), "value"] == 1
    assert table.loc["sum"].index.tolist() == list(REASONS)


def test_confusions_count_wanted_against_first_retrieved_and_leave_out_what_no_edit_changes(make_scored):
    one = make_scored("m", "hat", [20, 20, 20], size=5)  # first retrieved: hats 2, 3, 4; wanted: 1, 2, 3
    colours = ["red", "blue", "blue", None, "red"]
    known = {f"hat-{i}": {"colour": c, "kind": "hat"} for i, c in enumerate(colours)}
    tables = confusions(query_table([one]), known)
    assert list(tables) == ["colour"]
    assert confusions(query_table([one]), {}) == {}  # as in FashionIQ, of whose pictures nothing is known
    assert tables["colour"].loc["blue", "blue"] == 1  # hat-1 wanted, hat-2 found
    assert tables["colour"].loc["blue", "none"] == 1 and tables["colour"].loc["none", "red"] == 1
    assert tables["colour"].to_numpy().sum() == 3
