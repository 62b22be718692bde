"""What a notebook opens first: parameters found in its cells, folders from anywhere, inputs asked for by name."""

import fcntl
import os
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import papermill
import pytest
import torch

from cirlib.study import stage as stage_module
from cirlib.study.errors import ParameterError, StageError
from cirlib.study.stage import Stage, open_stage, project_root


class Shell:
    """As much of IPython's shell as a stage looks at: the cells that ran, and their names."""

    def __init__(self, *cells: str) -> None:
        self.user_ns: dict[str, Any] = {"In": ["", *cells]}
        for cell in cells:
            with suppress(SyntaxError):
                exec(cell, self.user_ns)

    def set_custom_exc(self, *_: object) -> None:
        pass

    @property
    def events(self) -> "Shell":
        return self

    def register(self, *_: object) -> None:
        pass


@pytest.fixture
def project(tmp_path: Path, monkeypatch) -> Path:
    """A project folder, with the current folder two levels down in it as JupyterLab may have it."""
    (tmp_path / "params.yaml").write_text("name: small\nseed: 3\ndata: {root: data/small/raw}\n")
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / "notebooks" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "notebooks" / "deep")
    return tmp_path.resolve()


@pytest.fixture
def run_cells(project: Path, monkeypatch) -> Callable[..., Stage]:
    """Opens a stage after the given cells ran."""

    def run(*cells: str, name: str = "qformer") -> Stage:
        shell = Shell(*cells)
        monkeypatch.setattr(stage_module, "_ipython", lambda: shell)
        return open_stage(name)

    return run


OWN = "# Parameters: None keeps what params.yaml says\nlr = None\nepochs = None\nseed = None\n"


def test_the_root_is_found_from_a_folder_below_it_and_outside_the_folder_is_named(
    project, tmp_path_factory, monkeypatch
):
    assert project_root() == project
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "params.yaml").write_text("name: x\n")  # alone it makes no project
    monkeypatch.chdir(elsewhere)
    with pytest.raises(ParameterError, match=f"no params.yaml and dvc.yaml at or above {elsewhere}"):
        project_root()


def test_with_nothing_overridden_a_stage_writes_the_pipelines_results(project, run_cells):
    stage = run_cells(OWN)
    assert stage.overrides == {}
    assert stage.out == project / "results" / "small" / "qformer"
    assert stage.figures == project / "figures" / "small" / "qformer"
    assert stage.params == stage.study.qformer
    assert stage.data == project / "data" / "small" / "prepared"
    assert stage.images == project / "data" / "small" / "raw"
    assert stage.results("dpo") == project / "results" / "small" / "dpo"


def test_an_override_writes_to_a_folder_that_says_it(project, run_cells):
    stage = run_cells(OWN, "# Parameters\nlr = 1e-5\nepochs = 2\n")
    assert stage.overrides == {"epochs": 2, "lr": 1e-5}
    assert stage.params.lr == 1e-5
    assert stage.out == project / "runs" / "small" / "qformer-epochs=2,lr=1e-05"
    assert stage.figures == stage.out / "figures"
    assert {path.name for path in project.iterdir()} == {"params.yaml", "dvc.yaml", "notebooks", "runs"}


def test_the_values_in_force_are_told_with_where_they_are_set(run_cells):
    table = run_cells("# Parameters\nweights = [0.5]\nseed = None", name="zero_shot").in_force()
    assert table.loc["weights"].tolist() == ["[0.5]", "this notebook"]
    assert table.loc["seed"].tolist() == ["3", "params.yaml"]
    assert table.loc["gallery", "value"] == "original"


@pytest.mark.parametrize("value", ["[0.25]", "[0.1] * 30"])
def test_an_odd_or_long_value_becomes_a_short_name_of_its_own(project, run_cells, value):
    cells = [f"# Parameters\nweights = {value} * {times}\n" for times in (1, 2)]
    one, two = (run_cells(cell, name="zero_shot").out for cell in cells)
    assert one.parent == project / "runs" / "small"
    assert len(one.name.split("-")[1]) == 12
    assert one != two


@pytest.mark.parametrize(
    ("cells", "overrides"),
    [
        (["# Parameters\nlr = 2e-5\nseed = None\n"], {"lr": 2e-5}),
        ([OWN, "import os\nlr = 5.0\nbatch_size = 3\n# Parameters\n"], {"lr": 5.0}),
        (["nonsense = 1\n", OWN], {}),
        (["\n\n# Parameters\nepochs = 1\n"], {"epochs": 1}),
        (["# Parameters\nlr = = 1\n", "# Parameters\nlr = 1e-3\n"], {"lr": 1e-3}),
    ],
    ids=["None keeps", "names of marked cells only", "unmarked names", "blank lines before", "mistyped once"],
)
def test_marked_cells_are_read_however_they_came(run_cells, cells, overrides):
    assert run_cells(*cells).overrides == overrides


