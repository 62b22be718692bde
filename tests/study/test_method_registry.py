"""The one list of methods."""

from cirlib.study.method_registry import METHODS
from cirlib.study.parameters import STAGES


def test_every_method_has_a_stage_and_a_look_of_its_own():
    assert {method.stage for method in METHODS.values()} <= set(STAGES)
    for looks in ("label", "colour"):
        assert len({getattr(method, looks) for method in METHODS.values()}) == len(METHODS)
