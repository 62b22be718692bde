"""Ranks against a full matrix, loops and sorts: ties, copies, precisions, block sizes, galleries on disk."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from cirlib.retrieval import ranks as module
from cirlib.retrieval.ranks import FeatureError, Ranks, padded_rows, subset_ranks, target_ranks, top_rows


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


def assert_same(found: Ranks, expected: Ranks):
    assert found.above.dtype == found.tied.dtype == torch.int64
    torch.testing.assert_close(found.above, expected.above.long(), rtol=0, atol=0)
    torch.testing.assert_close(found.tied, expected.tied.long(), rtol=0, atol=0)


def unit(*shape: int, seed: int = 0) -> Tensor:
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.mark.parametrize("at_once", [1, 7, 1000])
@pytest.mark.parametrize("tokens", [(), (3,)])
def test_ranks_are_those_of_the_loop_in_blocks_of_any_size(at_once, tokens, monkeypatch):
    gallery, queries, targets = unit(200, *tokens, 24), unit(30, 24, seed=1), torch.arange(30) * 6
    exclude = (targets + 1).tolist()
    expected = loop_ranks(full_scores(queries, gallery), targets.tolist(), [[row] for row in exclude])
    for block in (1, 13, 64, 4096):
        monkeypatch.setattr(module, "BLOCK_VECTORS", block)
        monkeypatch.setattr(module, "VALUES_AT_ONCE", block)
        assert_same(target_ranks(queries, gallery, targets, exclude=exclude, chunk_size=at_once), expected)


@pytest.mark.parametrize("tokens", [(), (4,)])
@pytest.mark.parametrize("size", [2, 5, 17, 33, 1025, 3817])
def test_a_copy_of_the_target_ties_wherever_it_lies(size: int, tokens: tuple[int, ...]):
    # A matrix product may round its last columns differently, so that copies get different scores there.
    gallery = unit(*tokens, 257).expand(size, *tokens, 257).contiguous()
    queries = unit(37, 257, seed=1)
    ranks = target_ranks(queries, gallery, torch.arange(37) % size)
    assert_same(ranks, Ranks(torch.zeros(37), torch.full((37,), size - 1)))


def test_differences_of_one_unit_in_the_last_place_are_seen():
    queries = unit(20, 128)
    base = unit(1, 128, seed=1)
    gallery = base.repeat(300, 1)
    gallery.view(torch.int32).add_(torch.randint(-1, 2, gallery.shape, generator=torch.Generator().manual_seed(2)))
    targets = torch.arange(20)
    assert_same(target_ranks(queries, gallery, targets), loop_ranks(full_scores(queries, gallery), targets.tolist()))


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_ranks_of_features_full_of_ties_equal_the_loop(data: st.DataObject):
    queries, images, width, tokens = (data.draw(st.integers(1, top)) for top in (6, 30, 4, 3))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    query = torch.from_numpy(rng.integers(-2, 3, (queries, width))).float()
    gallery = torch.from_numpy(rng.integers(-2, 3, (images, tokens, width))).float()
    targets = rng.integers(images, size=queries).tolist()
    exclude = [[row for row in rng.integers(images, size=3).tolist() if row != own] for own in targets]
    found = target_ranks(query, gallery, targets, exclude=exclude)
    assert_same(found, loop_ranks(full_scores(query, gallery), targets, exclude))
    assert (found.above + found.tied < images).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1, 60_000, 1e-21])  # near float16's largest number; products that float32 lacks
def test_every_precision_ranks_its_own_values_exactly(dtype: torch.dtype, scale: float):
    gallery, queries = (scale * unit(500, 48)).to(dtype), (scale * unit(40, 48, seed=1)).to(dtype)
    targets = torch.arange(40)
    expected = loop_ranks(full_scores(queries, gallery), targets.tolist())
    assert_same(target_ranks(queries, gallery, targets), expected)
    assert_same(target_ranks(queries.double(), gallery, targets), expected)


@pytest.mark.parametrize("tokens", [(), (5,)])
def test_a_gallery_on_disk_ranks_like_one_in_memory(tmp_path: Path, tokens: tuple[int, ...]):
    features = unit(3000, *tokens, 32).half()
    stored = np.memmap(tmp_path / "features", np.float16, "w+", shape=features.shape)
    stored[:] = features.numpy()
    stored.flush()
    gallery = np.memmap(tmp_path / "features", np.float16, "r", shape=features.shape)
    queries, targets = unit(50, 32, seed=1), torch.arange(50) * 59
    expected = target_ranks(queries, features, targets, exclude=targets + 1)
    assert_same(target_ranks(queries.numpy(), gallery, targets.numpy(), exclude=targets + 1), expected)
    assert top_rows(queries, gallery, targets, 5) == top_rows(queries, features, targets, 5)
    members = torch.stack([targets, targets + 1, targets + 2], 1)
    assert_same(subset_ranks(queries, gallery, targets, members), subset_ranks(queries, features, targets, members))


def test_strided_and_wide_ranging_features():
    scale = torch.logspace(-12, 12, 60)[:, None]
    gallery, queries = (unit(60, 40) * scale)[:, ::2], unit(40, 20, seed=1).T.contiguous().T
    targets = torch.arange(40)
    expected = loop_ranks(full_scores(queries, gallery), targets.tolist())
    assert_same(target_ranks(queries, gallery, targets), expected)
    backwards = target_ranks(queries.numpy()[::-1], gallery, targets.flip(0))
    assert_same(Ranks(backwards.above.flip(0), backwards.tied.flip(0)), expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 1e30])
@pytest.mark.parametrize("tokens", [(), (3,)])
def test_bad_features_are_named(bad, tokens):
    gallery, queries = unit(2100, *tokens, 8), unit(5, 8, seed=1)
    spoilt = gallery.clone()
    spoilt[2050].view(-1)[-1] = bad  # in one token of several
    with pytest.raises(FeatureError, match="gallery row 2050 "):
        target_ranks(queries, spoilt, [0] * 5)
    queries[4, 0] = bad
    with pytest.raises(FeatureError, match="query row 4 "):
        target_ranks(queries, gallery, [0] * 5)


@pytest.mark.parametrize(
    ("targets", "exclude", "message"),
    [
        ([-1, 0], None, "targets must be one gallery row a query"),
        ([[0, 1], [2, 3]], None, "targets must be one gallery row a query"),
        ([0, 1], [[3], [4, 1]], "query 1: its target 1 is excluded"),
        ([0, 1], [-2, 3], "query 0: excluded"),
    ],
)
def test_bad_arguments_are_named(targets, exclude, message):
    with pytest.raises(ValueError, match=message):
        target_ranks(unit(2, 4), unit(9, 4), targets, exclude=exclude)


def test_a_subset_without_its_target_is_named():
    with pytest.raises(ValueError, match="query 1: its subset lacks its target 1"):
        subset_ranks(unit(2, 4), unit(9, 4), [0, 1], [[0, 3], [2, 3]])


@pytest.mark.parametrize(("queries", "gallery"), [((2, 4), (9, 5)), ((4,), (9, 4)), ((2, 4), (0, 4))])
def test_shapes_that_do_not_fit_are_shown(queries: tuple[int, ...], gallery: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"expected .*, got \("):
        target_ranks(torch.zeros(queries), torch.zeros(gallery), [0, 0])


@pytest.mark.parametrize("tokens", [(), (3,)])
def test_subset_ranks_equal_those_in_a_gallery_of_the_subset(tokens: tuple[int, ...]):
    gallery, queries = unit(80, *tokens, 12).round(decimals=1), unit(25, 12, seed=1).round(decimals=1)
    rng = np.random.default_rng(0)
    subsets = torch.from_numpy(np.stack([rng.permutation(80)[:6] for _ in range(25)]))
    subsets[::3, 5] = -1
    targets = subsets[:, 2]
    found = subset_ranks(queries, gallery, targets, subsets)
    scores = full_scores(queries, gallery).round(decimals=9)
    outside = [sorted(set(range(80)) - set(row)) for row in subsets.tolist()]
    assert_same(found, loop_ranks(scores, targets.tolist(), outside))


@pytest.mark.parametrize("features", [[[1.0, 0.0]] * 4, torch.ones(4, 2, dtype=torch.long), np.ones((4, 2), bool)])
def test_features_that_are_no_floats_are_refused(features):
    with pytest.raises(ValueError, match="must be an array or a tensor of floating-point numbers"):
        target_ranks(torch.ones(4, 2), features, [0, 1, 2, 3])


@pytest.mark.parametrize("tokens", [(), (3,)])
@pytest.mark.parametrize("block", [1, 7, 64, 10_000])
def test_the_best_rows_are_those_of_a_full_sort(tokens, block, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_VECTORS", block)
    queries, images = unit(300, 6), unit(50, *tokens, 6, seed=1)
    order = full_scores(queries, images).argsort(dim=1, descending=True).tolist()
    assert top_rows(queries, images, None, 9) == [rows[:9] for rows in order]
    kept = [[row for row in rows if row != i % 50][:9] for i, rows in enumerate(order)]
    assert top_rows(queries, images, [i % 50 for i in range(300)], 9) == kept


def test_an_excluded_image_is_in_no_list_however_small_the_gallery():
    gallery = torch.tensor([[1.0, 0], [0.9, 0.4], [0.5, 0.8]])
    assert top_rows(torch.tensor([[1.0, 0], [0.6, 0.7]]), gallery, [0, 2], 5) == [[1, 2], [1, 0]]


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
