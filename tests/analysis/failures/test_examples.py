"""Queries as pictures, and where query tokens look."""

from types import SimpleNamespace

import pytest
import torch

from cirlib.analysis.failures import examples
from cirlib.analysis.failures.query_table import query_table
from cirlib.figures import Picture
from cirlib.models.qformer import QFormerSettings, blip2_qformer

BEST = {"zero-shot": "sum", "Q-Former": "qformer"}


def test_fixed_is_what_one_finds_and_the_other_missed_the_furthest_first(make_scored):
    before, after = make_scored("sum", "hat", [5, 20, 60, 70]), make_scored("qformer", "hat", [0, 9, 3, 12])
    queries = query_table([before, after])
    fixed = examples.fixed_queries(queries, BEST)
    assert fixed[["rank", "before"]].values.tolist() == [[4, 61], [10, 21]] and set(fixed["method"]) == {"qformer"}
    assert examples.fixed_queries(queries, {"zero-shot": "qformer", "Q-Former": "sum"}).empty
    assert examples.fixed_queries(queries, {"zero-shot": "sum"}).empty
    assert examples.retrieval_grid(queries.head(0), "Fixed by the Q-Former").texts  # a note


def test_a_picture_row_says_what_was_asked_found_and_wanted(make_scored, monkeypatch):
    shown = []
    monkeypatch.setattr(examples.figures, "picture_grid", lambda rows, *titles: shown.extend([rows, *titles]))
    captions = [("is red", "is red"), ("b",), ("is longer", "has dots")]
    one = make_scored("m", "hat", [0, 40, 9], tied=[0, 0, 3], captions=captions)
    queries, path = query_table([one]), one.benchmark.path
    examples.retrieval_grid(queries.assign(before=[11, 1200, 30]), "All")
    rows, title, titles = shown
    assert (title, titles[1]) == ("All", "hat: rank 1,200 before")
    reference, edit, *found, gap, target = rows[2]
    assert (rows[0][1], edit, gap) == ("is red", "is longer and has dots", None)
    assert (reference.path, target.path, target.caption) == (path("hat-2"), path("hat-3"), "target: rank 11")
    shown = [(one.path, one.head, one.framed) for one in found]
    assert shown == [(path("hat-4"), "1", False), (path("hat-3"), "2", True)]


@pytest.mark.parametrize("target", ["max", "mean"])
def test_attention_rows_show_the_outlier_and_the_scoring_token_where_targets_have_tokens(
    tiny_blip2, make_scored, make_store, tmp_path, target
):
    composer = blip2_qformer(str(tiny_blip2), QFormerSettings(target=target)).eval()
    one = make_scored("qformer", "hat", [0, 40], captions=[("is red", "is long"), ("has dots",)], size=6)
    features = torch.randn(6, 5, 24, generator=torch.Generator().manual_seed(0))
    store = make_store(tmp_path / "tokens", one.benchmark.gallery, features)
    rules = SimpleNamespace(study=SimpleNamespace(evaluation=SimpleNamespace(captions="and")))
    rows, titles = examples._attention_rows(query_table([one]), composer, SimpleNamespace(tokens=store, stage=rules))
    assert (titles, rows[0][1]) == (["hat: found, rank 1", "hat: missed, rank 41"], "is red and is long")
    pictures = [cell for cell in rows[1] if isinstance(cell, Picture)]
    scoring = ["scoring token"] if target == "max" else []
    heads = ["reference", "all tokens", "outlier token", "target", "all tokens", *scoring]
    assert [one.head for one in pictures] == heads
    maps = composer.attention_maps(features[1:2], ["has dots"])[0].numpy()  # (Q, S, S)
    unlike = max(maps, key=lambda one: abs(one - maps.mean(0)).sum())
    assert pictures[1].heat == pytest.approx(maps.mean(0), rel=1e-3)
    assert pictures[2].heat == pytest.approx(unlike, rel=1e-3)
    if scoring:
        with torch.inference_mode():
            query = composer.embed_queries(features[1:2], ["has dots"])
            token = int((composer.embed_targets(features[2:3])[0] @ query[0]).argmax())
        expected = composer.attention_maps(features[2:3])[0, token].numpy()
        assert pictures[-1].heat == pytest.approx(expected, rel=1e-3)
