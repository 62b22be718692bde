"""Every table shown has one unit."""

import pandas as pd

from cirlib.retrieval.percent_tables import percent_table


def test_fractions_are_per_cent_differences_are_points_and_the_rest_is_as_it_was():
    table = pd.DataFrame(
        {
            "method": ["sum", "slerp"],
            "queries": [12, 9],
            "difference": [-0.05, None],
            "ci_low": [-0.1, None],
            "ci_high": [0.01, None],
            "p_holm": [0.123456, 1],
            "dev/recall@10": [0.5, 0.004],
            "chance": [0.01, 0.0034],
        }
    )
    shown = percent_table(table)
    assert shown.columns.tolist() == [
        "method", "queries", "difference (points)", "p holm", "dev/recall@10 (%)", "chance (%)"
    ]  # fmt: skip
    assert shown.loc[0].tolist() == ["weighted sum", "12", "−5.0 [−10.0, +1.0]", "0.1235", "50.0", "1.0"]
    assert shown.loc[1].tolist() == ["slerp", "9", "–", "1", "0.40", "0.34"]


def test_each_number_has_its_own_interval():
    numbers = {"recall@10": [0.3], "recall@10/ci_low": [0.2], "recall@10/ci_high": [0.4], "recall@50": [0.6]}
    assert percent_table(pd.DataFrame(numbers)).to_dict("records") == [
        {"recall@10 (%)": "30.0 [20.0, 40.0]", "recall@50 (%)": "60.0"}
    ]
    start = {"value": [0.5], "ci_low": [0.4], "ci_high": [0.6], "chance": [0.1]}
    assert percent_table(pd.DataFrame(start)).to_dict("records") == [
        {"value (%)": "50.0 [40.0, 60.0]", "chance (%)": "10.0"}
    ]


def test_a_table_without_rows_keeps_its_heads():
    assert percent_table(pd.DataFrame(columns=["method", "value"])).columns.tolist() == ["method", "value (%)"]
