"""The committed notebooks: clean, with the parameters their stage takes; and each run small through papermill."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import pytest
import yaml

from cirlib.params import STAGES, load_study, overridable
from cirlib.stage import PARAMETERS_MARK, assigned_names

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
STAGE_OF = {path.name: path.stem.split("_", 1)[1] for path in NOTEBOOKS}


def code_cells(path: Path) -> list:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def test_there_is_a_notebook_for_every_stage():
    assert set(STAGE_OF.values()) == set(STAGES)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_carries_no_outputs(path):
    for cell in code_cells(path):
        assert cell.outputs == []
        assert cell.execution_count is None
    assert nbformat.read(path, as_version=4).metadata.kernelspec.name == "python3"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_parameters_cell_has_every_name_that_the_stage_takes_and_keeps_them_all(path):
    first = code_cells(path)[0]
    assert first.metadata.get("tags") == ["parameters"]
    assert first.source.startswith(PARAMETERS_MARK)
    assert assigned_names(first.source) == set(overridable(STAGE_OF[path.name]))
    assert all(line.endswith(" = None") for line in first.source.splitlines()[1:])
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in code_cells(path)) == 1


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_defines_no_long_function(path):
    for cell in code_cells(path):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 5


# ------------------------------------------------------------------------------------------ run small


SMALL = {
    "data_prep": {
        "drawing": {
            "train_triplets": 40, "val_queries": 12, "gallery_size": 40, "alignment_pairs": 64,
            "pretraining_pairs": 64, "family_size": 8,
        },
        "alignment_epochs": 2, "num_workers": 0,
    },
    "zero_shot": {"weights": [0.0, 0.5, 1.0]},
    "qformer": {
        "pretraining_epochs": 1, "epochs": 2, "batch_size": 32, "num_query_tokens": 2, "width": 32, "range_max": 10,
    },
    "dpo": {"epochs": 1, "num_negatives": 2, "range_max": 10},
}  # fmt: skip


@pytest.fixture(scope="session")
def small_project(tmp_path_factory) -> Path:
    """A copy of the project's notebooks and a small garments study, with every stage run once through papermill."""
    root = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "notebooks", root / "notebooks")
    shutil.copy(ROOT / "dvc.yaml", root)
    study = load_study(ROOT / "params.yaml").model_dump(mode="json")
    for stage, values in SMALL.items():
        study[stage] |= values
    study["models"]["image_size"] = 96
    (root / "params.yaml").write_text(yaml.safe_dump(study))
    (root / "executed").mkdir()
    for path in NOTEBOOKS:
        execute(root, path.name)
    return root


def execute(root: Path, name: str, *, cwd: Path | None = None, **parameters) -> nbformat.NotebookNode:
    out = root / "executed" / name
    return papermill.execute_notebook(
        root / "notebooks" / name, out, parameters, kernel_name="python3", cwd=cwd or root, progress_bar=False
    )


def results_of(root: Path) -> dict[str, bytes]:
    files = [*(root / "results").rglob("*"), *(root / "figures").rglob("*")]
    return {str(file.relative_to(root)): file.read_bytes() for file in files if file.is_file()}


@pytest.mark.slow
def test_every_stage_leaves_its_tables_and_figures(small_project):
    results = small_project / "results" / "garments"
    summary = pd.read_csv(results / "summary.csv")
    methods = ["image_only", "text_only", "sum", "slerp", "qformer", "qformer_hard_negatives", "retrieval_dpo"]
    assert list(summary["method"].unique()) == methods
    assert set(summary["category"]) == {"dress", "shirt", "toptee", "mean"}
    assert summary["value"].between(0, 1).all()
    assert (summary["ci_low"] <= summary["value"]).all()
    assert (summary["value"] <= summary["ci_high"]).all()
    assert set(summary.loc[summary["category"] == "mean", "queries"]) == {36}
    assert set(summary["gallery"]) == {39}  # the reference is left out
    figures = {path.name for path in (small_project / "figures" / "garments").rglob("*.png")}
    assert {"triplets.png", "recall.png", "learning_curves.png", "rewards.png", "before_after.png"} <= figures
    assert {"worst.png", "kinds.png", "ranks.png", "protocols.png", "retrievals.png"} <= figures
    assert (results / "qformer" / "checkpoints" / "qformer" / "model.safetensors").is_file()
    assert not (results / "qformer" / "unfinished").exists()


@pytest.mark.slow
def test_an_override_from_the_notebooks_folder_leaves_the_pipelines_results(small_project):
    before = results_of(small_project)
    execute(small_project, "02_zero_shot.ipynb", cwd=small_project / "notebooks", weights=[0.0, 0.25])
    assert results_of(small_project) == before
    (run,) = (small_project / "runs").glob("zero_shot-*")
    assert (run / "summary.csv").is_file()
    assert (run / "figures" / "recall.png").is_file()


@pytest.mark.slow
def test_two_runs_of_a_training_give_the_same_metrics(small_project):
    for tag in ("first", "second"):
        execute(small_project, "03_qformer.ipynb", lr=1e-3, epochs=1)
        (run,) = (small_project / "runs").glob("qformer-*")
        run.rename(small_project / tag)
    first, second = ((small_project / tag / "metrics.json").read_text() for tag in ("first", "second"))
    assert first == second
    assert (small_project / "first" / "ranks.csv").read_text() == (small_project / "second" / "ranks.csv").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("learning_rate", "1e-5", ["unknown parameter 'learning_rate'", "Did you mean 'lr'?", "epochs"]),
        ("lr", "fast", ["qformer.lr", "valid number", "'fast'"]),
        ("epochs", "-1", ["qformer.epochs", "greater than or equal to 0", "-1"]),
    ],
)
def test_a_wrong_parameter_stops_papermill_with_one_sentence(small_project, option, value, told):
    before = results_of(small_project)
    command = [sys.executable, "-m", "papermill", "notebooks/03_qformer.ipynb", "executed/wrong.ipynb", "-k", "python3"]
    done = subprocess.run([*command, "-p", option, value], cwd=small_project, capture_output=True, text=True)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ParameterError: ")
    assert all(part in last for part in told)
    assert results_of(small_project) == before


@pytest.mark.slow
def test_a_stage_without_its_inputs_says_which_command_makes_them(small_project, tmp_path):
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(small_project / name, tmp_path)
    shutil.copytree(small_project / "notebooks", tmp_path / "notebooks")
    (tmp_path / "executed").mkdir()
    with pytest.raises(papermill.PapermillExecutionError, match="run `dvc repro data_prep` first"):
        execute(tmp_path, "03_qformer.ipynb")


@pytest.mark.slow
def test_real_photos_in_fashioniqs_format_take_the_same_road(small_project, real_data, tmp_path):
    photos = real_data("photos")
    study = yaml.safe_load((small_project / "params.yaml").read_text())
    heads = small_project / "data" / "garments" / "two_towers.safetensors"
    trained = small_project / "results" / "garments" / "qformer" / "checkpoints" / "qformer"
    study["name"] = "custom"
    study["data"] |= {"benchmark": "custom", "root": str(photos)}
    study["models"] |= {"clip_pretrained": str(heads), "fusion_checkpoint": str(trained)}
    study["data_prep"]["drawing"] = None
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(study))
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    (tmp_path / "executed").mkdir()
    for path in NOTEBOOKS:
        execute(tmp_path, path.name)
    summary = pd.read_csv(tmp_path / "results" / "custom" / "summary.csv")
    assert list(summary["method"].unique()) == ["image_only", "text_only", "sum", "slerp", "qformer"]
    assert set(summary["queries"]) == {60}
