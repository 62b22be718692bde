"""The study's table and ranks, gathered from its stages, and its best methods."""

from dataclasses import replace

import pandas as pd
import pytest

from cirlib.analysis.tables.study_tables import best_method, best_of_families, read_scored, read_summaries
from cirlib.retrieval.result_files import write_results
from cirlib.retrieval.scoring import summarise
from cirlib.study.errors import StageError
from cirlib.study.provenance import write_provenance

RANKS = {  # stage → method → the rank of every target, less one
    "zero_shot": {"image_only": 30, "sum": 9},
    "qformer": {"qformer": 0},
    "dpo": {"retrieval_dpo": 60},
}


@pytest.fixture
def scored(make_scored) -> dict[str, list]:
    """Stage → what it scored, on hats (2 queries) and shoes (4 queries)."""
    sizes = {"hat": 2, "shoe": 4}
    return {
        stage: [make_scored(m, c, [rank] * size) for m, rank in ranks.items() for c, size in sizes.items()]
        for stage, ranks in RANKS.items()
    }


@pytest.fixture
def stage(custom_stage, scored):
    """A study all of whose stages have run."""
    stage = custom_stage("failure_cases")
    for name, parts in scored.items():
        stage.results(name).mkdir(parents=True)
        write_results(parts, stage.results(name))
        write_provenance(replace(stage, name=name), {})
    return stage


def test_the_table_and_the_ranks_have_every_stage_in_order(stage, scored):
    expected = pd.concat([summarise(parts) for parts in scored.values()], ignore_index=True).round(6)
    pd.testing.assert_frame_equal(read_summaries(stage), expected, check_dtype=False)
    parts = {one.category: one.benchmark for one in scored["qformer"]}
    found, everything = read_scored(stage, parts), [one for own in scored.values() for one in own]
    assert [(one.method, one.category) for one in found] == [(one.method, one.category) for one in everything]
    assert [one.ranks.above.tolist() for one in found] == [one.ranks.above.tolist() for one in everything]
    assert all(one.benchmark is parts[one.category] for one in found)


@pytest.mark.parametrize("missing", RANKS)
def test_a_stage_that_has_not_run_is_named_with_the_command_that_runs_it(stage, missing):
    for file, read in (("summary.csv", lambda: read_summaries(stage)), ("ranks.csv", lambda: read_scored(stage, {}))):
        (stage.results(missing) / file).unlink()
        with pytest.raises(StageError, match=f"{missing}/{file}, which is missing: run `dvc repro {missing}` first"):
            read()


def test_the_best_method_of_all_and_of_each_family_has_the_highest_mean_recall_at_10():
    rows = [
        ("sum", "mean", "recall@10", 0.3), ("slerp", "mean", "recall@10", 0.4), ("sum", "mean", "recall@50", 0.99),
        ("qformer", "mean", "recall@10", 0.5), ("qformer_hard_negatives", "hat", "recall@10", 0.9),
    ]  # fmt: skip
    summary = pd.DataFrame(rows, columns=["method", "category", "metric", "value"])
    assert best_method(summary) == "qformer"
    assert best_of_families(summary) == {"zero-shot": "slerp", "Q-Former": "qformer"}
