"""What was found: the sentences say what the tables hold, and no more."""

import pandas as pd

from cirlib.analysis.dpo.findings import findings

NONE = pd.DataFrame()
MEANS = ["method", "category", "metric", "value", "ci_low", "ci_high", "queries", "chance"]
SUMMARY = pd.DataFrame(
    [
        ["text_only", "mean", "recall@10", 0.1, 0.08, 0.12, 1000, 0.01],
        ["text_only", "mean", "recall@50", 0.7, 0.6, 0.8, 1000, 0.05],
        ["retrieval_dpo", "mean", "recall@10", 0.008, 0.004, 0.015, 1000, 0.01],
        ["retrieval_dpo_projection", "mean", "recall@10", 0.002, 0.0, 0.007, 1000, 0.01],
    ],
    columns=MEANS,
)
EFFECTS = pd.DataFrame(
    [
        ["change", "query_tower", "own start", "sum", "top", 0.45, -0.05, -0.08, -0.02],
        ["change", "query_tower", "own start", "qformer", "top", 0.04, 0.0, -0.01, 0.01],
        ["negatives", "random", "top", "sum", "query_tower", 0.45, 0.08, 0.05, 0.11],
        ["negatives", "random", "top", "text_only", "query_tower", 0.1, -0.04, -0.06, -0.02],
        ["negatives", "random", "top", "sum", "query_projection", 0.45, 0.01, -0.01, 0.03],
        ["objective", "dpo hinge", "dpo sigmoid on top", "sum", "query_tower", 0.45, 0.0, -0.01, 0.01],
    ],
    columns=["factor", "level", "against", "fusion", "within", "start", "difference", "ci_low", "ci_high"],
)


def test_the_own_runs_are_both_readings_and_below_chance_is_said_only_where_an_exact_interval_says_it():
    text = findings(SUMMARY, NONE, NONE, NONE)
    assert "10.0 % [8.0, 12.0] with the text alone" in text
    assert "0.80 % [0.40, 1.5] with Retrieval-DPO (cannot tell; guessing gives 1.0 %)" in text
    assert "0.20 % [0.0, 0.70] with Retrieval-DPO, projection only (below chance;" in text
    assert "70" not in text.replace("0.70", "")  # recall@50 is not asked for


def test_a_reason_is_told_by_place_with_its_interval_and_nothing_where_the_interval_holds_0():
    text = findings(SUMMARY, EFFECTS, NONE, NONE)
    assert "weighted sum starts at 45.0 %; DPO changes it by −5.0 [−8.0, −2.0] (query tower, top-k negatives)" in text
    assert "Q-Former, pretrained only starts at 4.0 %" in text  # not the fine-tuned one of the result table
    (line,) = (line for line in text.splitlines() if line.startswith("- random negatives"))
    assert line == (
        "- random negatives against top-k negatives: better: +8.0 [+5.0, +11.0] (weighted sum, query tower). "
        "worse: −4.0 [−6.0, −2.0] (text only, query tower). cannot be told from no difference in 1 of 3 places"
    )
    against = "DPO with hinge loss against DPO with sigmoid loss on top-k negatives"
    assert f"{against}: cannot be told from no difference in 1 of 1 places" in text


def test_mistakes_agree_between_repetitions_or_are_said_to_differ():
    rows = [("swapped", 1, "below chance"), ("swapped", 9, "cannot tell"), ("turned", 0, "below chance")]
    mistakes = pd.DataFrame(rows, columns=["mistake", "hits", "verdict"]).assign(queries=1000, chance=0.01)
    text = findings(SUMMARY, NONE, mistakes, NONE)
    assert "Of 1,000 queries guessing hits 10.0 on average" in text
    assert "- differs between repetitions: swapped (1 and 9 hits)" in text
    assert "- below chance: turned (0 hits)" in text


def test_second_trainings_are_told_against_what_they_are_held():
    row = {
        "method": "DPO",
        "against": "the Q-Former",
        "start": 0.5,
        "difference": 0.02,
        "ci_low": -0.01,
        "ci_high": 0.05,
    }
    text = findings(SUMMARY, NONE, NONE, pd.DataFrame([row]))
    assert text.endswith("From 50.0 %, in points of recall@10:\n- DPO against the Q-Former: +2.0 [−1.0, +5.0]")
