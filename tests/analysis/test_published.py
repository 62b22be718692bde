"""The table of published numbers and ours: nothing appears as ours that was not measured, and on what."""

import pandas as pd
import pytest

from cirlib.analysis.tables.published import PUBLISHED, paper_vs_ours
from cirlib.study.method_registry import METHODS


@pytest.fixture
def summary() -> pd.DataFrame:
    rows = [
        {"method": "qformer", "category": category, "metric": metric, "value": value, "ci_low": value - 0.02,
         "ci_high": value + 0.02, "protocol": "original gallery, reference removed", "complete": True}
        for category, add in (("dress", -0.1), ("shirt", 0.1), ("mean", 0.0))
        for metric, value in (("recall@1", 0.2 + add), ("recall@10", 0.5 + add), ("recall@50", 0.7 + add))
    ]  # fmt: skip
    return pd.DataFrame(rows)


def ours(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["source"] == "ours"].set_index("method")


def test_measured_rows_stand_beside_the_published_ones_and_the_rest_is_not_run(summary):
    table = paper_vs_ours(summary, "fashioniq")
    always = [method for method in METHODS.values() if method.made_by is None]
    assert table["source"].value_counts().to_dict() == {"published": 18, "ours": len(always), "paper": 3}
    row = ours(table).loc["Q-Former"]
    numbers = ["recall@10", "recall@50", "recall@10/ci_low", "dress/recall@10"]
    assert row[numbers].tolist() == [0.5, 0.7, 0.48, 0.4]
    rest = ours(table).drop("Q-Former")
    assert rest["recall@10"].isna().all() and set(rest["protocol"]) == {"not run"}


def test_methods_that_were_asked_for_and_ones_own_stand_there_where_they_ran(summary):
    more = [summary.assign(method=name) for name in ("combiner", "my_method")]
    found = ours(paper_vs_ours(pd.concat([summary, *more]), "fashioniq"))
    assert found.loc[["Q-Former", "Combiner", "my method"], "recall@10"].tolist() == [0.5] * 3
    assert found.loc[["Q-Former", "Combiner", "my method"], "trained"].tolist() == [True, True, False]


def test_another_studys_numbers_never_stand_as_fashioniqs(summary):
    table = paper_vs_ours(summary, "garments")
    assert set(ours(table)["data"]) == {"garments"}
    assert set(table.loc[table["source"] != "ours", "data"]) == {"fashioniq"}
    assert ours(table)["recall@10"].dropna().index.tolist() == ["Q-Former"]


def test_zero_shot_and_trained_are_told_apart_and_a_range_stays_one():
    table = paper_vs_ours(pd.DataFrame(columns=["method", "metric"]), "fashioniq").set_index("method")
    assert table.loc[["SPRC (BLIP-2 ViT-g)", "CLIP4Cir v3", "Q-Former", "Retrieval-DPO"], "trained"].all().all()
    assert not table.loc[["Pic2Word (L)", "CLIP ViT-L, text only", "slerp"], "trained"].any()
    ranged = table.loc["separate encoders (20 to 25 %)"]
    assert ranged[["recall@10/from", "recall@10/to"]].tolist() == [0.2, 0.25] and pd.isna(ranged["recall@10"])


def test_numbers_of_an_incomplete_study_say_so(summary):
    row = ours(paper_vs_ours(summary.assign(complete=False), "fashioniq")).loc["Q-Former"]
    assert row["protocol"].endswith(", incomplete")


def test_the_papers_claims_are_as_published():
    table = pd.read_csv(PUBLISHED).set_index("method")
    claim = table.loc["BLIP-2 with a fine-tuned Q-Former"]
    assert claim[["shirt/recall@10", "dress/recall@10", "toptee/recall@10"]].tolist() == [0.456, 0.401, 0.504]
    assert claim[["shirt/recall@10", "dress/recall@10", "toptee/recall@10"]].mean() == pytest.approx(0.454, abs=5e-4)
    assert table["recall@10"].dropna().between(0, 1).all() and (table["recall@50"].dropna() > 0.1).all()


@pytest.mark.parametrize("study", ["fashioniq_sprc", "sprc_released"])
def test_sprcs_studies_are_on_fashioniqs_own_pictures(summary, study):
    assert set(paper_vs_ours(summary, study)["data"]) == {"fashioniq"}
