"""Every metric against a loop or a full sort, against torchmetrics, and against cases done by hand."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from torch.nn.functional import normalize
from torchmetrics.functional import retrieval as tm

from cirlib.retrieval.ranks import (
    Ranks,
    average_precision_at_k,
    average_precision_of_ranks,
    bootstrap_ci,
    chance_average_precision,
    chance_recall,
    holm,
    mean_reciprocal_rank,
    median_rank,
    paired_test,
    recall_at_k,
    reciprocal_rank,
    subset_ranks,
    target_ranks,
)


def full_scores(queries: Tensor, gallery: Tensor) -> Tensor:
    """The naive (N, M) matrix in float64; a token set scores by its best token."""
    scores = torch.einsum("nd,m...d->nm...", queries.double(), gallery.double())
    return scores.amax(-1) if gallery.ndim == 3 else scores


def loop_ranks(scores: Tensor, targets: Sequence[int], exclude: Sequence[Sequence[int]] | None = None) -> Ranks:
    """Count with three nested loops in plain Python."""
    above, tied = [], []
    for query, target in enumerate(targets):
        out = {target, *(exclude[query] if exclude else ())}
        others = [float(score) for image, score in enumerate(scores[query]) if image not in out]
        own = float(scores[query, target])
        above.append(sum(score > own for score in others))
        tied.append(sum(score == own for score in others))
    return Ranks(torch.tensor(above), torch.tensor(tied))


def assert_same(found: Ranks, expected: Ranks) -> None:
    assert found.above.dtype == found.tied.dtype == torch.int64
    torch.testing.assert_close(found.above, expected.above.long(), rtol=0, atol=0)
    torch.testing.assert_close(found.tied, expected.tied.long(), rtol=0, atol=0)


def unit(*shape: int, seed: int = 0) -> Tensor:
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


# ---------------------------------------------------------------------------------------------- ranks


@pytest.mark.parametrize("shape", [(311, 32), (70, 5, 32), (1, 8), (1300, 3, 16)])
def test_ranks_equal_those_of_a_full_sort(shape: tuple[int, ...]) -> None:
    gallery, queries = unit(*shape), unit(40, shape[-1], seed=1)
    targets = torch.arange(40) * 7 % len(gallery)
    order = full_scores(queries, gallery).argsort(dim=1, descending=True)
    position = (order == targets[:, None]).nonzero()[:, 1]
    assert_same(target_ranks(queries, gallery, targets), Ranks(position, torch.zeros_like(position)))


@pytest.mark.parametrize("chunk_size", [1, 7, 1000])
@pytest.mark.parametrize("tokens", [(), (3,)])
def test_ranks_do_not_depend_on_block_sizes(
    chunk_size: int, tokens: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery, queries, targets = unit(200, *tokens, 24), unit(30, 24, seed=1), torch.arange(30)
    exclude = (targets + 1).tolist()
    expected = loop_ranks(full_scores(queries, gallery), targets.tolist(), [[row] for row in exclude])
    for block in (1, 13, 64, 4096):
        monkeypatch.setattr("cirlib.retrieval.ranks.BLOCK_VECTORS", block)
        monkeypatch.setattr("cirlib.retrieval.ranks.VALUES_AT_ONCE", block)
        assert_same(target_ranks(queries, gallery, targets, exclude=exclude, chunk_size=chunk_size), expected)


@pytest.mark.parametrize("tokens", [(), (4,)])
@pytest.mark.parametrize("size", [2, 5, 17, 33, 1025, 3817])
def test_a_copy_of_the_target_ties_wherever_it_lies(size: int, tokens: tuple[int, ...]) -> None:
    # A matrix product may round its last columns differently, so that copies get different scores there.
    gallery = unit(*tokens, 257).expand(size, *tokens, 257).contiguous()
    queries = unit(37, 257, seed=1)
    ranks = target_ranks(queries, gallery, torch.arange(37) % size)
    assert_same(ranks, Ranks(torch.zeros(37), torch.full((37,), size - 1)))


@pytest.mark.parametrize("tokens", [(), (4,)])
def test_copies_among_different_images_tie(tokens: tuple[int, ...]) -> None:
    gallery, queries = unit(1501, *tokens, 64), unit(50, 64, seed=1)
    copies = torch.tensor([3, 700, 1023, 1024, 1500])
    gallery[copies] = gallery[copies[0]].clone()
    expected = loop_ranks(full_scores(queries, gallery).round(decimals=12), [700] * 50)
    ranks = target_ranks(queries, gallery, [700] * 50)
    assert_same(ranks, expected)
    assert (ranks.tied == 4).all()


def test_differences_of_one_unit_in_the_last_place_are_seen() -> None:
    queries = unit(20, 128)
    base = unit(1, 128, seed=1)
    gallery = base.repeat(300, 1)
    gallery.view(torch.int32).add_(torch.randint(-1, 2, gallery.shape, generator=torch.Generator().manual_seed(2)))
    targets = torch.arange(20)
    assert_same(target_ranks(queries, gallery, targets), loop_ranks(full_scores(queries, gallery), targets.tolist()))


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_ranks_of_features_full_of_ties_equal_the_loop(data: st.DataObject) -> None:
    queries, images, width, tokens = (data.draw(st.integers(1, top)) for top in (6, 30, 4, 3))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    query = torch.from_numpy(rng.integers(-2, 3, (queries, width))).float()
    gallery = torch.from_numpy(rng.integers(-2, 3, (images, tokens, width))).float()
    targets = rng.integers(images, size=queries).tolist()
    exclude = [[row for row in rng.integers(images, size=3).tolist() if row != own] for own in targets]
    found = target_ranks(query, gallery, targets, exclude=exclude, chunk_size=data.draw(st.integers(1, 7)))
    assert_same(found, loop_ranks(full_scores(query, gallery), targets, exclude))
    assert (found.above + found.tied < images).all()


@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_the_order_of_the_gallery_does_not_matter(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    gallery, queries = torch.randn(90, 6, generator=rng).round(decimals=1), torch.randn(9, 6, generator=rng)
    targets, order = torch.randint(90, (9,), generator=rng), torch.randperm(90, generator=rng)
    moved = target_ranks(queries, gallery[order], order.argsort()[targets])
    assert_same(moved, target_ranks(queries, gallery, targets))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_precision_ranks_its_own_values_exactly(dtype: torch.dtype) -> None:
    gallery, queries = unit(500, 48).to(dtype), unit(40, 48, seed=1).to(dtype)
    targets = torch.arange(40)
    expected = loop_ranks(full_scores(queries, gallery), targets.tolist())
    assert_same(target_ranks(queries, gallery, targets), expected)
    assert_same(target_ranks(queries.double(), gallery, targets), expected)


@pytest.mark.parametrize("tokens", [(), (5,)])
def test_a_gallery_on_disk_ranks_like_one_in_memory(tmp_path: Path, tokens: tuple[int, ...]) -> None:
    features = unit(3000, *tokens, 32).half()
    stored = np.memmap(tmp_path / "features", np.float16, "w+", shape=features.shape)
    stored[:] = features.numpy()
    stored.flush()
    gallery = np.memmap(tmp_path / "features", np.float16, "r", shape=features.shape)
    queries, targets = unit(50, 32, seed=1), torch.arange(50) * 59
    expected = target_ranks(queries, features, targets, exclude=targets + 1)
    assert_same(target_ranks(queries.numpy(), gallery, targets.numpy(), exclude=targets + 1, chunk_size=16), expected)
    members = torch.stack([targets, targets + 1, targets + 2], 1)
    assert_same(subset_ranks(queries, gallery, targets, members), subset_ranks(queries, features, targets, members))


def test_strided_and_wide_ranging_features() -> None:
    scale = torch.logspace(-12, 12, 60)[:, None]
    gallery, queries = (unit(60, 40) * scale)[:, ::2], unit(40, 20, seed=1).T.contiguous().T
    targets = torch.arange(40)
    assert_same(target_ranks(queries, gallery, targets), loop_ranks(full_scores(queries, gallery), targets.tolist()))


def test_scores_too_small_for_float32_are_still_told_apart() -> None:
    gallery, queries, targets = unit(60, 20) * 1e-21, unit(40, 20, seed=1) * 1e-21, torch.arange(40)
    assert_same(target_ranks(queries, gallery, targets), loop_ranks(full_scores(queries, gallery), targets.tolist()))


def test_a_lower_precision_asked_of_torch_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    gallery, queries, targets = unit(900, 64), unit(60, 64, seed=1), torch.arange(60)
    expected = target_ranks(queries, gallery, targets)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert_same(target_ranks(queries, gallery, targets), expected)
        assert torch.get_float32_matmul_precision() == "medium"
        seen: list[str] = []  # few processors have a lower precision, so ask which one is set
        count = "cirlib.retrieval.ranks._Search.count"
        monkeypatch.setattr(count, lambda *_: seen.append(torch.get_float32_matmul_precision()))
        target_ranks(queries, gallery, targets)
        assert seen == ["highest"]
    finally:
        torch.set_float32_matmul_precision(before)


def test_features_under_training_need_no_detaching() -> None:
    queries = unit(3, 4).requires_grad_()
    assert not target_ranks(queries, unit(9, 4), [0, 1, 2]).above.requires_grad


def test_exclusions_in_every_form_agree() -> None:
    gallery, queries, targets = unit(50, 8), unit(4, 8, seed=1), [0, 1, 2, 3]
    lists: list[list[int]] = [[7], [], [9], [11]]
    flat = [7, -1, 9, 11]
    expected = loop_ranks(full_scores(queries, gallery), targets, lists)
    wide = torch.tensor([[7, -1], [-1, -1], [9, 9], [11, -1]])
    for exclude in (lists, flat, np.array(flat), torch.tensor(flat), wide, [7, [], (9, 9), np.array([11])]):
        assert_same(target_ranks(queries, gallery, targets, exclude=exclude), expected)
    assert_same(target_ranks(queries, gallery, targets, exclude=[[]] * 4), target_ranks(queries, gallery, targets))


def test_the_hand_computed_ranks() -> None:
    gallery = torch.tensor([[1.0, 0], [0.5, 0], [0.5, 0], [0, 9], [-1, 0]])
    queries = torch.tensor([[1.0, 0], [1, 0], [0, 1]])
    assert_same(target_ranks(queries, gallery, [1, 4, 3]), Ranks(torch.tensor([1, 4, 0]), torch.tensor([1, 0, 0])))
    without = target_ranks(queries, gallery, [1, 4, 3], exclude=[0, 2, -1])
    assert_same(without, Ranks(torch.tensor([0, 3, 0]), torch.tensor([1, 0, 0])))


# ------------------------------------------------------------------------------- refusals with a name


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 1e30])
@pytest.mark.parametrize("tokens", [(), (3,)])
def test_bad_features_are_named(bad: float, tokens: tuple[int, ...]) -> None:
    gallery, queries = unit(2100, *tokens, 8), unit(5, 8, seed=1)
    spoilt = gallery.clone()
    spoilt[2050].view(-1)[-1] = bad  # in one token of several
    with pytest.raises(ValueError, match="gallery row 2050 "):
        target_ranks(queries, spoilt, [0] * 5)
    with pytest.raises(ValueError, match="gallery row 2050 "):
        target_ranks(queries, spoilt, [0, 0, 2050, 0, 0])
    spoilt = queries.clone()
    spoilt[4, 0] = bad
    with pytest.raises(ValueError, match="query row 4 "):
        target_ranks(spoilt, gallery, [0] * 5)


@pytest.mark.parametrize(
    ("targets", "exclude", "message"),
    [
        ([0, 9], None, r"query 1: target 9 is not a row of the gallery \(0 … 8\)"),
        ([-1, 0], None, "query 0: target -1 is not"),
        ([0], None, r"one target a query, \(2,\), got \(1,\)"),
        ([0.0, 1.0], None, "targets must be gallery rows"),
        ([0, 1], [3, 1], "query 1: its target 1 is excluded"),
        ([0, 1], [[3], [4, 1]], "query 1: its target 1 is excluded"),
        ([0, 1], [[3], [4, 9]], "query 1: excluded 9 is not"),
        ([0, 1], [-2, 3], "query 0: excluded -2 is not"),
        ([0, 1], [3], "exclude has 1 entries for 2 queries"),
        ([0, 1], np.array([0.5, 1]), "exclude must be gallery rows"),
    ],
)
def test_bad_rows_are_named(targets: list[int], exclude: list[int] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        target_ranks(unit(2, 4), unit(9, 4), targets, exclude=exclude)


@pytest.mark.parametrize(
    ("queries", "gallery"),
    [((2, 4), (9, 5)), ((2, 4), (9, 2, 5)), ((4,), (9, 4)), ((0, 4), (9, 4)), ((2, 4), (0, 4))],
)
def test_shapes_that_do_not_fit_are_shown(queries: tuple[int, ...], gallery: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"queries \(.*gallery \("):
        target_ranks(torch.zeros(queries), torch.zeros(gallery), [0, 0])


def test_a_chunk_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="chunk_size"):
        target_ranks(unit(2, 4), unit(9, 4), [0, 1], chunk_size=0)


# -------------------------------------------------------------------------------------------- subsets


@pytest.mark.parametrize("tokens", [(), (3,)])
def test_subset_ranks_equal_those_in_a_gallery_of_the_subset(tokens: tuple[int, ...]) -> None:
    gallery, queries = unit(80, *tokens, 12).round(decimals=1), unit(25, 12, seed=1).round(decimals=1)
    rng = np.random.default_rng(0)
    subsets = torch.from_numpy(np.stack([rng.permutation(80)[:6] for _ in range(25)]))
    subsets[::3, 5] = -1
    targets, reference = subsets[:, 2], subsets[:, 0]
    found = subset_ranks(queries, gallery, targets, subsets, exclude=reference)
    scores = full_scores(queries, gallery).round(decimals=9)
    outside = [sorted((set(range(80)) - set(row)) | {row[0]}) for row in subsets.tolist()]
    assert_same(found, loop_ranks(scores, targets.tolist(), outside))


@pytest.mark.parametrize(
    ("subset", "message"),
    [
        ([[0, 3], [2, 3]], "query 1: its subset lacks its target 1"),
        ([[0, 3], [1, 9]], "query 1: subset member 9 is not"),
        ([[0, 3, 3], [1, 2, 4]], "query 0: its subset names a row twice"),
        ([[0, 3]], r"expected subsets \(2, S\), got \(1, 2\)"),
    ],
)
def test_bad_subsets_are_named(subset: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        subset_ranks(unit(2, 4), unit(9, 4), [0, 1], subset)
    assert_same(subset_ranks(unit(1, 4), unit(9, 4), [4], [[4, -1, -1]]), Ranks(torch.zeros(1), torch.zeros(1)))


# ----------------------------------------------------------------------------------- metrics of ranks


@pytest.mark.parametrize("tokens", [(), (3,)])
def test_a_collapsed_model_gets_exactly_chance(tokens: tuple[int, ...]) -> None:
    queries, gallery = unit(30, 64), unit(*tokens, 64, seed=1).expand(1234, *tokens, 64)
    ranks = target_ranks(queries, gallery, torch.arange(30))
    without = target_ranks(queries, gallery, torch.arange(30), exclude=torch.arange(30) + 1)
    for k in (1, 10, 50, 5000):
        assert (recall_at_k(ranks, k) == chance_recall(k, 1234)).all()
        assert (recall_at_k(without, k) == chance_recall(k, 1233)).all()
    assert median_rank(ranks) == (1234 + 1) / 2
    assert mean_reciprocal_rank(ranks) == pytest.approx(sum(1 / r for r in range(1, 1235)) / 1234, rel=1e-12)


def test_zero_queries_vectors_get_chance_too() -> None:
    ranks = target_ranks(torch.zeros(5, 8), unit(40, 8), [0, 1, 2, 3, 4])
    assert recall_at_k(ranks, 10).tolist() == [0.25] * 5


@given(above=st.integers(0, 8), tied=st.integers(0, 8), k=st.integers(1, 20))
def test_metrics_are_the_mean_over_all_places_of_the_tie(above: int, tied: int, k: int) -> None:
    ranks = Ranks(torch.tensor([above]), torch.tensor([tied]))
    places = np.arange(above + 1, above + tied + 2)
    assert recall_at_k(ranks, k).item() == pytest.approx((places <= k).mean())
    assert reciprocal_rank(ranks).item() == pytest.approx((1 / places).mean(), rel=1e-12)
    assert median_rank(ranks) == places.mean()
    assert recall_at_k(ranks, k) <= recall_at_k(ranks, k + 1)


def test_recall_and_reciprocal_rank_agree_with_torchmetrics() -> None:
    scores, targets = torch.rand(40, 60, generator=torch.Generator().manual_seed(0)), torch.arange(40)
    ranks = target_ranks(scores, torch.eye(60), targets)
    wanted = torch.eye(60, dtype=torch.bool)[:40]
    for k in (1, 5, 10, 50):
        hits = [tm.retrieval_hit_rate(row, own, top_k=k) for row, own in zip(scores, wanted, strict=True)]
        torch.testing.assert_close(recall_at_k(ranks, k), torch.stack(hits).double())
    inverse = [tm.retrieval_reciprocal_rank(row, own) for row, own in zip(scores, wanted, strict=True)]
    torch.testing.assert_close(reciprocal_rank(ranks), torch.stack(inverse).double(), rtol=1e-6, atol=0)
    assert mean_reciprocal_rank(ranks) == pytest.approx(float(torch.stack(inverse).mean()), rel=1e-6)


def test_the_hand_computed_metrics() -> None:
    ranks = Ranks(torch.tensor([0, 9, 10, 3]), torch.tensor([0, 0, 0, 1]))
    assert recall_at_k(ranks, 10).tolist() == [1, 1, 0, 1]
    assert recall_at_k(ranks, 4).tolist() == [1, 0, 0, 0.5]
    assert median_rank(ranks) == (4.5 + 10) / 2
    assert mean_reciprocal_rank(ranks) == pytest.approx((1 + 1 / 10 + 1 / 11 + (1 / 4 + 1 / 5) / 2) / 4)
    assert len(ranks) == 4


def test_a_rank_of_millions_keeps_its_digits() -> None:
    inverse = reciprocal_rank(Ranks(torch.tensor([10**7, 10**7]), torch.tensor([0, 2])))
    assert inverse[0].item() == 1 / (10**7 + 1)
    assert inverse[1].item() == pytest.approx(np.mean([1 / (10**7 + i) for i in (1, 2, 3)]), rel=1e-6)


def test_nothing_and_k_below_one_are_refused() -> None:
    none = Ranks(torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long))
    for metric in (median_rank, mean_reciprocal_rank):
        with pytest.raises(ValueError, match="at least one query"):
            metric(none)
    for call in (
        lambda: recall_at_k(none, 0),
        lambda: chance_recall(0, 5),
        lambda: average_precision_at_k([], [], 0),
    ):
        with pytest.raises(ValueError, match="k must be at least 1, got 0"):
            call()
    with pytest.raises(ValueError, match="gallery_size"):
        chance_recall(1, 0)


# ---------------------------------------------------------------------------------- average precision


def loop_average_precision(row: Sequence[int], wanted: set[int], k: int) -> float:
    total = 0.0
    for place in range(1, k + 1):
        if row[place - 1] in wanted:
            total += len(wanted.intersection(row[:place])) / place
    return total / min(k, len(wanted))


def test_average_precision_by_hand() -> None:
    retrieved = [["a", "x", "b", "y"], ["x", "y", "z", "a"], ["a", "b", "c", "d"]]
    relevant = [{"a", "b", "c"}, {"a"}, {"a", "b", "c", "d", "e"}]
    found = average_precision_at_k(retrieved, relevant, 3)
    torch.testing.assert_close(found, torch.tensor([(1 + 2 / 3) / 3, 0, 1], dtype=torch.float64))
    assert average_precision_at_k(retrieved, relevant, 4)[1] == 1 / 4


@given(seed=st.integers(0, 10_000), k=st.integers(1, 12))
@settings(max_examples=50, deadline=None)
def test_average_precision_equals_the_loop_in_every_container(seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    retrieved = np.stack([rng.permutation(12) for _ in range(5)])
    relevant = [set(rng.permutation(12)[: rng.integers(1, 12)].tolist()) for _ in range(5)]
    expected = [loop_average_precision(row, own, k) for row, own in zip(retrieved.tolist(), relevant, strict=True)]
    lists = [torch.tensor(sorted(own)) for own in relevant]
    for rows, wanted in (
        (retrieved, relevant),
        (torch.from_numpy(retrieved), lists),
        (retrieved.tolist(), lists),
    ):
        assert average_precision_at_k(rows, wanted, k).tolist() == pytest.approx(expected)


def test_average_precision_of_everything_agrees_with_torchmetrics() -> None:
    rng = np.random.default_rng(0)
    scores, wanted = torch.from_numpy(rng.random((20, 30))), torch.from_numpy(rng.random((20, 30)) < 0.2)
    wanted[:, 0] = True
    relevant = [row.nonzero()[:, 0] for row in wanted]
    found = average_precision_at_k(scores.argsort(1, descending=True), relevant, 30)
    expected = [tm.retrieval_average_precision(row, own) for row, own in zip(scores, wanted, strict=True)]
    torch.testing.assert_close(found, torch.stack(expected).double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("size", range(1, 7))
def test_chance_of_average_precision_is_the_mean_over_every_order(size: int) -> None:
    orders = [list(order) for order in itertools.permutations(range(size))]
    for relevant, k in itertools.product(range(1, size + 1), range(1, size + 1)):
        values = average_precision_at_k(orders, [set(range(relevant))] * len(orders), k)
        assert chance_average_precision(k, relevant, size) == pytest.approx(float(values.mean()))


def test_chance_of_average_precision_at_its_ends() -> None:
    assert chance_average_precision(50, 2, 3) == chance_average_precision(3, 2, 3)
    for relevant in (0, 4):
        with pytest.raises(ValueError, match="1 to gallery_size = 3 relevant items, got"):
            chance_average_precision(1, relevant, 3)


@pytest.mark.parametrize(
    ("retrieved", "relevant", "message"),
    [
        ([[1, 2]], [{1}], "query 0 has 2 retrieved items, k is 3"),
        ([[1, 2, 3], [1, 2, 2]], [{1}, {1}], "query 1 has an item twice"),
        ([[1, 2, 3]], [set()], "query 0 has no relevant item"),
        ([[1, 2, 3]], [{1}, {2}], "1 rankings but 2"),
        ([], [], "at least one query"),
    ],
)
def test_bad_rankings_are_named(retrieved: list[list[int]], relevant: list[set[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        average_precision_at_k(retrieved, relevant, 3)


# -------------------------------------------------------------------------------- intervals and tests


@pytest.mark.parametrize("values", ["recall", "reciprocal"])
def test_the_interval_agrees_with_scipy(values: str) -> None:
    rng = np.random.default_rng(0)
    data = (rng.random(400) < 0.3).astype(float) if values == "recall" else 1 / rng.integers(1, 500, 400)
    low, high = bootstrap_ci(data)
    expected = stats.bootstrap((data,), np.mean, method="percentile", rng=1).confidence_interval
    assert (low, high) == pytest.approx(tuple(expected), abs=0.06 * (expected.high - expected.low))


def test_counts_and_draws_give_the_same_interval() -> None:
    data = (np.random.default_rng(0).random(300) < 0.4).astype(float)
    jittered = data + np.linspace(0, 1e-9, 300)  # all distinct: drawn query by query
    assert bootstrap_ci(data) == pytest.approx(bootstrap_ci(jittered), abs=0.006)


@pytest.mark.parametrize(("size", "share"), [(100, 0.4), (400, 0.1)])
def test_the_interval_covers_the_truth_as_often_as_it_says(size: int, share: float) -> None:
    rng = np.random.default_rng(0)
    trials = [bootstrap_ci(rng.random(size) < share, resamples=1000, seed=trial) for trial in range(600)]
    coverage = np.mean([low <= share <= high for low, high in trials])
    assert 0.92 <= coverage <= 0.975  # ± 3 standard errors, less what a percentile interval is known to lose


def test_the_interval_of_a_mean_of_categories_covers_it() -> None:
    rng = np.random.default_rng(0)
    shares, groups = (0.2, 0.5, 0.8), np.repeat(["dress", "shirt", "toptee"], (40, 80, 160))
    chance = np.repeat(shares, (40, 80, 160))
    trials = [bootstrap_ci(rng.random(280) < chance, resamples=1000, seed=trial, groups=groups) for trial in range(400)]
    assert 0.915 <= np.mean([low <= np.mean(shares) <= high for low, high in trials]) <= 0.98


def test_the_interval_is_repeatable_and_takes_what_recall_gives() -> None:
    recall = recall_at_k(Ranks(torch.arange(200), torch.zeros(200, dtype=torch.long)), 50)
    assert bootstrap_ci(recall) == bootstrap_ci(recall.tolist()) == bootstrap_ci(recall.numpy())
    smooth = reciprocal_rank(Ranks(torch.arange(200), torch.zeros(200, dtype=torch.long)))
    assert bootstrap_ci(smooth) == bootstrap_ci(smooth) != bootstrap_ci(smooth, seed=1)
    (low, high), (lower, higher) = bootstrap_ci(recall, level=0.9), bootstrap_ci(recall, level=0.99)
    assert lower < low < 0.25 < high < higher
    assert bootstrap_ci([0.5]) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([], {}, "at least one query, got none"),
        ([[0.0, 1.0]], {}, r"one number a query, got shape \(1, 2\)"),
        ([0.0, float("nan")], {}, "values of query 1 is nan"),
        ([0.0, 1.0], {"level": 1.0}, "0 < level < 1"),
        ([0.0, 1.0], {"resamples": 0}, "resamples"),
        ([0.0, 1.0], {"groups": ["a"]}, "1 groups for 2 values"),
    ],
)
def test_bad_values_for_an_interval_are_named(values: list[float], options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap_ci(values, **options)  # type: ignore[arg-type]


def exact_p_value(change: np.ndarray) -> float:
    """Share of all 2^N sign patterns that are as extreme as the one observed."""
    totals = [np.dot(signs, change) for signs in itertools.product((1, -1), repeat=len(change))]
    return float(np.mean(np.abs(totals) >= abs(change.sum()) - 1e-12))


@pytest.mark.parametrize("kind", ["recall", "reciprocal"])
def test_the_paired_test_agrees_with_every_sign_pattern(kind: str) -> None:
    rng = np.random.default_rng(3)
    a = (rng.random(12) < 0.8).astype(float) if kind == "recall" else 1 / rng.integers(1, 9, 12)
    b = (rng.random(12) < 0.3).astype(float) if kind == "recall" else 1 / rng.integers(1, 30, 12)
    found = paired_test(a, b)
    assert found.difference == pytest.approx(a.mean() - b.mean())
    assert found.p_value == pytest.approx(exact_p_value(a - b), abs=0.015)
    swapped = paired_test(b, a)
    assert (swapped.difference, swapped.p_value) == (-found.difference, found.p_value)


def test_the_paired_test_weighs_categories_alike() -> None:
    groups = ["dress"] * 4 + ["shirt"] * 8
    a, b = np.array([1, 1, 1, 0] + [0, 1] * 4, float), np.array([0, 0, 0, 0] + [0, 0] * 4, float)
    found = paired_test(a, b, groups=groups)
    assert found.difference == pytest.approx((3 / 4 + 4 / 8) / 2)
    assert found.p_value == pytest.approx(exact_p_value((a - b) / np.repeat([8, 16], [4, 8])), abs=0.01)


@pytest.mark.parametrize("kind", ["recall", "reciprocal"])
def test_the_paired_test_errs_no_more_often_than_it_says(kind: str) -> None:
    rng = np.random.default_rng(0)
    p_values = []
    for trial in range(800):
        shared, a, b = rng.random(150), rng.random(150), rng.random(150)
        scores = [np.where(shared < 0.6, shared, own) for own in (a, b)]  # correlated, of equal means
        left, right = [own < 0.3 for own in scores] if kind == "recall" else scores
        p_values.append(paired_test(left, right, resamples=499, seed=trial).p_value)
    rejected = np.mean(np.array(p_values)[:, None] <= [0.05, 0.3], axis=0)  # standard errors 0.008, 0.016
    assert (rejected <= [0.074, 0.35]).all()
    assert (rejected >= ([0.026, 0.25] if kind == "reciprocal" else [0.01, 0.15])).all()  # 0/1: coarse steps


def test_the_paired_test_at_its_ends() -> None:
    same = paired_test([1, 0, 1], [1, 0, 1])
    assert (same.difference, same.p_value) == (0, 1)
    assert paired_test(np.ones(100), np.zeros(100)).p_value == 1 / 10_001
    with pytest.raises(ValueError, match="a has 2 values, b has 3"):
        paired_test([0, 1], [0, 1, 1])
    with pytest.raises(ValueError, match="b of query 1 is inf"):
        paired_test([0, 1], [0, float("inf")])


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1, 1]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([0.5, float("nan")])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values: list[float]) -> None:
    level, corrected = 0.05, holm(p_values)
    for place, index in enumerate(np.argsort(p_values, kind="stable")):
        if p_values[index] * (len(p_values) - place) > level:
            break
        assert corrected[index] <= level
    else:
        return
    assert corrected[index] > level


# ------------------------------------------------------------------ precision from ranks


def brute_expected_precision(scores: np.ndarray, wanted: set[int], k: int) -> float:
    """The mean over every order that the ties allow."""
    orders = [
        p
        for p in itertools.permutations(range(len(scores)))
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(p))
    ]
    return float(np.mean([average_precision_at_k([list(p)], [wanted], k)[0] for p in orders]))


@pytest.mark.parametrize("k", [1, 2, 3, 5, 6])
@pytest.mark.parametrize("scores", [[3, 2, 2, 2, 1, 1], [1, 1, 1, 1, 1, 1], [6, 5, 4, 3, 2, 1], [2, 2, 1, 1, 1, 0]])
def test_precision_from_ranks_is_the_mean_over_every_order_of_the_ties(scores, k):
    scores, wanted = np.array(scores, dtype=float), {1, 3, 4}
    queries, gallery = torch.ones(len(wanted), 1), torch.tensor(scores)[:, None]
    ranks = target_ranks(queries, gallery, sorted(wanted))
    got = average_precision_of_ranks(ranks, [0] * len(wanted), k).item()
    assert got == pytest.approx(brute_expected_precision(scores, wanted, k))


def test_precision_from_ranks_of_several_queries_is_that_of_their_lists():
    rng = np.random.default_rng(0)
    queries, gallery = torch.from_numpy(rng.standard_normal((9, 6))), torch.from_numpy(rng.standard_normal((40, 6)))
    wanted = [set(rng.choice(40, size, replace=False).tolist()) for size in (1, 2, 3, 1, 5, 2, 9, 1, 4)]
    owner = [n for n, rows in enumerate(wanted) for _ in rows]
    ranks = target_ranks(queries[owner], gallery, [row for rows in wanted for row in sorted(rows)])
    order = (queries @ gallery.T).argsort(descending=True)
    for k in (1, 5, 40):
        expected = average_precision_at_k(order.numpy(), wanted, k)
        torch.testing.assert_close(average_precision_of_ranks(ranks, owner, k), expected)


def test_a_model_that_knows_nothing_has_the_precision_of_chance():
    ranks = target_ranks(torch.zeros(3, 2), torch.ones(50, 2), [4, 9, 30])
    got = average_precision_of_ranks(ranks, [0, 0, 0], 10).item()
    assert got == pytest.approx(chance_average_precision(10, 3, 50))


@pytest.mark.parametrize(
    ("query", "said"),
    [([0, 0], "the query of each of 3 ranks"), ([0, 2, 2], "query 1 has no relevant item"), ("abc", "integers")],
)
def test_precision_from_ranks_names_what_is_wrong(query, said):
    with pytest.raises(ValueError, match=said):
        average_precision_of_ranks(Ranks(torch.tensor([0, 1, 2]), torch.zeros(3, dtype=torch.long)), query, 5)


# ------------------------------------------------------------------ wrong kinds of arguments


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"queries": [[1.0, 0.0]] * 4}, "queries must be an array or a tensor, got list"),
        ({"gallery": [[1.0, 0.0]] * 4}, "gallery must be an array or a tensor, got list"),
        ({"queries": torch.ones(4, 2, dtype=torch.long)}, "queries must be floating-point numbers, got torch.int64"),
        ({"gallery": np.ones((4, 2), bool)}, "gallery must be floating-point numbers, got bool"),
        ({"targets": [[0], [1, 2], [3], [0]]}, "targets must be gallery rows"),
        ({"exclude": 5}, "exclude must be rows or lists of rows"),
        ({"exclude": [None] * 4}, "query 0: excluded None is no row"),
        ({"exclude": [1.5] * 4}, "query 0: excluded 1.5 is no row"),
    ],
)
def test_arguments_of_another_kind_are_named(change, said):
    arguments = {"queries": torch.ones(4, 2), "gallery": torch.ones(4, 2), "targets": [0, 1, 2, 3]} | change
    with pytest.raises(ValueError, match=said):
        target_ranks(arguments.pop("queries"), arguments.pop("gallery"), arguments.pop("targets"), **arguments)


def test_rows_read_backwards_are_rows():
    queries = np.eye(4)[::-1]
    assert target_ranks(queries, np.eye(4), [3, 2, 1, 0]).above.tolist() == [0] * 4


def test_single_texts_and_padding_are_no_relevant_items():
    with pytest.raises(ValueError, match="query 0 has the text 'ab'"):
        average_precision_at_k([["a", "b"]], ["ab"], 1)
    with pytest.raises(ValueError, match="query 0 has -1 among its relevant items"):
        average_precision_at_k([[1, 2]], [[1, -1]], 1)
    assert average_precision_at_k([[torch.tensor(1), 2]], [[np.int64(1)]], 1).item() == 1


@pytest.mark.parametrize("resamples", [0, -3])
def test_no_resamples_are_refused(resamples):
    with pytest.raises(ValueError, match="resamples must be at least 1"):
        paired_test([1.0, 0.0], [0.0, 0.0], resamples=resamples)
