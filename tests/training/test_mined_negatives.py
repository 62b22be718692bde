"""Mined negatives: the images that the score itself would put first, less a query's own two."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cirlib.benchmarks import join_captions
from cirlib.models.qformer import QFormerSettings
from cirlib.retrieval.hard_negatives import mine_hard_negatives
from cirlib.study.errors import ParameterError
from cirlib.study.parameters import QFormer
from cirlib.training.batches import TripletSampler
from cirlib.training.mined_negatives import mine_for_triplets, require_negatives


def mine(composer, tokens, parts, seed: int = 0, **params) -> np.ndarray:
    sampler = TripletSampler(tokens, parts, batch_size=4, seed=0)
    return mine_for_triplets(composer, tokens, sampler, QFormer(**{"hard_negatives": 2, **params}), seed)


def best_token(query: Tensor, image: Tensor) -> float:
    return float((image.reshape(-1, len(query)) @ query).max())


def without_words(part):
    """The same queries with captions that differ in what the texts of training leave out."""
    triplets = [replace(t, captions=(f" {t.captions[0]},", *t.captions[1:], " . ")) for t in part.triplets]
    return replace(part, triplets=triplets)


@pytest.mark.parametrize("target", ["max", "mean"])
@pytest.mark.parametrize("wanted", [1, 3])
def test_they_are_the_images_that_the_score_puts_first(composer, tokens, parts, target, wanted):
    """By the cleaned captions that are trained and scored, and by an image's best token."""
    composer.settings, composer.dtype = QFormerSettings(target=target), torch.float32
    negatives = iter(mine(composer, tokens, parts, hard_negatives=wanted, range_max=wanted).tolist())
    for part in parts.values():
        images = composer.embed_targets(tokens.read(tokens.rows(part.gallery), composer.device)).detach().cpu()
        for triplet in part.triplets:
            text = join_captions(triplet.captions, "and")
            reference = tokens.read(tokens.rows([triplet.reference]), composer.device)
            query = composer.embed_queries(reference, text).detach().cpu()[0]
            order = sorted(range(len(images)), key=lambda i: -best_token(query, images[i]))
            others = [part.gallery[i] for i in order if part.gallery[i] not in (triplet.reference, triplet.targets[0])]
            assert {tokens.ids[row] for row in next(negatives)} == set(others[:wanted])


def test_what_training_leaves_out_of_a_caption_changes_no_negative(composer, tokens, parts):
    untidy = {category: without_words(part) for category, part in parts.items()}
    found = mine(composer, tokens, untidy, range_max=2)
    np.testing.assert_array_equal(np.sort(found), np.sort(mine(composer, tokens, parts, range_max=2)))


@pytest.mark.parametrize("seed", range(3))
def test_they_are_drawn_from_the_category_but_for_target_and_reference_each_once(composer, tokens, parts, seed):
    negatives = mine(composer, tokens, parts, seed, hard_negatives=5)
    triplets = [triplet for part in parts.values() for triplet in part.triplets]
    for triplet, rows in zip(triplets, negatives.tolist(), strict=True):
        ids = {tokens.ids[row] for row in rows}
        assert len(ids) == 5
        assert ids <= set(parts[triplet.category].gallery) - {triplet.reference, *triplet.targets}


def test_a_draw_depends_on_the_seed_alone(composer, tokens, parts):
    torch.manual_seed(0)
    first, state = mine(composer, tokens, parts), torch.get_rng_state()
    np.testing.assert_array_equal(mine(composer, tokens, parts), first)
    assert torch.equal(torch.get_rng_state(), state)  # so a run that mines draws its dropout as one that does not
    assert (mine(composer, tokens, parts, seed=1) != first).any()


def test_where_the_images_are_too_few_nothing_is_made_up(composer, tokens, make_benchmark):
    gallery = [f"hat-{i}" for i in range(5)]  # three to choose from for four
    parts = {"hat": make_benchmark([(f"hat-{i}", f"hat-{(i + 1) % 5}", f"is {i}") for i in range(5)], gallery)}
    with pytest.raises(ParameterError, match=r"is 4, at most 3 is allowed: so many images has hat beside a"):
        mine(composer, tokens, parts, hard_negatives=4)
    require_negatives({"hat": gallery}, 3)
    assert len(set(mine(composer, tokens, parts, hard_negatives=3)[0].tolist())) == 3


# ------------------------------------------------------------------ images given as tokens

COSINES = st.sampled_from([0.0, 0.05, 0.3])


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 999), size=st.integers(4, 30), count=st.integers(1, 5), margin=st.none() | COSINES,
       skipped=st.integers(0, 2), depth=st.none() | st.integers(5, 8))  # fmt: skip
def test_an_image_counts_once_by_its_best_token(seed, size, count, margin, skipped, depth):
    """FAISS over all tokens finds what one matrix of best tokens says."""
    generator = torch.Generator().manual_seed(seed)
    queries = torch.nn.functional.normalize(torch.randn(6, 4, generator=generator), dim=-1)
    gallery = torch.nn.functional.normalize(torch.randn(size, count, 4, generator=generator), dim=-1)
    positives = torch.randint(size, (6, 2), generator=generator)
    options = {"num_negatives": 3, "range_min": skipped, "range_max": depth, "absolute_margin": margin}
    found = mine_hard_negatives(queries, gallery, positives, progress=False, **options)
    scores = torch.einsum("nd,mtd->nmt", queries, gallery).amax(-1)
    most = max(len(set(own)) for own in positives.tolist())
    for row, own in enumerate(positives.tolist()):
        ceiling = min(scores[row, own]).item() - margin if margin is not None else np.inf
        looked_at = scores[row].argsort(descending=True).tolist()[: depth and depth + most]
        candidates = [i for i in looked_at if i not in own and scores[row, i] <= ceiling]
        wanted = candidates[:depth][skipped : skipped + 3]
        assert [i for i in found.indices[row].tolist() if i >= 0] == wanted
        np.testing.assert_allclose(found.scores[row][: len(wanted)], scores[row, wanted], atol=1e-5)


@pytest.mark.parametrize("index", ["ivf", "hnsw"])
def test_the_approximate_indexes_find_most_of_what_the_exact_one_finds(index):
    generator = torch.Generator().manual_seed(0)
    queries, gallery = torch.randn(50, 8, generator=generator), torch.randn(400, 3, 8, generator=generator)
    positives = torch.arange(50)
    exact, found = (
        mine_hard_negatives(queries, gallery, positives, num_negatives=10, index=kind, progress=False).indices
        for kind in ("flat", index)
    )
    assert all(len(set(row)) == 10 for row in found.tolist())
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact.tolist(), found.tolist(), strict=True)]) > 0.8
