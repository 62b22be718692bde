"""The one list of methods, and one's own in it."""

import pytest

from cirlib.study.errors import ParameterError, StudyError
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
    register("other")(Mine)
    assert requested_methods([], tmp_path) == []  # of another module
    cell = {"__name__": "__main__", "register": register, "Mine": Mine}
    exec('register("mine")(Mine)', cell)
    assert [method.name for method in requested_methods([], tmp_path)] == ["mine"]  # wherever its class is written
    exec('register("mine", "again")(Mine)', cell)
    assert find_method("mine").label == "again"


def test_a_file_that_changes_leaves_nothing_behind_and_two_files_share_no_name(tmp_path):
    (tmp_path / "mine.py").write_text(MODULE.format(trained=False).replace('"reference"', '"before"'))
    requested_methods(["mine.py"], tmp_path)
    for name in ("mine.py", "theirs.py"):
        (tmp_path / name).write_text(MODULE.format(trained=False))
    assert [method.name for method in requested_methods(["mine.py"], tmp_path)] == ["reference"]
    with pytest.raises(ParameterError, match=r"theirs.py: .*mine.py registers a method 'reference' too: rename one"):
        requested_methods(["mine.py", "theirs.py"], tmp_path)


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("class Mine:\n  def f(self)\n", r"mine.py raised SyntaxError: expected ':' \(mine.py, line 2\)"),
        ("\nimport not_there\n", r"mine.py raised ModuleNotFoundError: .*'not_there' \(.*mine.py, line 2\)"),
        (
            MODULE.format(trained=False).replace('"reference"', '"my/method"'),
            "mine.py: a method cannot be named 'my/method'",
        ),
        (MODULE.replace('("reference", "the reference itself", trained={trained})', ""), "mine.py: .*cannot be named"),
    ],
)
def test_what_a_file_cannot_run_is_a_sentence_with_its_line(tmp_path, code, told):
    (tmp_path / "mine.py").write_text(code)
    with pytest.raises(StudyError, match=f"^methods: {told}"):
        requested_methods(["mine.py"], tmp_path)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "combinr",
            "methods: 'combinr' cannot be added. Allowed: prompt_tuned, .*combiner, .*or a Python file",
        ),
        ("sum", "'sum' cannot be added"),
        ("nowhere.py", "there is no file .*nowhere.py"),
        ("empty.py", "empty.py registers no method: put @register"),
        ("prompt_tuned", "'prompt_tuned' is named twice: zero_shot.methods and qformer.methods share none"),
    ],
)
def test_what_cannot_run_is_told_in_a_sentence(tmp_path, name, told):
    (tmp_path / "empty.py").touch()
    with pytest.raises(ParameterError, match=told):
        requested_methods([name, "prompt_tuned"], tmp_path)


@pytest.mark.parametrize("name", ["sum", "my method", ""])
def test_a_name_that_is_taken_or_cannot_stand_in_a_table_is_refused(name):
    with pytest.raises(ParameterError, match="a method cannot be named"):
        register(name)


def test_a_class_without_the_functions_is_refused():
    with pytest.raises(ParameterError, match="method 'mine' has no embed_targets"):
        register("mine")(type("Half", (), {"embed_queries": None}))
