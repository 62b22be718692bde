"""The one list of methods."""

from __future__ import annotations

from cirlib.study.methods import METHODS, method_label
from cirlib.study.parameters import STAGES


def test_every_method_has_a_stage_and_a_look_of_its_own():
    assert {method.stage for method in METHODS.values()} <= set(STAGES)
    for looks in ("label", "colour"):
        assert len({getattr(method, looks) for method in METHODS.values()}) == len(METHODS)


def test_a_method_that_the_study_does_not_know_is_named_in_words():
    assert method_label("my_own_method") == "my own method"
