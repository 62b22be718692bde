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
    assert examples.fixed_grid(queries, {"zero-shot": "sum"}, 6) == "Found where weighted sum misses: no query."


def test_the_grid_of_fixed_queries_says_how_many_there_are_and_by_whom(make_scored, monkeypatch):
    shown = {}
    monkeypatch.setattr(examples.figures, "picture_grid", lambda rows, title, titles, note: shown.update(locals()))
    queries = query_table([make_scored("sum", "hat", [5, 20, 60]), make_scored("qformer", "hat", [0, 9, 3])])
    examples.fixed_grid(queries, BEST, 1)
    assert (shown["title"], len(shown["rows"])) == ("Found where weighted sum misses: Q-Former", 1)
    assert "1 of 2 such queries" in shown["note"] and "rank before: by weighted sum" in shown["note"]


def test_queries_are_drawn_in_turn_from_each_category_the_same_for_a_seed(make_scored):
    queries = query_table([make_scored("sum", "hat", [0] * 5), make_scored("sum", "sock", [0, 3])])
    drawn = examples.draw_queries(queries, 4, seed=0)
    assert drawn["category"].value_counts().to_dict() == {"hat": 2, "sock": 2}
    assert drawn["query"].tolist() == examples.draw_queries(queries, 4, seed=0)["query"].tolist()
    assert len(examples.draw_queries(queries, 9, seed=0)) == 7


def test_a_picture_row_says_what_was_asked_found_and_wanted(make_scored, monkeypatch):
    shown = []
    monkeypatch.setattr(examples.figures, "picture_grid", lambda rows, *titles, note: shown.extend([rows, *titles]))
    captions = [("is red", "is red"), ("b",), ("is longer", "has dots")]
    one = make_scored("m", "hat", [0, 40, 9], tied=[0, 0, 3], captions=captions)
    queries, path = query_table([one]), one.benchmark.path
    examples.retrieval_grid(queries.assign(before=[11, 1200, 30]), "All")
    rows, title, titles = shown
    assert (title, titles[1]) == ("All: m", "hat: rank 1,200 before")
    reference, edit, *found, gap, target = rows[2]
    assert (rows[0][1], edit, gap) == ("is red", "is longer and has dots", None)
    assert (reference.path, target.path, target.caption) == (path("hat-2"), path("hat-3"), "target: rank 11")
    shown = [(one.path, one.head, one.framed) for one in found]
    assert shown == [(path("hat-4"), "rank 1", False), (path("hat-3"), "rank 2", True)]


@pytest.mark.parametrize("target", ["max", "mean"])
def test_attention_rows_show_the_reference_with_and_without_the_edit_and_say_how_alike_tokens_are(
    tiny_blip2, make_scored, make_store, tmp_path, target
):
    composer = blip2_qformer(str(tiny_blip2), QFormerSettings(target=target)).eval()
    one = make_scored("qformer", "hat", [0, 40], captions=[("is red", "is long"), ("has dots",)], size=6)
    features = torch.randn(6, 5, 24, generator=torch.Generator().manual_seed(0))
    store = make_store(tmp_path / "tokens", one.benchmark.gallery, features)
    rules = SimpleNamespace(study=SimpleNamespace(evaluation=SimpleNamespace(captions="and")))
    prepared = SimpleNamespace(tokens=store, stage=rules)
    rows, titles, note = examples._attention_rows(query_table([one]), composer, prepared)
    assert (titles, rows[0][1]) == (["hat: found, rank 1", "hat: missed, rank 41"], "is red and is long")
    pictures = [cell for cell in rows[1] if isinstance(cell, Picture)]
    heads = ["reference", "with the edit", "without words", "target", "without words"]
    assert [one.head for one in pictures] == heads
    for shown, (image, words) in zip([1, 2, 4], [(1, ["has dots"]), (1, None), (2, None)], strict=True):
        maps = composer.attention_maps(features[image : image + 1], words)[0]  # (Q, S, S)
        assert pictures[shown].heat == pytest.approx(maps.mean(0).numpy(), rel=1e-3)
    assert note.startswith("2 queries, ") and ("cosine of two tokens of a target" in note) == (target == "max")


def test_what_tokens_share_and_what_an_edit_moves_are_shares_of_attention():
    same, apart = torch.ones(1, 3, 2, 2), torch.eye(4).view(1, 4, 2, 2)
    assert examples._shared(same) == 1 and examples._shared(apart) == 0
    half = torch.tensor([[[[1.0, 1, 0, 0]], [[0, 1, 1, 0.0]]]])
    assert examples._shared(half) == pytest.approx(0.5)
    note = examples._measured([same, same * torch.tensor([2.0, 0]), same], torch.ones(1, 3, 1))
    assert "any two tokens share 100.0 % of their attention" in note and "moves 50.0 %" in note
    assert "making it even would move 0.0 %" in note and "cosine of two tokens of a target: 1.00" in note
