"""Gallery rows of queries in every form, and what is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cirlib.retrieval.row_lists import padded_rows


@pytest.mark.parametrize(
    "form",
    [
        [7, [], (9, 2, 2), np.array([3])],
        [{7}, set(), {9, 2}, np.int64(3)],
        np.array([[7, -1], [-1, -1], [2, 9], [-1, 3]]),
        torch.tensor([[7, 7], [-1, -1], [9, 2], [3, -1]]),
    ],
)
def test_every_form_is_one_table(form):
    assert padded_rows(form, 4, 10, "row").tolist() == [[7, -1], [-1, -1], [2, 9], [3, -1]]


@pytest.mark.parametrize("form", [[4, 2], np.array([4, 2]), torch.tensor([4, 2])])
def test_one_row_a_query_may_be_a_plain_list_or_an_array(form):
    assert padded_rows(form, 2, 10, "row").tolist() == [[4], [2]]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([[0]], "row must be given for all 2 queries, got 1"),
        ([[0], [10]], r"query 1: row must be rows of the gallery \(0 … 9\), got \[10\]"),
        ([[0], [-2]], "query 1: row"),
        ([0.5, 1], "query 0: row"),
        (np.eye(2, dtype=bool), "query 0: row"),
        ([0, None], "query 1: row"),
    ],
)
def test_what_are_no_rows_is_named(rows, said):
    with pytest.raises(ValueError, match=said):
        padded_rows(rows, 2, 10, "row")
