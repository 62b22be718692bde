"""Hard negatives against brute force and against sentence-transformers."""

import random

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sentence_transformers.util import cos_sim, pairwise_cos_sim
from sentence_transformers.util import mine_hard_negatives as st_mine_hard_negatives

from cirlib.retrieval import hard_negatives as mining
from cirlib.retrieval.hard_negatives import copies, mine_hard_negatives


def unit(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    vectors = rng.normal(size=shape)
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def make_data(
    num_queries: int = 20, num_gallery: int = 100, width: int = 8, num_positives: int = 2, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.float32], list[list[int]]]:
    """Queries near the first of their positives."""
    rng = np.random.default_rng(seed)
    gallery = unit(rng, num_gallery, width)
    positives = [rng.choice(num_gallery, num_positives, replace=False).tolist() for _ in range(num_queries)]
    queries = gallery[[rows[0] for rows in positives]] + 0.7 * unit(rng, num_queries, width)
    return queries / np.linalg.norm(queries, axis=1, keepdims=True), gallery, positives


def brute_candidates(
    scores: NDArray[np.float32], positives: list[int], most_positives: int, rules: dict, range_max: int
) -> list[int]:
    """One query's negatives that may be taken, hardest first, filtered one by one as the docstring says."""
    window = sorted(range(len(scores)), key=lambda row: (-scores[row], row))[: range_max + most_positives]
    lowest = min((scores[row] for row in positives), default=np.nan)
    absolute, relative = rules.get("absolute_margin"), rules.get("relative_margin")
    kept = []
    for row in window:
        too_close = absolute is not None and scores[row] > lowest - absolute
        too_close |= relative is not None and scores[row] > lowest - abs(lowest) * relative
        too_high = rules.get("max_score") is not None and scores[row] > np.float32(rules["max_score"])
        too_low = rules.get("min_score") is not None and scores[row] < np.float32(rules["min_score"])
        if not (row in positives or too_close or too_high or too_low):
            kept.append(row)
    return kept[:range_max][rules.get("range_min", 0) :]


def edge_is_tied(scores: NDArray[np.float32], depth: int) -> bool:
    """Then which rows a search this deep finds is a matter of chance."""
    ranked = np.sort(scores)[::-1]  # (M,)
    return depth < len(scores) and ranked[depth - 1] == ranked[depth]


def brute_pools(
    scores: NDArray[np.float32], positives: list[list[int]], size: int, rules: dict
) -> list[list[int] | None]:
    """Every query's candidates, looking deeper where ``range_max`` is open; None where chance decides."""
    most = max(len(set(rows)) for rows in positives)
    filters = [rules.get(name) for name in ("absolute_margin", "relative_margin", "max_score")]
    default = rules.get("range_min", 0) + most + size * (1 if filters == [None] * 3 else 10)
    pools = []
    for row_scores, rows in zip(scores, positives, strict=True):
        range_max = rules.get("range_max") or default
        pool = brute_candidates(row_scores, rows, most, rules, range_max)
        tied = edge_is_tied(row_scores, range_max + most)
        while rules.get("range_max") is None and len(pool) < size and range_max < len(row_scores):
            range_max *= 4
            pool = brute_candidates(row_scores, rows, most, rules, range_max)
            tied |= edge_is_tied(row_scores, range_max + most)
        pools.append(None if tied else pool)
    return pools


def whole(low: int, high: int) -> st.SearchStrategy[int | None]:
    return st.none() | st.integers(low, high)


