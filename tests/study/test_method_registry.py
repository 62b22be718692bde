"""The one list of methods, and one's own in it."""

import pytest

from cirlib.study.errors import ParameterError
from cirlib.study.method_registry import METHODS, find_method, register, requested_methods

MODULE = """
from cirlib.study.method_registry import register

@register("reference", "the reference itself", trained={trained})
class Reference:
    def embed_queries(self, images, texts):
        return images.embeddings

    def embed_targets(self, images):
        return images.embeddings
"""


@pytest.fixture(autouse=True)
def _leaves_the_list_as_it_was():
    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)


class Mine:
    def embed_queries(self, images, texts): ...

    def embed_targets(self, images): ...


def test_every_method_has_a_look_of_its_own():
    for looks in ("label", "colour"):
        values = [getattr(method, looks) for method in METHODS.values() if getattr(method, looks)]
        assert len(set(values)) == len(values)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.made_by is not None])
def test_what_runs_where_it_is_asked_for_can_be_made(name):
    method = METHODS[name].make()
    assert all(hasattr(method, needed) for needed in ("fit", "embed_queries", "embed_targets"))


def test_a_file_s_methods_run_and_are_known_by_their_label(tmp_path):
    (tmp_path / "mine.py").write_text(MODULE.format(trained=False))
    (one,) = requested_methods(["mine.py"], tmp_path)
    assert (one.name, one.label, one.family, one.trained) == ("reference", "the reference itself", "your own", False)
    (tmp_path / "mine.py").write_text(MODULE.format(trained=True))
    assert [m.trained for m in requested_methods(["mine.py", "prompt_tuned"], tmp_path)] == [True, True]
    assert find_method("reference").trained


def test_what_the_running_notebook_registers_runs_without_being_named(tmp_path):
    register("mine")(Mine)
    assert requested_methods([], tmp_path) == []  # of another module
    Mine.__module__ = "__main__"
    assert [method.name for method in requested_methods([], tmp_path)] == ["mine"]
    register("mine", "again")(Mine)
    assert find_method("mine").label == "again"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "combinr",
            "methods: 'combinr' cannot be added. Allowed: prompt_tuned, .*combiner, .*or a Python file",
        ),
        ("sum", "'sum' cannot be added"),
        ("nowhere.py", "there is no file .*nowhere.py"),
        ("empty.py", "'empty.py' cannot be added"),
    ],
)
def test_what_cannot_run_is_told_in_a_sentence(tmp_path, name, told):
    (tmp_path / "empty.py").touch()
    with pytest.raises(ParameterError, match=told):
        requested_methods([name], tmp_path)


@pytest.mark.parametrize("name", ["sum", "my method", ""])
def test_a_name_that_is_taken_or_cannot_stand_in_a_table_is_refused(name):
    with pytest.raises(ParameterError, match="a method cannot be named"):
        register(name)


def test_a_class_without_the_functions_is_refused():
    with pytest.raises(ParameterError, match="method 'mine' has no embed_targets"):
        register("mine")(type("Half", (), {"embed_queries": None}))
