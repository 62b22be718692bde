"""The study query by query: recall by what is asked, misses, and methods against each other."""

import pandas as pd
import pytest
import torch

from cirlib import figures
from cirlib.analysis.failures.examples import fixed_grid
from cirlib.analysis.failures.query_table import by_kind, by_question, exchanges, miss_table, query_table, select_method
from cirlib.analysis.failures.reasons import add_reasons, reason_table
from cirlib.analysis.tables.stage_findings import failure_finding
from cirlib.retrieval.percent_tables import percent_table
from cirlib.retrieval.ranks import Ranks
from cirlib.retrieval.scoring import Scored
from cirlib.study.errors import ParameterError
from cirlib.study.files import load_table, write_table


@pytest.fixture
def queries(make_scored) -> pd.DataFrame:
    """Hats: red found, red and longer missed, longer tied at the edge; shoes: a logo far down, a belt found."""
    hats = make_scored(
        "m", "hat", [0, 40, 9], tied=[0, 0, 3], captions=[("is red",), ("is red", "is longer"), ("is longer",)]
    )
    shoes = make_scored("m", "shoe", [70, 3], captions=[("has a logo",), ("has a belt", "has a belt")])
    return query_table([hats, shoes])


def values(table: pd.DataFrame, by: str | None = None) -> dict[str, float]:
    table = table if by is None else table[table["by"] == by]
    return dict(zip(table["group"], table["value"], strict=True))


def alike(queries: pd.DataFrame, make_store, folder):
    """A store in which every two images are alike."""
    images = sorted({*queries["reference"], *queries["targets"].str[0]})
    return make_store(folder / "clip", images, torch.ones(len(images), 2))


def test_a_row_says_what_was_asked_and_found(queries):
    row = queries.iloc[2]
    asked = row[["method", "category", "query", "captions"]].tolist()
    assert asked == ["m", "hat", "hat-query-2", ("is longer",)]
    assert (row["reference"], row["targets"], row["top"]) == ("hat-2", ("hat-3",), ["hat-4", "hat-3"])
    assert (row["rank"], row["recall"], row["chance"]) == (11, 0.25, 0.1)  # 9 above and the middle of 3 tied


def test_the_rows_of_one_method_are_found_and_an_unknown_one_is_refused(make_scored):
    queries = query_table([make_scored(m, c, [0]) for m in ("sum", "qformer") for c in ("hat", "shoe")])
    assert select_method(queries, "qformer")["category"].tolist() == ["hat", "shoe"]
    with pytest.raises(ParameterError, match=r"'method': no method 'sun' in this study, allowed: sum, qformer$"):
        select_method(queries, "sun")


def test_recall_by_kind_counts_a_query_in_each_of_its_kinds(queries):
    table = by_kind(queries)
    both = pytest.approx((0 + 1 / 4) / 2)
    assert values(table) == {"colour": 0.5, "length": both, "comparison": both, "graphic": 0, "detail": 1}
    assert table["queries"].tolist() == [2, 2, 2, 1, 1]  # the commonest first
    assert ((table["ci_low"] <= table["value"]) & (table["value"] <= table["ci_high"])).all()
    assert table["chance"].tolist() == [0.1] * 5  # 10 of 101 less the reference


def test_where_attributes_are_known_they_tell_what_an_edit_changes_not_its_words(make_scored):
    one = make_scored("m", "hat", [0], captions=[("the blouse has no bow at its neck",)])
    known = {"hat-0": {"extra": "bow", "second_colour": None}, "hat-1": {"extra": "none", "second_colour": "red"}}
    (row,) = query_table([one], known).to_dict("records")
    assert (row["changed"], row["kinds"]) == (["extra", "second colour"], ["extra", "second colour", "negation"])


def test_an_edit_without_a_known_word_is_unclassified(make_scored):
    (row,) = query_table([make_scored("m", "hat", [0], captions=[("is nicer",)])]).to_dict("records")
    assert (row["changed"], row["kinds"]) == ([], ["unclassified"])


def test_recall_by_the_number_of_things_changed(make_scored, make_store, tmp_path):
    captions = [("is nicer",), ("is red",), ("is red and longer",), ("red, long, with a belt, a logo, a collar",)]
    queries = query_table([make_scored("m", "hat", [0, 40, 0, 40] * 10, captions=captions * 10)])
    table = by_question(queries, alike(queries, make_store, tmp_path))
    assert values(table, "things the edit changes") == {"0": 1, "1": 0, "2": 1, "4 or more": 0}
    few = queries[(queries.index % 4 != 1) | (queries.index == 1)]  # one query alone changes one thing
    table = by_question(few[few.index % 4 != 0], alike(queries, make_store, tmp_path))
    assert values(table, "things the edit changes") == {"1 to 2": pytest.approx(10 / 11), "4 or more": 0}


