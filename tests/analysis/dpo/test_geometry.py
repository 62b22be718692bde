"""The geometry of embeddings on cases worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cirlib.analysis.dpo import geometry

CROSS = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])


def test_alignment_is_the_mean_squared_distance():
    assert geometry.alignment(CROSS, CROSS) == 0
    assert geometry.alignment(CROSS, -CROSS) == pytest.approx(4)
    assert geometry.alignment(CROSS, CROSS.roll(1, 0)) == pytest.approx(2)


def test_uniformity_is_0_for_one_point_and_falls_as_points_part():
    assert geometry.uniformity(torch.ones(5, 3) / math.sqrt(3)) == pytest.approx(0, abs=1e-5)
    pairs = [2.0, 4.0, 2.0, 2.0, 4.0, 2.0]  # squared distances on the cross
    expected = math.log(np.mean([math.exp(-2 * d) for d in pairs]))
    assert geometry.uniformity(CROSS) == pytest.approx(expected, rel=1e-5)


def test_effective_rank_counts_the_directions():
    assert geometry.effective_rank(CROSS) == pytest.approx(2, rel=1e-5)
    line = torch.linspace(-1, 1, 9)[:, None] * torch.tensor([[0.6, 0.8, 0.0]])
    assert geometry.effective_rank(line) == pytest.approx(1, abs=1e-4)
    assert geometry.effective_rank(torch.ones(4, 3)) == pytest.approx(1, abs=1e-3)  # one point: no direction at all


def test_spread_is_what_the_mean_loses():
    assert geometry.spread(CROSS) == pytest.approx(1)
    assert geometry.spread(CROSS[:1].expand(3, 2)) == pytest.approx(0)
    assert geometry.spread(CROSS[:2]) == pytest.approx(1 - math.sqrt(0.5))


def test_hubness_is_1_where_all_get_the_same_and_least_where_all_differ():
    assert geometry.hubness(np.tile([3, 1, 4], (6, 1))) == 1
    assert geometry.hubness(np.arange(12).reshape(4, 3)) == pytest.approx(3 / 12)
    assert geometry.hubness(np.array([[0, 1], [0, 2], [0, 3]])) == pytest.approx(4 / 6)


def test_describe_averages_over_categories(make_scored):
    scored = [make_scored("m", "hat", [0, 10, 100]), make_scored("m", "shoe", [4, 4, 4])]
    generator = torch.Generator().manual_seed(0)
    raw = [3 * torch.randn(3, 5, generator=generator) for _ in scored]
    galleries = [F.normalize(torch.randn(20, 5, generator=generator), dim=-1) for _ in scored]
    told = geometry.describe(raw, galleries, [[1, 2, 3], [0, 0, 0]], scored)
    assert told["rank_50"] == pytest.approx((11 + 5) / 2)
    assert told["norm"] == pytest.approx(np.mean([vectors.norm(dim=1).mean() for vectors in raw]), rel=1e-5)
    wanted = [galleries[0][1:4], galleries[1][:1].expand(3, 5)]
    aligned = [geometry.alignment(F.normalize(q, dim=-1), t) for q, t in zip(raw, wanted, strict=True)]
    assert told["alignment"] == pytest.approx(np.mean(aligned), rel=1e-5)
    assert told["gallery"] == 100


def test_several_tokens_an_image_are_described_by_their_mean(make_scored):
    scored = [make_scored("m", "hat", [0, 1])]
    tokens = F.normalize(torch.randn(9, 3, 4, generator=torch.Generator().manual_seed(1)), dim=-1)
    raw = [torch.eye(4)[:2]]
    means = F.normalize(tokens.mean(1), dim=-1)
    assert geometry.describe(raw, [tokens], [[0, 1]], scored) == geometry.describe(raw, [means], [[0, 1]], scored)


def test_of_nothing_nothing_is_told():
    assert geometry.describe([], [], [], []) == {}
