"""The best images of each query, against a full sort; and what an approximate index costs."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cirlib.models.baselines import weighted_sum
from cirlib.retrieval import ranking
from cirlib.retrieval.scoring import Gallery, rank, score, score_run, top_rows
from cirlib.study.parameters import Evaluation


def unit(*shape: int, seed: int = 0) -> Tensor:
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def names(count: int) -> list[str]:
    return [f"image-{i}" for i in range(count)]


def as_they_are(features: Tensor) -> Tensor:
    return features


def sorted_rows(queries: Tensor, gallery: Tensor, k: int) -> tuple[list[list[int]], Tensor]:
    """The k best rows and scores by sorting all scores in float64."""
    scores = torch.einsum("nd,m...d->nm...", queries.double(), gallery.double())
    scores = scores.amax(-1) if scores.ndim == 3 else scores
    best = scores.sort(dim=1, descending=True)
    return best.indices[:, :k].tolist(), best.values[:, :k]


@pytest.mark.parametrize("shape", [(60, 8), (40, 5, 8), (7, 3, 8)])
def test_ranking_through_the_flat_index_is_a_full_sort(shape: tuple[int, ...]) -> None:
    queries, images = unit(30, 8), unit(*shape, seed=1)
    found = rank(as_they_are, (queries,), Gallery(names(shape[0]), images), 6)
    rows, scores = sorted_rows(queries, images, 6)
    assert found.ids == [[f"image-{row}" for row in best] for best in rows]
    np.testing.assert_allclose(found.scores, scores, rtol=1e-5, atol=1e-6)
    assert found.index_recall == 1


def test_the_composer_makes_the_queries() -> None:
    photos, texts, images = unit(10, 8), unit(10, 8, seed=1), unit(20, 8, seed=2)
    found = rank(partial(weighted_sum, weight=0.3), (photos, texts), Gallery(names(20), images), 3)
    rows, _ = sorted_rows(weighted_sum(photos, texts, 0.3), images, 3)
    assert found.ids == [[f"image-{row}" for row in best] for best in rows]


def test_a_feature_store_is_a_gallery(make_store, tmp_path) -> None:
    images = unit(12, 8).half()
    store = make_store(tmp_path / "store", names(12), images)
    found = rank(as_they_are, (images[3:5].float(),), store, 1)
    assert found.ids == [["image-3"], ["image-4"]]


@pytest.mark.parametrize("index", ["ivf", "hnsw"])
@pytest.mark.parametrize("tokens", [(), (3,)])
def test_an_approximate_index_says_what_share_of_the_best_it_found(index: str, tokens: tuple[int, ...]) -> None:
    queries, images = unit(50, 16), unit(3000, *tokens, 16, seed=1)
    gallery = Gallery(names(3000), images)
    found = rank(as_they_are, (queries,), gallery, 10, index=index)
    exact = rank(as_they_are, (queries,), gallery, 10)
    shares = [len({*got} & {*best}) / 10 for got, best in zip(found.ids, exact.ids, strict=True)]
    assert found.index_recall == pytest.approx(np.mean(shares))
    assert 0.3 < found.index_recall <= 1
    assert all(len(set(ids)) == len(ids) for ids in found.ids)
    for ids, values, query in zip(found.ids, found.scores, queries, strict=True):
        own = [float((images[int(i.split("-")[1])] @ query).max()) for i in ids]
        np.testing.assert_allclose(values[: len(ids)], own, rtol=1e-5, atol=1e-6)


def test_what_an_index_does_not_find_is_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    search = ranking.Neighbours.search

    def forgetful(self: ranking.Neighbours, queries: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
        scores, rows = search(self, queries, depth)
        if not hasattr(self.cpu_index, "codes"):  # not the flat index
            scores[:, 2:], rows[:, 2:] = -np.inf, -1
        return scores, rows

    monkeypatch.setattr(ranking.Neighbours, "search", forgetful)
    found = rank(as_they_are, (unit(3, 8),), Gallery(names(100), unit(100, 8, seed=1)), 4, index="hnsw")
    assert [len(ids) for ids in found.ids] == [2, 2, 2]
    assert np.isneginf(found.scores[:, 2:]).all()
    assert found.index_recall == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("ids", "shape", "k", "index", "message"),
    [
        (5, (5, 8), 6, "flat", "k must be from 1 to the gallery's 5 images, got 6"),
        (5, (5, 8), 0, "flat", "k must be from 1"),
        (5, (4, 8), 2, "flat", r"of 5 images, got \(4, 8\)"),
        (5, (5,), 2, "flat", r"of 5 images, got \(5,\)"),
        (5, (5, 9), 2, "flat", "of one width, got 8 and 9"),
        (5, (5, 8), 2, "annoy", "index must be one of"),
    ],
)
def test_what_cannot_be_ranked_is_refused(ids: int, shape: tuple[int, ...], k: int, index: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rank(as_they_are, (unit(2, 8),), Gallery(names(ids), torch.ones(shape)), k, index=index)


def test_lists_from_a_ranking_score_as_the_embeddings_do(make_benchmark) -> None:
    ids = names(80)
    benchmark = make_benchmark([(ids[i], ids[i + 1], "is x") for i in range(40)], ids)
    queries, images = unit(40, 8), unit(80, 8, seed=1)
    found = rank(as_they_are, (queries,), Gallery(ids, images), 51)  # one more than 50, for the reference
    run = dict(zip((t.id for t in benchmark.triplets), found.ids, strict=True))
    wanted = score("m", "hat", queries, images, benchmark, Evaluation())
    got = score_run(run, benchmark)
    assert got.top == wanted.top
    for k in (1, 5, 10, 50):
        np.testing.assert_array_equal(got.recall(k), wanted.recall(k))


@pytest.mark.parametrize("tokens", [(), (3,)])
@pytest.mark.parametrize("block", [1, 7, 64, 10_000])
def test_best_rows_do_not_depend_on_block_sizes(
    tokens: tuple[int, ...], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranking, "BLOCK_VECTORS", block)
    queries, images = unit(300, 6), unit(50, *tokens, 6, seed=1)
    assert top_rows(queries, images, None, 9) == sorted_rows(queries, images, 9)[0]
    kept = [[row for row in best if row != i % 50][:9] for i, best in enumerate(sorted_rows(queries, images, 10)[0])]
    assert top_rows(queries, images, [i % 50 for i in range(300)], 9) == kept


def test_best_rows_of_a_gallery_on_disk(tmp_path) -> None:
    images = unit(500, 6, seed=1).half()
    np.save(tmp_path / "features.npy", images.numpy())
    stored = np.load(tmp_path / "features.npy", mmap_mode="r")
    assert top_rows(unit(20, 6), stored, None, 5) == sorted_rows(unit(20, 6), images, 5)[0]
