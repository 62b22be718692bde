"""The study repeated with other seeds: same data, other trainings, the study itself left as it was."""

import os
import shutil
from pathlib import Path

import pandas as pd
import papermill
import pytest
from nbclient.exceptions import DeadKernelError
from small_studies import ROOT

from cirlib.app import seeds
from cirlib.app.seeds import repeat_study
from cirlib.study.errors import StageError
from cirlib.study.locks import take_lock


def contents(root: Path) -> dict[str, bytes]:
    files = [root / "params.yaml", root / "dvc.lock"]
    files += [f for kind in ("data", "results", "figures") for f in (root / kind).rglob("*") if f.is_file()]
    return {str(file.relative_to(root)): file.read_bytes() for file in files if file.name != "seeds.csv"}


@pytest.mark.slow
def test_seeds_train_anew_on_the_same_data_go_on_after_a_stop_and_leave_the_study_alone(
    small_project, tmp_path, monkeypatch
):
    root = shutil.copytree(small_project, tmp_path / "study", symlinks=True)
    before, execute, run = contents(root), papermill.execute_notebook, []

    def counted(notebook: Path, *arguments: object, **options: object) -> None:
        run.append(Path(notebook).name)
        if len(run) == 2:
            raise KeyboardInterrupt
        execute(notebook, *arguments, progress_bar=False, **options)

    monkeypatch.setattr(papermill, "execute_notebook", counted)
    with pytest.raises(KeyboardInterrupt):
        repeat_study(root, 2)
    table = repeat_study(root, 2)
    assert run == ["02_zero_shot.ipynb", *["03_qformer.ipynb"] * 2, "04_dpo.ipynb"]
    again = repeat_study(root, 2)
    assert len(run) == 4
    pd.testing.assert_frame_equal(again, table)
    assert contents(root) == before
    written = pd.read_csv(root / "results" / "garments" / "seeds.csv")
    values = written.pivot(index=["method", "metric", "category"], columns="seed", values="value")
    assert list(values) == [0, 1] and not values.isna().any(axis=None)
    summary = pd.read_csv(root / "results" / "garments" / "summary.csv")
    assert values[0].to_dict() == summary.set_index(["method", "metric", "category"])["value"].to_dict()
    other = pd.read_csv(root / "runs/garments/seeds/seed-1/results/garments/zero_shot/ranks.csv")
    own = pd.read_csv(root / "results" / "garments" / "zero_shot" / "ranks.csv")
    assert other["query"].equals(own["query"]) and other["target"].equals(own["target"])
    assert not other["above"].equals(own["above"])  # the towers are aligned anew


def test_where_the_study_has_not_run_the_command_is_named(tmp_path):
    (tmp_path / "params.yaml").write_text("name: small\ndata: {root: raw}\n")
    results = tmp_path / "results" / "small"
    results.mkdir(parents=True)
    shutil.copy(ROOT / "docs" / "studies" / "garments" / "results" / "summary.csv", results)
    with pytest.raises(StageError, match=r"small/data_prep/contents.json, .*: run `dvc repro` first"):
        repeat_study(tmp_path, 2)


@pytest.fixture
def ran(tmp_path) -> Path:
    """A study that has run, as far as a repetition looks."""
    (tmp_path / "params.yaml").write_text("name: small\ndata: {root: raw}\n")
    (tmp_path / "results" / "small" / "data_prep").mkdir(parents=True)
    (tmp_path / "results" / "small" / "data_prep" / "contents.json").write_text("{}")
    (tmp_path / "data" / "small" / "prepared" / "clip").mkdir(parents=True)
    shutil.copy(ROOT / "docs" / "studies" / "garments" / "results" / "summary.csv", tmp_path / "results" / "small")
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    return tmp_path


def test_one_repetition_at_a_time(ran):
    (ran / "runs" / "small" / "locks").mkdir(parents=True)
    held = take_lock(ran / "runs" / "small" / "locks" / "seeds.lock")
    with pytest.raises(StageError, match="another run writes to runs/small/seeds: wait for it, or stop it"):
        repeat_study(ran, 2)
    assert not (ran / "runs" / "small" / "seeds").exists()
    os.close(held)


@pytest.mark.parametrize(
    ("problem", "said"),
    [(DeadKernelError("died"), "seed-1: 02_zero_shot.ipynb failed: the notebook's process was killed"),
     (KeyboardInterrupt(), "stopped: run it again to go on")],
)  # fmt: skip
def test_a_repetition_that_is_killed_or_stopped_says_so_in_a_sentence(ran, monkeypatch, capsys, problem, said):
    def execute(*_arguments: object, **_options: object) -> None:
        raise problem

    monkeypatch.setattr(papermill, "execute_notebook", execute)
    monkeypatch.chdir(ran)
    monkeypatch.setattr("sys.argv", ["seeds", "--count", "2"])
    with pytest.raises(SystemExit):
        seeds.main()
    assert capsys.readouterr().err.startswith(said)