def test_recall_by_words_is_in_fifths_of_the_queries_and_equal_lengths_stay_together(make_scored, make_store, tmp_path):
    captions = [("red " * (1 + number % 7),) for number in range(70)]
    above = [0 if number % 7 < 3 else 40 for number in range(70)]
    queries = query_table([make_scored("m", "hat", above, captions=captions)])
    tables = by_question(queries, alike(queries, make_store, tmp_path))
    table = tables[tables["by"] == "words in the captions"]
    assert table["queries"].sum() == 70 and len(table) <= 5
    assert table["group"].iloc[0].startswith("1") and table["group"].iloc[-1].endswith("7")
    assert table["value"].iloc[0] == 1 and table["value"].iloc[-1] == 0
    assert len(values(tables, "likeness of reference and target (cosine)")) == 1  # all are alike


def test_recall_by_likeness_puts_unlike_pairs_first(make_scored, make_store, tmp_path):
    one = make_scored("m", "hat", [40] * 5 + [0] * 5, size=12)
    angles = torch.cumsum(torch.tensor([0, *[1.2] * 5, *[0.1] * 6]), 0)  # unlike neighbours, then like ones
    store = make_store(tmp_path / "clip", one.benchmark.gallery, torch.stack([angles.cos(), angles.sin()], 1))
    table = by_question(query_table([one]), store)
    table = table[table["by"] == "likeness of reference and target (cosine)"]
    lows = [float(group.split(" to ")[0]) for group in table["group"]]
    assert lows == sorted(lows) and lows[0] == pytest.approx(0.36, abs=0.01)
    assert (table["value"].iloc[0], table["value"].iloc[-1]) == (0, 1)


def test_misses_are_the_queries_not_surely_among_the_first_the_worst_on_top(queries):
    table = miss_table(queries.assign(reason=list("abcde")))
    assert table["query"].tolist() == ["shoe-query-0", "hat-query-1", "hat-query-2"]
    assert table["rank"].tolist() == [71, 41, 11]
    assert table["reason"].tolist() == ["d", "b", "c"]
    assert table["kinds"].tolist() == ["graphic", "colour, length, comparison", "length, comparison"]
    first = table.iloc[1]
    assert first["captions"] == "is red / is longer"
    assert (first["reference"], first["target"], first["top"]) == ("hat-1", "hat-2", "hat-3 hat-2")


def test_exchanges_count_who_finds_what_and_test_the_difference(make_scored):
    first = make_scored("sum", "hat", [0, 0, 50, 50, 50, 50])
    second = make_scored("qformer", "hat", [0, 50, 0, 0, 0, 50])
    (row,) = exchanges([first, second], ["sum", "qformer"]).to_dict("records")
    assert [row[name] for name in ("both", "only_first", "only_second", "neither")] == [1, 1, 3, 1]
    assert row["difference"] == pytest.approx(2 / 6)
    assert 0 < row["p"] <= 1 and row["p_holm"] == row["p"]


def test_a_method_that_misses_nothing_has_its_sentences(prepared, tmp_path):
    """Small or well-searched catalogues: the tables of the notebook without rows, and what stands for their figures."""
    scored = []
    for name, benchmark in prepared.splits.reported.items():
        first = torch.zeros(len(benchmark.triplets), dtype=torch.long)
        top = [[triplet.targets[0]] for triplet in benchmark.triplets]
        scored.append(Scored("sum", name, benchmark, Ranks(first, first), "the rules", True, top))
    queries = add_reasons(query_table(scored), prepared)
    why, misses, exchanged = reason_table(queries), miss_table(queries), exchanges(scored, ["sum"])
    assert len(why) == len(misses) == len(exchanged) == len(percent_table(exchanged)) == 0
    for number, table in enumerate((why, misses, exchanged)):
        write_table(table, tmp_path / f"{number}.csv")
        assert len(load_table(tmp_path / f"{number}.csv")) == len(percent_table(table)) == 0
    assert figures.save(figures.reason_bars(why), tmp_path / "a.png").data == "No target is missed in the first ten."
    one_kind = figures.save(figures.exchange_bars(exchanged), tmp_path / "a.png")
    assert one_kind.data == "The study has one kind of method."
    assert (
        fixed_grid(queries, {"zero-shot": "sum", "Q-Former": "sum"}, 6) == "Found where weighted sum misses: no query."
    )
    assert "finds 100.0 %" in failure_finding(queries, by_kind(queries), why)
