"""Batches of triplets: what an epoch holds, and that their loss is what its definition says."""

import math

import numpy as np
import pytest
import torch

from cirlib.losses import info_nce
from cirlib.models.qformer import QFormerSettings, blip2_qformer
from cirlib.training.batches import Batch, TripletSampler, batch_loss

ALL = {(f"{c}-{i}", f"{c}-{i + 1}") for c, queries in (("hat", 7), ("shoe", 5)) for i in range(queries)}


@pytest.fixture
def sampler(tokens, parts, make_study) -> TripletSampler:
    return TripletSampler(tokens, parts, make_study())


def texts_of(sampler: TripletSampler, batches: list[Batch]) -> dict[tuple[str, str], str]:
    """(reference, target) → the text drawn for it, in the order of the batches."""
    ids = sampler.tokens.ids
    rows = [row for batch in batches for row in zip(batch.references, batch.targets, batch.texts, strict=True)]
    return {(ids[reference], ids[target]): text for reference, target, text in rows}


def test_an_epoch_has_every_triplet_once_with_its_own_images_and_words(sampler):
    assert [len(batch) for batch in sampler.batches(1)] == [4, 4, 4]
    texts = texts_of(sampler, sampler.batches(1))
    assert texts.keys() == ALL
    for (reference, _), text in texts.items():
        category, i = reference.split("-")
        one, two = f"is {category} {i}", f"has {i} dots"
        # both captions in either order, or one of them
        assert text in {f"I{one[1:]} and {two}", f"H{two[1:]} and {one}", f"I{one[1:]}", f"H{two[1:]}"}


def test_captions_are_drawn_anew_each_epoch_and_in_all_four_ways(sampler):
    epochs = [texts_of(sampler, sampler.batches(epoch)) for epoch in range(1, 13)]
    assert all(2 <= len({texts[query] for texts in epochs}) <= 4 for query in ALL)
    ways = {(" and " in text, text[0]) for texts in epochs for text in texts.values()}
    assert ways == {(True, "I"), (True, "H"), (False, "I"), (False, "H")}


def test_mined_negatives_stay_with_their_query_and_are_read_with_it(sampler):
    order = {(t.reference, t.targets[0]): row for row, t in enumerate(sampler.triplets)}
    for batch in sampler.batches(1, negatives=np.arange(2 * len(ALL)).reshape(-1, 2)):
        assert batch.rows(np.array([2])).tolist() == [batch.references[2], batch.targets[2], *batch.negatives[2]]
        for row, query in enumerate(texts_of(sampler, [batch])):
            assert batch.negatives[row].tolist() == [2 * order[query], 2 * order[query] + 1]


def cross_entropy(logits: list[list[float]]) -> float:
    """The mean over rows i of that of column i."""
    return float(np.mean([math.log(sum(math.exp(x - row[i]) for x in row)) for i, row in enumerate(logits)]))


@pytest.mark.parametrize("target", ["max", "mean"])
@pytest.mark.parametrize("mined", [0, 2])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_the_loss_is_cross_entropy_over_the_batch_and_the_mined(composer, tokens, target, mined, chunk_size):
    composer.settings = QFormerSettings(target=target)
    negatives = np.random.default_rng(0).integers(18, size=(3, mined)) if mined else None
    batch = Batch(np.array([0, 5, 9]), np.array([1, 2, 3]), ["red", "long", "with dots"], negatives)
    with torch.inference_mode():
        queries = composer.embed_queries(tokens.read(batch.references, composer.device), batch.texts).cpu()
        images = composer.embed_targets(tokens.read(np.arange(18), composer.device)).cpu().reshape(18, -1, 8)
        loss = batch_loss(composer, tokens, batch, chunk_size)
    rows = [[*batch.targets.tolist(), *(negatives[i].tolist() if mined else [])] for i in range(3)]
    logits = [
        [max(float(query @ token) for token in images[row]) / 0.07 for row in candidates]
        for query, candidates in zip(queries, rows, strict=True)
    ]
    assert loss.item() == pytest.approx(cross_entropy(logits), rel=1e-4)


def test_texts_without_references_and_their_images_look_for_each_other(composer, tokens):
    batch = Batch(None, np.array([1, 2, 3]), ["red", "long", "with dots"])
    assert batch.rows(np.array([0, 2])).tolist() == [1, 3]
    with torch.inference_mode():
        texts = composer.embed_texts(batch.texts).cpu()
        images = composer.embed_targets(tokens.read(batch.targets, composer.device)).cpu()
        loss = batch_loss(composer, tokens, batch)
    logits = [[max(float(text @ token) for token in image) / 0.07 for image in images] for text in texts]
    both = cross_entropy(logits) + cross_entropy(np.array(logits).T.tolist())
    assert loss.item() == pytest.approx(both / 2, rel=1e-4)


def test_an_epoch_may_read_a_part_of_the_triplets_drawn_anew_each_time(tokens, parts, make_study):
    sampler = TripletSampler(tokens, parts, make_study(edits=6))
    drawn = [np.concatenate(sampler.rows(epoch)).tolist() for epoch in range(1, 6)]
    assert all(len(set(rows)) == len(rows) == 8 for rows in drawn)  # whole batches of 4
    assert len({tuple(sorted(rows)) for rows in drawn}) > 1
    assert [len(batch) for batch in sampler.batches(1)] == [4, 4]


def test_sprcs_recipe_leaves_out_a_batch_that_is_not_full(tokens, parts, make_study):
    def sizes(batch_size: int) -> list[int]:
        study = make_study(batch_size=batch_size, recipe="sprc")
        return [len(rows) for rows in TripletSampler(tokens, parts, study).rows(1)]

    assert sizes(5) == [5, 5] and sizes(100) == [12]


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_sprcs_terms_are_weighted_into_the_loss(tiny_blip2, make_store, tmp_path, chunk_size):
    composer = blip2_qformer(str(tiny_blip2), QFormerSettings("two_pass", "max"), prompts=True).eval()
    features = torch.randn(8, 5, 24, generator=torch.Generator().manual_seed(0))
    store, rows = make_store(tmp_path / "five", [str(i) for i in range(8)], features), np.arange(4)
    batch = Batch(rows, rows + 4, ["is red", "is very blue", "dots", "has dots on it"])
    tokens = store.read(np.arange(8), composer.device)
    out, targets = composer.embed_queries(tokens[:4], batch.texts, terms=True), composer.embed_targets(tokens[4:])
    terms = [info_nce(part, targets, temperature=composer.temperature) for part in (out[:, :16], out[:, 16:32])]
    for weight in (0.0, 0.4, 1.0):
        loss = batch_loss(composer, store, batch, chunk_size, weight)
        torch.testing.assert_close(loss, terms[0] + weight * (terms[1] + out[:, 32].mean()))
    loss.backward()
    assert composer.prompt_tokens.grad.abs().max() > 0