def test_an_unknown_name_in_a_parameters_cell_is_an_error_before_any_folder_is_made(project, run_cells):
    with pytest.raises(ParameterError, match="unknown parameter 'learning_rate' for qformer"):
        run_cells(OWN, "# Parameters\nlearning_rate = 1e-5\n")
    assert {path.name for path in project.iterdir()} == {"params.yaml", "dvc.yaml", "notebooks"}


def test_the_seed_of_the_study_seeds_every_generator(run_cells):
    def draws(*cells: str) -> tuple[float, float, float]:
        run_cells(*cells)
        return random.random(), np.random.rand(), torch.rand(1).item()

    assert draws(OWN) == draws(OWN)
    assert not set(draws(OWN)) & set(draws("# Parameters\nseed = 4\n"))


def test_what_an_earlier_stage_chose_is_read_and_missing_the_command_that_makes_it_is_named(run_cells):
    stage = run_cells(OWN)
    (stage.out / "best_run.json").write_text('{"run": "qformer"}')
    assert stage.require(stage.out / "best_run.json", "qformer") == stage.out / "best_run.json"
    assert stage.read_choice("qformer", "best_run.json") == {"run": "qformer"}
    with pytest.raises(StageError) as caught:
        stage.require(stage.data / "tokens", "data_prep")
    assert (
        str(caught.value)
        == "qformer needs data/small/prepared/tokens, which is missing: run `dvc repro data_prep` first"
    )


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("qformer: {rerank: nothing}", "qformer.rerank: 'nothing' cannot be the first. Allowed: image_only, .*"),
        ("qformer: {rerank: reranked}", "qformer.rerank: 'reranked' cannot be the first"),
        ("qformer: {rerank: retrieval_dpo}", "qformer.rerank: 'retrieval_dpo' cannot be the first"),
        ("qformer: {methods: [phi], phi: phi.pt}", "qformer.phi: there is no file .*phi.pt"),
        (
            "models: {fusion_checkpoint: left}",
            "models.fusion_checkpoint, .*: there is no file .*left/model.safetensors",
        ),
        ("failure_cases: {method: foo}", "failure_cases.method: there is no method 'foo'. Allowed: image_only, .*"),
        ("search: {left: foo}", "search.left: there is no method 'foo'"),
        ("models: {clip_pretrained: openai}", "models.clip_pretrained, of mini heads .*: there is no file .*openai"),
    ],
)
def test_a_method_or_file_that_is_not_there_is_told_before_any_work(project, run_cells, asked, message):
    with (project / "params.yaml").open("a") as file:
        file.write(asked)
    with pytest.raises(ParameterError, match=message):
        run_cells(OWN)
    assert not (project / "results").exists()


def test_a_notebook_between_two_cells_lets_others_write_and_waits_for_them_before_its_next(run_cells, capsys):
    stage, taken = run_cells(OWN), fcntl.LOCK_EX | fcntl.LOCK_NB
    with stage.lock.open("a") as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, taken)
        stage_module._after_a_cell(None)
        fcntl.flock(other, taken)
        with ThreadPoolExecutor(1) as pool:
            next_cell = pool.submit(stage_module._before_a_cell, None)
            with pytest.raises(TimeoutError):
                next_cell.result(timeout=0.3)
            fcntl.flock(other, fcntl.LOCK_UN)
            next_cell.result(timeout=60)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, taken)
        stage.finish()
        fcntl.flock(other, taken)
    assert "another run writes what this notebook writes: waits for it" in capsys.readouterr().out


CODE = """from cirlib.study.stage import open_stage
stage = open_stage("qformer")
print(stage.params.lr, stage.params.epochs)
stage.require(stage.data / "tokens", "data_prep")"""


def test_papermill_overrides_reach_the_stage_and_errors_are_one_sentence(project, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(stage_module.__file__).parents[2]))
    cells = [nbformat.v4.new_code_cell(OWN, metadata={"tags": ["parameters"]}), nbformat.v4.new_code_cell(CODE)]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), project / "n.ipynb")
    with pytest.raises(papermill.PapermillExecutionError) as caught:
        papermill.execute_notebook("../../n.ipynb", "../../out.ipynb", {"lr": 1e-5, "epochs": "2"}, progress_bar=False)
    assert "1e-05 2" in (project / "out.ipynb").read_text()
    assert (project / "runs" / "small" / "qformer-epochs=2,lr=1e-05").is_dir()
    text = str(caught.value)
    assert "qformer needs data/small/prepared/tokens, which is missing: run `dvc repro data_prep` first" in text
    assert "Traceback" not in text


def test_what_is_there_but_may_not_be_read_is_not_said_to_be_missing(run_cells, monkeypatch):
    stage = run_cells(OWN)
    (stage.out / "best_run.json").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(StageError, match=r"which this user may not read: chmod -R a\+rX results/.*best_run\.json"):
        stage.require(stage.out / "best_run.json", "qformer")
