"""Splits under a model: their ranks against brute force, their geometry on cases worked out by hand."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cirlib.analysis.dpo.embedded_splits import EmbeddedSplit, embed_splits, embedding_statistics
from cirlib.analysis.dpo.grid import READINGS
from cirlib.benchmarks import join_captions
from cirlib.retrieval.similarity import similarity
from cirlib.study.parameters import DPO, Evaluation

CROSS = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])


def statistics(make_scored, raw: torch.Tensor, gallery: torch.Tensor) -> dict[str, float]:
    """Of queries ``raw`` of which number i wants image i + 1 of the ``gallery``."""
    scored = make_scored("m", "hat", [0] * len(raw), size=len(gallery))
    return embedding_statistics([EmbeddedSplit(scored, raw, F.normalize(raw, dim=-1), gallery)])


def around(queries: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """A gallery in which query i's target, image i + 1, is ``targets[i]``."""
    return torch.cat([queries[:1], targets, queries[:1]])


@pytest.mark.parametrize("fusion", ["text_only", "qformer"])
@pytest.mark.parametrize("captions", ["and", "both_orders"])
def test_a_query_is_the_mean_of_its_texts_and_ranked_in_its_gallery(context, fusion, captions):
    evaluation, encoder = Evaluation(captions=captions), context.encoder(DPO(fusion=fusion)).eval()
    for one in embed_splits(encoder, context.splits.reported, evaluation):
        benchmark = one.scored.benchmark
        torch.testing.assert_close(one.gallery, encoder.embed_images(benchmark.gallery))
        for row, triplet in enumerate(benchmark.triplets):
            texts = join_captions(triplet.captions, captions)
            vectors = encoder.embed_queries([triplet.reference] * len(texts), texts)
            torch.testing.assert_close(one.queries[row], F.normalize(vectors.mean(0), dim=-1), atol=1e-4, rtol=0)
            scores = dict(zip(benchmark.gallery, similarity(one.queries[[row]], one.gallery)[0].tolist(), strict=True))
            above = [image for image, score in scores.items() if score > scores[triplet.targets[0]] + 1e-6]
            assert one.scored.ranks.above[row] == len({*above} - {triplet.reference})


def test_alignment_is_the_mean_squared_distance(make_scored):
    for targets, expected in ((CROSS, 0), (-CROSS, 4), (CROSS.roll(1, 0), 2)):
        told = statistics(make_scored, 3 * CROSS, around(CROSS, targets))
        assert told["alignment"] == pytest.approx(expected)
        assert told["norm"] == 3


def test_uniformity_rank_and_spread_tell_a_cross_from_a_line_and_a_point(make_scored):
    cross = statistics(make_scored, CROSS, around(CROSS, CROSS))
    squares = [2.0, 4.0, 2.0, 2.0, 4.0, 2.0]
    assert cross["uniformity"] == pytest.approx(math.log(np.mean([math.exp(-2 * d) for d in squares])), rel=1e-5)
    assert cross["effective_rank"] == pytest.approx(2, rel=1e-5)
    assert cross["spread"] == pytest.approx(1)
    line = torch.tensor([[1.0, 0, 0], [-1, 0, 0], [1, 0, 0]])
    assert statistics(make_scored, line, around(line, line))["effective_rank"] == pytest.approx(1, abs=1e-4)
    point = statistics(make_scored, torch.ones(5, 3), torch.ones(7, 3) / math.sqrt(3))
    assert point["uniformity"] == pytest.approx(0, abs=1e-5)
    assert point["effective_rank"] == pytest.approx(1, abs=1e-3)
    assert point["spread"] == pytest.approx(0, abs=1e-6)


def test_hubness_is_1_where_all_get_the_same_images_and_least_where_all_get_others(make_scored):
    apart = torch.eye(12)
    gallery = torch.cat([apart] * 10)
    assert statistics(make_scored, apart[:1].expand(12, 12), gallery)["hubness"] == pytest.approx(1)
    assert statistics(make_scored, apart, gallery)["hubness"] == pytest.approx(10 / 120)


def test_of_several_tokens_the_one_counts_that_the_score_counts(make_scored):
    queries = F.normalize(torch.randn(3, 4, generator=torch.Generator().manual_seed(1)), dim=-1)
    far = -queries.sum(0).expand(5, 4)
    tokens = torch.stack([far, around(queries, queries)], dim=1)  # (5, 2, 4): each target's second token is the query
    told = statistics(make_scored, queries, F.normalize(tokens, dim=-1))
    assert told["alignment"] == pytest.approx(0, abs=1e-6)


def test_categories_count_the_same(make_scored):
    scored = [make_scored("m", "hat", [0, 10, 100]), make_scored("m", "shoe", [4, 4, 4])]
    raw = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    gallery = F.normalize(torch.randn(101, 5, generator=torch.Generator().manual_seed(1)), dim=-1)
    told = embedding_statistics([EmbeddedSplit(one, raw, F.normalize(raw, dim=-1), gallery) for one in scored])
    assert told["rank_50"] == pytest.approx((11 + 5) / 2)
    assert told["gallery"] == 100
    assert told["recall@10"] == pytest.approx((1 / 3 + 1) / 2)
    assert told["chance"] == pytest.approx(0.1)


def test_mistaken_readings_find_the_target_where_the_mistake_puts_it(make_scored):
    """Query i is image i + 1 exactly: ranked first, last when sorted as a distance, tied with all when saturated."""
    gallery = torch.eye(101)
    gallery[50:] = gallery[1]  # 51 more that tie with the first target
    split = EmbeddedSplit(make_scored("m", "hat", [0, 0, 0]), gallery[1:4], gallery[1:4], gallery)
    found = {reading: split.read(reading).ranks for reading in ("", *READINGS.values())}
    assert found[""].above.tolist() == [0, 0, 0]
    assert found["distance"].above.tolist() == [99, 99, 99]
    assert found["ties"].tied.tolist() == [51, 0, 0]
    assert found["misses"].above.tolist() == [51, 0, 0]
    assert found["order"].above.sum() > 0
