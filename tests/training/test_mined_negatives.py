"""Mined negatives: the images that the score itself would put first, less a query's own two."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from cirlib.models.qformer import QFormerSettings
from cirlib.retrieval.hard_negatives import MARGIN, mine_hard_negatives
from cirlib.training.batches import TripletSampler
from cirlib.training.mined_negatives import mine_for_triplets


@pytest.fixture
def mine(composer, tokens, parts, make_study) -> Callable[..., np.ndarray]:
    """Mines two negatives a query, or as a study with other parameters says."""

    def run(parts=parts, **params) -> np.ndarray:
        return mine_for_triplets(
            composer, TripletSampler(tokens, parts, make_study(**{"hard_negatives": 2, **params})), 1
        )

    return run


@pytest.fixture
def texts(tokens, parts, make_study) -> Callable[..., list[str]]:
    """What the first epoch reads of each query, as :func:`mine` has it."""

    def read(parts=parts, **params) -> list[str]:
        sampler = TripletSampler(tokens, parts, make_study(**{"hard_negatives": 2, **params}))
        drawn = zip(np.concatenate(sampler.rows(1)), (t for b in sampler.batches(1) for t in b.texts), strict=True)
        return [text for _, text in sorted(drawn)]

    return read


def untidy(part):
    """The same queries with captions that differ in what the texts of training leave out."""
    triplets = [replace(t, captions=(f" {t.captions[0]},", *(f"{c}. " for c in t.captions[1:]))) for t in part.triplets]
    return replace(part, triplets=triplets)


@pytest.mark.parametrize("target", ["max", "mean"])
@pytest.mark.parametrize("wanted", [1, 3])
def test_they_are_the_images_that_the_score_puts_first(mine, texts, composer, tokens, parts, target, wanted):
    """By the cleaned captions that the epoch trains on, and by an image's best token."""
    composer.settings, composer.dtype = QFormerSettings(target=target), torch.float32
    untidy_parts, own = {category: untidy(part) for category, part in parts.items()}, iter(texts())
    negatives = iter(mine(untidy_parts, hard_negatives=wanted, range_max=wanted).tolist())
    for part in parts.values():
        images = composer.embed_targets(tokens.read(tokens.rows(part.gallery), composer.device)).detach()
        for triplet in part.triplets:
            reference = tokens.read(tokens.rows([triplet.reference]), composer.device)
            query = composer.embed_queries(reference, [next(own)]).detach()[0]
            scores = (images.reshape(len(images), -1, len(query)) @ query).amax(1)
            order = [part.gallery[i] for i in scores.argsort(descending=True)]
            others = [image for image in order if image not in (triplet.reference, triplet.targets[0])]
            assert {tokens.ids[row] for row in next(negatives)} == set(others[:wanted])


@pytest.mark.parametrize("wanted", [5, 7])  # of seven
def test_they_are_drawn_from_the_category_but_for_target_and_reference_each_once(mine, tokens, parts, wanted):
    triplets = [triplet for part in parts.values() for triplet in part.triplets]
    for triplet, rows in zip(triplets, mine(hard_negatives=wanted).tolist(), strict=True):
        ids = {tokens.ids[row] for row in rows}
        assert len(ids) == wanted
        assert ids <= set(parts[triplet.category].gallery) - {triplet.reference, *triplet.targets}


def test_with_a_margin_they_are_the_hardest_that_the_target_leads_by_it(mine, texts, composer, tokens, parts):
    """Whether or not the reference does; where there are too few, others fill the row."""
    composer.dtype = torch.float32
    negatives, edits, filled = iter(mine(sampling="margin", hard_negatives=3).tolist()), iter(texts()), 0
    for part in parts.values():
        images = composer.embed_targets(tokens.read(tokens.rows(part.gallery), composer.device)).detach()
        for triplet in part.triplets:
            reference = tokens.read(tokens.rows([triplet.reference]), composer.device)
            query = composer.embed_queries(reference, [next(edits)]).detach()[0]
            scores = dict(zip(part.gallery, (images @ query).amax(1).tolist(), strict=True))
            own = {triplet.reference, triplet.targets[0]}
            behind = {i for i in scores if i not in own and scores[i] <= scores[triplet.targets[0]] - MARGIN}
            found = {tokens.ids[row] for row in next(negatives)}
            assert len(found) == 3 and not found & own
            assert found <= behind or behind < found
            filled += not found <= behind
    assert 0 < filled < 12


def test_a_draw_depends_on_the_seed_alone(mine):
    first, state = mine(), torch.get_rng_state()
    np.testing.assert_array_equal(mine(), first)
    assert torch.equal(torch.get_rng_state(), state)  # so a run that mines draws its dropout as one that does not
    assert (mine(seed=1) != first).any()


@pytest.mark.parametrize("margin", [None, 0.0, 0.3])
def test_margins_of_images_given_as_tokens_are_those_of_their_best_tokens(margin):
    generator = torch.Generator().manual_seed(0)
    queries, gallery = (torch.randn(shape, generator=generator) for shape in ((50, 4), (30, 3, 4)))
    own, seen = torch.randint(30, (2, 50, 2), generator=generator)
    options = {"excluded": seen, "absolute_margin": margin, "progress": False}
    found = mine_hard_negatives(queries, gallery, own, **options).indices.tolist()
    scores = torch.einsum("nd,mtd->nmt", queries, gallery).amax(-1)
    for row, positives in enumerate(own.tolist()):
        ceiling = np.inf if margin is None else min(scores[row, positives]).item() - margin
        order = scores[row].argsort(descending=True).tolist()
        out = [*positives, *seen[row].tolist()]  # what is excluded sets no ceiling
        wanted = [i for i in order if i not in out and scores[row, i] <= ceiling][:3]
        assert [i for i in found[row] if i >= 0] == wanted


def test_only_what_the_epoch_reads_is_searched(mine):
    whole, part = mine(), mine(edits=6)
    assert (whole >= 0).all()
    assert ((part >= 0).all(axis=1) == (part >= 0).any(axis=1)).all()
    assert (part >= 0).all(axis=1).sum() == 8


@pytest.mark.parametrize("sampling", ["band", "margin"])
def test_a_copy_of_the_target_under_another_id_is_no_negative_of_it(
    composer, tmp_path, tokens, make_store, parts, make_study, sampling
):
    ids, features = tokens.ids, tokens[tokens.ids]
    copy, target = ids.index("hat-8"), ids.index("hat-1")
    features[copy] = features[target]
    study = make_study(hard_negatives=6, sampling=sampling)  # of six
    mined = mine_for_triplets(composer, TripletSampler(make_store(tmp_path / "s", ids, features), parts, study), 1)
    assert {ids[row] for row in mined[0]} == {f"hat-{i}" for i in range(2, 8)}
