"""Where numbers come from, and that those of two studies are not put together."""

import json
from dataclasses import replace

import pytest

from cirlib.app.environment import finish
from cirlib.study.errors import StageError
from cirlib.study.parameters import override
from cirlib.study.provenance import read_provenance, require_same


@pytest.fixture
def finished(custom_stage):
    """03 as it was left."""
    stage = custom_stage("qformer")
    finish(stage)
    return stage


def changed(stage, name: str, **values):
    """The stage ``name`` of the same project with other parameters of 03 and of the protocol."""
    return replace(stage, name=name, study=override(stage.study, "qformer", values))


def test_a_stage_says_on_what_and_when_it_was_computed(finished):
    (facts,) = read_provenance(finished.root, "small", ("qformer", "dpo")).values()
    assert set(facts) == {"started", "seconds", "precision", "machine", "commit", "versions", "parameters"}
    assert facts["precision"] in ("fp32", "bf16") and "torch" in facts["versions"]
    assert facts["parameters"]["qformer"]["lr"] == finished.params.lr


def test_what_was_computed_with_other_parameters_is_not_put_together(finished):
    require_same(changed(finished, "failure_cases"), "qformer")
    said = "qformer was computed with qformer.lr=0.0002, now it is 0.5: run `dvc repro qformer` first"
    with pytest.raises(StageError, match=said):
        require_same(changed(finished, "failure_cases", lr=0.5), "qformer")
    with pytest.raises(StageError, match=r"needs results/small/provenance/dpo.json, .*: run `dvc repro dpo` first"):
        require_same(changed(finished, "failure_cases"), "dpo")


def test_another_seed_of_the_notebook_alone_is_the_same_study_on_the_same_data(finished):
    other = replace(finished, study=override(finished.study, "qformer", {"seed": 1}))
    require_same(replace(other, overrides={"seed": 1}), "qformer")
    with pytest.raises(StageError, match="qformer was computed with seed=0, now it is 1"):
        require_same(other, "qformer")


def test_training_anew_and_another_protocol_are_no_other_study(finished):
    require_same(changed(finished, "failure_cases", retrain=True, captions="first"), "qformer")


def test_a_run_with_changed_parameters_says_so_beside_its_own_results(finished, tmp_path):
    out = tmp_path / "runs" / "small" / "qformer-lr=0.5"
    out.mkdir(parents=True)
    kept = read_provenance(finished.root, "small", ("qformer",))
    finish(replace(changed(finished, "qformer", lr=0.5), out=out, overrides={"lr": 0.5}))
    assert json.loads((out / "provenance.json").read_text())["parameters"]["qformer"]["lr"] == 0.5
    assert read_provenance(finished.root, "small", ("qformer",)) == kept