@st.composite
def cases(draw: st.DrawFn) -> tuple:
    """Small whole numbers: scores are exact, ties and negative positives are common."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    num_queries, num_gallery, size = (draw(st.integers(1, high)) for high in (5, 60, 4))
    queries, gallery = (rng.integers(-9, 10, (rows, 3)).astype(np.float32) for rows in (num_queries, num_gallery))
    counts = st.integers(1, min(3, num_gallery))
    positives = [rng.choice(num_gallery, draw(counts), replace=False).tolist() for _ in range(num_queries)]
    rules = {
        "range_min": draw(st.integers(0, 6)),
        "range_max": draw(whole(10, 30)),
        "max_score": draw(whole(-60, 100)),
        "min_score": draw(whole(-100, 60)),
        "absolute_margin": draw(whole(-5, 30)),
        "relative_margin": draw(st.sampled_from([None, 0.0, 0.25, 0.5])),
    }
    return queries, gallery, positives, size, rules


@pytest.mark.parametrize("strategy", ["top", "random"])
@given(case=cases())
@settings(max_examples=150, deadline=None)
def test_what_is_taken_is_what_brute_force_leaves(strategy: str, case: tuple):
    queries, gallery, positives, size, rules = case
    mined = mine_hard_negatives(queries, gallery, positives, num_negatives=size, sampling_strategy=strategy, **rules)
    scores = queries @ gallery.T
    for query, pool in enumerate(brute_pools(scores, positives, size, rules)):
        if pool is None:
            continue
        count = min(size, len(pool))
        rows, found = mined.indices[query, :count].tolist(), mined.scores[query]
        assert found[:count].tolist() == scores[query, rows].tolist() == sorted(scores[query, rows], reverse=True)
        assert len(set(rows) - set(positives[query])) == count
        if strategy == "top":
            assert found[:count].tolist() == scores[query, pool[:size]].tolist()
        assert set(found[:count]) <= set(scores[query, pool])
        assert (mined.indices[query, count:] == -1).all() and np.isneginf(found[count:]).all()


class FixedEncoder:
    """Stands in for a SentenceTransformer: the text "q3" is row 3 of the queries, "g3" of the gallery."""

    device = "cpu"
    similarity = staticmethod(cos_sim)
    similarity_pairwise = staticmethod(pairwise_cos_sim)

    def __init__(self, queries: NDArray[np.float32], gallery: NDArray[np.float32]):
        self.features = {"q": queries, "g": gallery}

    def encode_query(self, texts: list[str], **_: object) -> NDArray[np.float32]:
        return np.stack([self.features[text[0]][int(text[1:])] for text in texts])

    encode_document = encode_query


def library_negatives(
    queries: NDArray[np.float32], gallery: NDArray[np.float32], positives: list[list[int]], **rules: object
) -> list[set[int]]:
    pairs = [(f"q{query}", f"g{row}") for query, rows in enumerate(positives) for row in rows]
    anchors, targets = zip(*pairs, strict=True)
    mined = st_mine_hard_negatives(
        Dataset.from_dict({"query": anchors, "target": targets}),
        FixedEncoder(queries, gallery),
        corpus=[f"g{row}" for row in range(len(gallery))],
        verbose=False,
        **rules,
    )
    found = [set() for _ in queries]
    for query, negative in zip(mined["query"], mined["negative"], strict=True):
        found[int(query[1:])].add(int(negative[1:]))
    return found


RULES = [
    {"range_min": 4},
    {"range_min": 2, "range_max": 6},
    {"max_score": 0.7},
    {"min_score": 0.6, "range_max": 20},
    {"absolute_margin": 0.0, "range_max": 20},
    {"relative_margin": 0.3, "range_max": 90},
    {"absolute_margin": 0.1, "relative_margin": 0.05, "max_score": 0.8, "min_score": 0.1, "range_max": 40},
    {"relative_margin": 0.05, "range_min": 3, "range_max": 30, "num_negatives": 5},
]


@pytest.mark.parametrize("rules", RULES, ids=str)
@pytest.mark.parametrize("num_positives", [1, 3])
def test_top_equals_sentence_transformers(rules: dict, num_positives: int):
    data = make_data(num_positives=num_positives)
    mined = mine_hard_negatives(*data, **rules)
    assert [set(row[row >= 0].tolist()) for row in mined.indices] == library_negatives(*data, **rules)


@pytest.mark.parametrize(
    "rules", [{"range_min": 1, "range_max": 8, "relative_margin": 0.05}, {"range_min": 1}], ids=str
)
def test_random_draws_all_that_sentence_transformers_can_draw(rules: dict):
    data = make_data()
    ours, theirs = [set() for _ in data[0]], [set() for _ in data[0]]
    random.seed(0)
    for seed in range(40):
        mined = mine_hard_negatives(*data, sampling_strategy="random", seed=seed, **rules)
        library = library_negatives(*data, sampling_strategy="random", **rules)
        for query in range(len(data[0])):
            ours[query] |= set(mined.indices[query].tolist()) - {-1}
            theirs[query] |= library[query]
    assert ours == theirs


@pytest.mark.parametrize("bound", ["MAX_QUERIES_AT_ONCE", "MAX_CANDIDATES_AT_ONCE"])
@pytest.mark.parametrize("strategy", ["top", "random"])
def test_shares_and_batches_of_the_queries_together_give_what_all_give(monkeypatch, strategy: str, bound: str):
    queries, gallery, positives = make_data()
    options = {"num_negatives": 3, "range_max": 20, "sampling_strategy": strategy, "seed": 4}
    whole = mine_hard_negatives(queries, gallery, positives, **options)
    monkeypatch.setattr(mining, bound, 3)
    assert (mine_hard_negatives(queries, gallery, positives, **options).indices == whole.indices).all()
    for start in range(3):
        rows = np.arange(start, len(queries), 3)
        part = mine_hard_negatives(queries, gallery, positives, rows=rows, **options)
        assert (part.indices[rows] == whole.indices[rows]).all()
        assert (part.scores[rows] == whole.scores[rows]).all()
        assert (np.delete(part.indices, rows, axis=0) == -1).all()


def test_random_draws_evenly_and_by_the_seed():
    queries, gallery = np.ones((4000, 1)), np.arange(10, dtype=float)[:, None]
    mined, again, other = (
        mine_hard_negatives(
            queries, gallery, np.full(4000, 9), num_negatives=2, range_max=8, sampling_strategy="random", seed=seed
        )
        for seed in (0, 0, 1)
    )
    assert (mined.indices == again.indices).all() and (mined.indices != other.indices).any()
    counts = np.bincount(mined.indices.ravel(), minlength=10)
    assert counts[[0, 9]].tolist() == [0, 0]
    assert np.abs(counts[1:9] - 1000).max() < 150  # 5 standard deviations


@pytest.mark.parametrize("index", ["flat", "ivf", "hnsw"])
@pytest.mark.parametrize("strategy", ["top", "random"])
def test_positives_are_never_mined(index: str, strategy: str):
    queries, gallery, positives = make_data(num_gallery=300, num_positives=5)
    mined = mine_hard_negatives(queries, gallery, positives, num_negatives=40, index=index, sampling_strategy=strategy)
    for row, own in zip(mined.indices, positives, strict=True):
        assert not set(row.tolist()) & set(own)
        assert len(set(row.tolist())) == 40


def test_a_query_may_have_no_positive_unless_a_margin_needs_one():
    queries, gallery, positives = make_data()
    positives[3] = []
    assert mine_hard_negatives(queries, gallery, positives).indices[3, 0] == (queries[3] @ gallery.T).argmax()
    assert mine_hard_negatives(queries[:0], gallery, []).indices.shape == (0, 3)
    with pytest.raises(ValueError, match="query 3 has none"):
        mine_hard_negatives(queries, gallery, positives, absolute_margin=0.1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1, 60_000])  # float16 ends at 65,504
def test_features_of_any_float_type_are_scored_in_float32(dtype: torch.dtype, scale: float):
    *features, positives = make_data()
    queries, gallery = ((scale * torch.tensor(side)).to(dtype).requires_grad_() for side in features)
    mined = mine_hard_negatives(queries, gallery, positives)
    rounded = queries.detach().float().numpy() @ gallery.detach().float().numpy().T
    assert (mined.indices.dtype, mined.scores.dtype) == (np.int64, np.float32)
    np.testing.assert_allclose(mined.scores, np.take_along_axis(rounded, mined.indices, 1), rtol=1e-5, atol=1e-6)


def test_an_open_range_goes_deeper_until_enough_remain():
    """Only the very last images are below the ceiling."""
    queries, gallery = np.ones((3, 1)), np.arange(2000, dtype=float)[:, None]
    mined = mine_hard_negatives(queries, gallery, [5, 6, 1999], max_score=4, range_min=1)
    assert mined.indices.tolist() == [[3, 2, 1]] * 3


def test_an_image_given_as_tokens_counts_once_by_its_best():
    rng = np.random.default_rng(0)
    queries, tokens = unit(rng, 20, 8), unit(rng, 60, 3, 8)
    best = np.einsum("nd,mtd->nmt", queries, tokens).max(-1)  # (N, M)
    mined = mine_hard_negatives(queries, tokens, np.arange(20), num_negatives=4, progress=False)
    best[np.arange(20), np.arange(20)] = -np.inf
    assert (mined.indices == np.argsort(-best, axis=1)[:, :4]).all()
    np.testing.assert_allclose(mined.scores, -np.sort(-best, axis=1)[:, :4], rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"index": "pq"}, "Unknown index 'pq': allowed are flat, ivf, hnsw"),
        ({"sampling_strategy": "best"}, "Unknown sampling_strategy 'best': allowed are top, random"),
        ({"num_negatives": 0}, "num_negatives must be a whole number of at least 1, got 0"),
        ({"num_negatives": 2.5}, "num_negatives must be a whole number of at least 1, got 2.5"),
        ({"seed": None}, "seed must be a whole number of at least 0, got None"),
        ({"range_min": 5, "range_max": 5}, "range_max must be a whole number of at least 8, got 5"),
        ({"max_score": float("nan")}, "max_score must be a finite number, got nan"),
        ({"gallery": np.ones((0, 8))}, "at least one image"),
        ({"queries": np.ones((20, 8), complex)}, "queries must be .* floating-point numbers"),
        ({"queries": np.full((20, 8), 1e30)}, "queries row 0 has NaN, infinite or too large values"),
        ({"positives": [[0]] * 19 + [[100]]}, "query 19: positives must be rows of the gallery"),
        ({"nprobe": 2, "index": "hnsw"}, "nprobe goes with index 'ivf' only"),
        ({"nlist": 101, "index": "ivf"}, "nlist .* from 1 to 100, got 101"),
    ],
)
def test_what_would_mine_something_else_is_refused(options, message):
    queries, gallery, positives = make_data()
    inputs = {"queries": queries, "gallery": gallery, "positives": positives} | options
    with pytest.raises(ValueError, match=message) as caught:
        mine_hard_negatives(**inputs)
    assert "\n" not in str(caught.value)


def test_copies_are_few_and_equal_up_to_rounding_whatever_the_scale():
    gallery = unit(np.random.default_rng(0), 500, 4, 8)
    gallery[7], gallery[9] = gallery[3].astype(np.float16), 2 * gallery[3]
    gallery[100:300] = gallery[99]  # a placeholder picture, say
    found = copies(gallery, np.array([3, 5, 99]))
    assert set(found[0].tolist()) == {7, 9, -1} and set(found[1].tolist()) == {-1}
    assert found.shape[1] <= 16 and set(found[2].tolist()) <= set(range(100, 300)) | {-1}
    assert copies(gallery[:100], np.array([0, 5])).shape == (2, 0)
