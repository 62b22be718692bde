"""Recall and precision: against loops, every order of a tie, torchmetrics, and cases done by hand."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional import retrieval as tm

from cirlib.retrieval.ranks import Ranks, target_ranks
from cirlib.retrieval.recall_and_precision import (
    average_precision_at_k,
    average_precision_of_ranks,
    chance_average_precision,
    chance_recall,
    median_rank,
    recall_at_k,
)


@pytest.mark.parametrize("tokens", [(), (3,)])
def test_a_collapsed_model_gets_exactly_chance(tokens):
    queries, gallery = torch.rand(30, 64), torch.rand(*tokens, 64).expand(1234, *tokens, 64)
    ranks = target_ranks(queries, gallery, torch.arange(30))
    without = target_ranks(queries, gallery, torch.arange(30), exclude=torch.arange(30) + 1)
    for k in (1, 10, 50, 5000):
        assert (recall_at_k(ranks, k) == chance_recall(k, 1234)).all()
        assert (recall_at_k(without, k) == chance_recall(k, 1233)).all()
    assert median_rank(ranks) == (1234 + 1) / 2
    zero = target_ranks(torch.zeros(5, 64), torch.rand(40, 64), [0, 1, 2, 3, 4])
    assert recall_at_k(zero, 10).tolist() == [0.25] * 5


@given(above=st.integers(0, 8), tied=st.integers(0, 8), k=st.integers(1, 20))
def test_metrics_are_the_mean_over_all_ranks_in_the_tie(above, tied, k):
    ranks = Ranks(torch.tensor([above]), torch.tensor([tied]))
    possible = np.arange(above + 1, above + tied + 2)
    assert recall_at_k(ranks, k).item() == pytest.approx((possible <= k).mean())
    assert median_rank(ranks) == possible.mean()
    assert recall_at_k(ranks, k) <= recall_at_k(ranks, k + 1)


def test_the_hand_computed_metrics():
    ranks = Ranks(torch.tensor([0, 9, 10, 3]), torch.tensor([0, 0, 0, 1]))
    assert recall_at_k(ranks, 10).tolist() == [1, 1, 0, 1]
    assert recall_at_k(ranks, 4).tolist() == [1, 0, 0, 0.5]
    assert median_rank(ranks) == (4.5 + 10) / 2


def test_k_below_one_is_refused():
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        recall_at_k(Ranks(torch.tensor([0]), torch.tensor([0])), 0)


def list_precision(order: Sequence[int], wanted: set[int], k: int) -> float:
    """CIRCO's definition, on a ranking without ties."""
    hits = [i in wanted for i in order[:k]]
    return sum(sum(hits[: i + 1]) / (i + 1) for i, hit in enumerate(hits) if hit) / min(k, len(wanted))


def test_average_precision_by_hand():
    ranks = Ranks(torch.tensor([0, 2, 9, 3]), torch.zeros(4, dtype=torch.long))
    found = average_precision_of_ranks(ranks, [0, 0, 0, 1], 3)
    torch.testing.assert_close(found, torch.tensor([(1 + 2 / 3) / 3, 0], dtype=torch.float64))
    assert average_precision_of_ranks(ranks, [0, 0, 0, 1], 4)[1] == 1 / 4


def test_average_precision_of_everything_agrees_with_torchmetrics():
    rng = np.random.default_rng(0)
    scores, wanted = torch.from_numpy(rng.random((20, 30))), torch.from_numpy(rng.random((20, 30)) < 0.2)
    wanted[:, 0] = True
    query, image = wanted.nonzero().T
    found = average_precision_of_ranks(target_ranks(scores[query], torch.eye(30), image), query, 30)
    expected = [tm.retrieval_average_precision(row, own) for row, own in zip(scores, wanted, strict=True)]
    torch.testing.assert_close(found, torch.stack(expected).double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("size", range(1, 7))
def test_chance_of_average_precision_is_the_mean_over_every_order(size: int):
    orders = list(itertools.permutations(range(size)))
    for relevant, k in itertools.product(range(1, size + 1), range(1, size + 1)):
        values = [list_precision(order, set(range(relevant)), k) for order in orders]
        assert chance_average_precision(k, relevant, size) == pytest.approx(np.mean(values))


def brute_expected_precision(scores: np.ndarray, wanted: set[int], k: int) -> float:
    """The mean over every order that the ties allow."""
    orders = [
        p
        for p in itertools.permutations(range(len(scores)))
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(p))
    ]
    return float(np.mean([list_precision(p, wanted, k) for p in orders]))


@pytest.mark.parametrize("k", [1, 2, 3, 5, 6])
@pytest.mark.parametrize("scores", [[3, 2, 2, 2, 1, 1], [1, 1, 1, 1, 1, 1], [6, 5, 4, 3, 2, 1], [2, 2, 1, 1, 1, 0]])
def test_precision_from_ranks_is_the_mean_over_every_order_of_the_ties(scores, k):
    scores, wanted = np.array(scores, dtype=float), {1, 3, 4}
    queries, gallery = torch.ones(len(wanted), 1), torch.tensor(scores)[:, None]
    ranks = target_ranks(queries, gallery, sorted(wanted))
    got = average_precision_of_ranks(ranks, [0] * len(wanted), k).item()
    assert got == pytest.approx(brute_expected_precision(scores, wanted, k))


def test_a_model_that_knows_nothing_has_the_precision_of_chance():
    ranks = target_ranks(torch.zeros(3, 2), torch.ones(50, 2), [4, 9, 30])
    got = average_precision_of_ranks(ranks, [0, 0, 0], 10).item()
    assert got == pytest.approx(chance_average_precision(10, 3, 50))


def test_a_query_without_relevant_items_is_named():
    with pytest.raises(ValueError, match="query 1 has no relevant items"):
        average_precision_of_ranks(Ranks(torch.tensor([0, 1]), torch.zeros(2, dtype=torch.long)), [0, 2], 5)


@given(st.permutations(range(12)), st.sets(st.integers(0, 30), min_size=1), st.integers(1, 12))
def test_the_average_precision_of_lists_is_that_of_their_ranks(row, wanted, k):
    above = torch.tensor([row.index(item) if item in row else 30 for item in wanted])
    expected = average_precision_of_ranks(Ranks(above, torch.zeros_like(above)), [0] * len(above), k)
    torch.testing.assert_close(average_precision_at_k([row], [wanted], k), expected)


@pytest.mark.parametrize(("row", "wanted"), [([1, 1, 2], [1]), ([1, 2], [1]), ([1, 2, 3], [])])
def test_lists_that_are_short_or_repeat_and_nothing_wanted_are_refused(row, wanted):
    with pytest.raises(ValueError, match="query 0 needs 3 different"):
        average_precision_at_k([row], [wanted], 3)
