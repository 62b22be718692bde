"""One's own method, as docs/your_method.md has it: from a file into the scores, and found again."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from cirlib.models.fitted_methods import fit_methods, fitted_methods
from cirlib.retrieval.method_scoring import score_methods
from cirlib.retrieval.scoring import compare, summarise
from cirlib.study.errors import MethodError
from cirlib.study.method_registry import METHODS
from cirlib.study.parameters import Evaluation

PAGE = Path(__file__).resolve().parents[2] / "docs" / "your_method.md"


@pytest.fixture
def own_file(prepared):
    """The page's ten lines in a file of the study."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip() and "import" not in line]) == 8
    file = prepared.stage.root / "my_method.py"
    file.write_text(code)
    yield file.name
    file.unlink()
    METHODS.pop("text_pull", None)


def test_the_page_s_method_is_scored_compared_and_opened_again(prepared, own_file, tmp_path):
    methods = fit_methods(prepared, [own_file])
    assert list(methods) == ["text_pull"]
    scored = score_methods(methods, prepared.read, prepared.splits.reported, Evaluation())
    assert summarise(scored)["value"].between(0, 1).all()
    beside = score_methods({"other": methods["text_pull"]}, prepared.read, prepared.splits.reported, Evaluation())
    assert compare(scored + beside, "other")["difference"].tolist() == [0.0]
    again = fitted_methods(prepared, [own_file], tmp_path)["text_pull"]()
    images = prepared.read(["hat-val-0"])
    assert again.embed_queries(images, ["is blue"]).equal(methods["text_pull"].embed_queries(images, ["is blue"]))


def test_what_is_trained_on_triplets_is_left_out_where_there_are_none(prepared, own_file, monkeypatch):
    file = prepared.stage.root / own_file
    file.write_text(file.read_text().replace('twice the text")', 'twice the text", trained=True)'))
    assert list(fit_methods(prepared, [own_file])) == ["text_pull"]
    monkeypatch.setitem(vars(prepared), "splits", replace(prepared.splits, train={}))
    assert fit_methods(prepared, [own_file]) == {}


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("def fit(self, prepared):\n        [].pop()", r"IndexError: pop from empty list \(.*my_method.py, line 9\)"),
        ("def fit(self):\n        pass", "TypeError: .*takes 1 positional argument but 2 were given"),
        ("def __init__(self, width):\n        pass", "TypeError: .*missing 1 required positional argument: 'width'"),
    ],
)
def test_what_its_own_code_raises_is_a_sentence_with_its_line(prepared, own_file, code, told):
    file = prepared.stage.root / own_file
    file.write_text(file.read_text().replace("class TextPull:", f"class TextPull:\n    {code}\n    class_body = 1\n", 1)
                    .replace("def fit(self, prepared):  #", "def unused(self, prepared):  #"))  # fmt: skip
    with pytest.raises(MethodError, match=f"method 'text_pull' raised {told}"):
        fit_methods(prepared, [own_file])


def test_a_method_that_saves_itself_finds_a_folder_and_is_loaded(prepared, own_file, tmp_path):
    file = prepared.stage.root / own_file
    keeps = "    def save(self, file):\n        file.write_text('kept')\n\n    def load(self, prepared, file):\n"
    file.write_text(file.read_text() + "\n" + keeps + "        self.kept = file.read_text()\n")
    fit_methods(prepared, [own_file])
    assert fitted_methods(prepared, [own_file], prepared.stage.out)["text_pull"]().kept == "kept"
