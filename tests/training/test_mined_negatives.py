"""Mined negatives: the images that the score itself would put first, less a query's own two."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cirlib.benchmarks import join_captions
from cirlib.models.qformer import QFormerSettings
from cirlib.retrieval.hard_negatives import mine_hard_negatives
from cirlib.study.errors import ParameterError
from cirlib.training.batches import TripletSampler


@pytest.fixture
def mine(composer, tokens, parts, make_study) -> Callable[..., np.ndarray]:
    """Mines two negatives a query, or as a study with other parameters says."""

    def run(parts=parts, **params) -> np.ndarray:
        return TripletSampler(tokens, parts, make_study(**{"hard_negatives": 2, **params})).mine(composer)

    return run


def untidy(part):
    """The same queries with captions that differ in what the texts of training leave out."""
    triplets = [replace(t, captions=(f" {t.captions[0]},", *t.captions[1:], " . ")) for t in part.triplets]
    return replace(part, triplets=triplets)


@pytest.mark.parametrize("target", ["max", "mean"])
@pytest.mark.parametrize("wanted", [1, 3])
def test_they_are_the_images_that_the_score_puts_first(mine, composer, tokens, parts, target, wanted):
    """By the cleaned captions that are trained and scored, and by an image's best token."""
    composer.settings, composer.dtype = QFormerSettings(target=target), torch.float32
    untidy_parts = {category: untidy(part) for category, part in parts.items()}
    negatives = iter(mine(untidy_parts, hard_negatives=wanted, range_max=wanted).tolist())
    for part in parts.values():
        images = composer.embed_targets(tokens.read(tokens.rows(part.gallery), composer.device)).detach()
        for triplet in part.triplets:
            reference = tokens.read(tokens.rows([triplet.reference]), composer.device)
            query = composer.embed_queries(reference, join_captions(triplet.captions, "and")).detach()[0]
            scores = (images.reshape(len(images), -1, len(query)) @ query).amax(1)
            order = [part.gallery[i] for i in scores.argsort(descending=True)]
            others = [image for image in order if image not in (triplet.reference, triplet.targets[0])]
            assert {tokens.ids[row] for row in next(negatives)} == set(others[:wanted])


def test_they_are_drawn_from_the_category_but_for_target_and_reference_each_once(mine, tokens, parts):
    triplets = [triplet for part in parts.values() for triplet in part.triplets]
    for triplet, rows in zip(triplets, mine(hard_negatives=5).tolist(), strict=True):
        ids = {tokens.ids[row] for row in rows}
        assert len(ids) == 5
        assert ids <= set(parts[triplet.category].gallery) - {triplet.reference, *triplet.targets}


def test_a_draw_depends_on_the_seed_alone(mine):
    first, state = mine(), torch.get_rng_state()
    np.testing.assert_array_equal(mine(), first)
    assert torch.equal(torch.get_rng_state(), state)  # so a run that mines draws its dropout as one that does not
    assert (mine(seed=1) != first).any()


def test_where_the_images_are_too_few_nothing_is_made_up(mine, make_benchmark):
    gallery = [f"hat-{i}" for i in range(5)]  # three to choose from
    parts = {"hat": make_benchmark([(f"hat-{i}", f"hat-{(i + 1) % 5}", f"is {i}") for i in range(5)], gallery)}
    assert len(set(mine(parts, hard_negatives=3)[0].tolist())) == 3
    with pytest.raises(ParameterError, match=r"is 4, at most 3 is allowed: so many images has hat beside a"):
        mine(parts, hard_negatives=4)


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 999), size=st.integers(4, 30), count=st.integers(1, 5),
       margin=st.sampled_from([None, 0.0, 0.05, 0.3]), depth=st.none() | st.integers(5, 8))  # fmt: skip
def test_an_image_given_as_tokens_counts_once_by_its_best(seed, size, count, margin, depth):
    """FAISS over all tokens finds what one matrix of best tokens says."""
    generator = torch.Generator().manual_seed(seed)
    queries = torch.nn.functional.normalize(torch.randn(6, 4, generator=generator), dim=-1)
    gallery = torch.nn.functional.normalize(torch.randn(size, count, 4, generator=generator), dim=-1)
    positives = torch.randint(size, (6, 2), generator=generator)
    options = {"num_negatives": 3, "range_max": depth, "absolute_margin": margin}
    found = mine_hard_negatives(queries, gallery, positives, progress=False, **options)
    scores = torch.einsum("nd,mtd->nmt", queries, gallery).amax(-1)
    most = max(len(set(own)) for own in positives.tolist())
    for row, own in enumerate(positives.tolist()):
        ceiling = min(scores[row, own]).item() - margin if margin is not None else np.inf
        looked_at = scores[row].argsort(descending=True).tolist()[: depth and depth + most]
        wanted = [i for i in looked_at if i not in own and scores[row, i] <= ceiling][:3]
        assert [i for i in found.indices[row].tolist() if i >= 0] == wanted
        np.testing.assert_allclose(found.scores[row][: len(wanted)], scores[row, wanted], atol=1e-5)
