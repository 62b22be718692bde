"""Stages of a tiny study killed (SIGKILL) at chosen writes and called again: they end as if never killed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cirlib.study.parameters import load_study

ROOT = Path(__file__).resolve().parents[2]
DRAWING = {
    "train_images": 50, "train_triplets": 12, "val_queries": 6, "gallery_size": 25, "pairs": 16,
    "family_size": 8,
}  # fmt: skip
QFORMER = {
    "pretraining_epochs": 1, "epochs": 2, "mine_from": 1, "range_max": 4, "batch_size": 16, "num_query_tokens": 2,
    "width": 16,
}  # fmt: skip
KILLS = {  # notebook → parts of paths, and at which of their writes to die
    "01_data_prep": [("captions/cap", 4), ("features/tokens", 3)],
    "02_zero_shot": [],
    "03_qformer": [("trainings/qformer/", 3), ("trainings/qformer_hard_negatives", 2)],
}


def run(root: Path, notebook: str, *kill: object) -> None:
    """The notebook's code in a process of its own."""
    command = [sys.executable, Path(__file__).with_name("run_notebook.py"), f"{notebook}.ipynb", *map(str, kill)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == (-9 if kill else 0), f"{kill} {done.stdout[-2000:]} {done.stderr[-2000:]}"


def content(root: Path) -> dict[str, bytes]:
    """Every file but those that tell times: trainings with their histories, and where each stage was computed."""
    timed = ("history.csv", "state.pt", "provenance")
    files = [path for path in root.rglob("*") if path.is_file() and not {path.name, path.parent.name} & {*timed}]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


@pytest.mark.slow
def test_what_was_killed_and_called_again_is_what_was_not_killed(tmp_path):
    study = load_study(ROOT / "params.yaml").model_dump(mode="json")
    study["models"]["image_size"] = 64
    study["data_prep"] |= {"drawing": DRAWING, "num_workers": 2, "batch_size": 16}
    study["qformer"] |= QFORMER
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    shutil.copytree(ROOT / "notebooks", whole / "notebooks")
    shutil.copy(ROOT / "dvc.yaml", whole)
    (whole / "params.yaml").write_text(yaml.safe_dump(study))
    shutil.copytree(whole, killed)
    for notebook, kills in KILLS.items():
        run(whole, notebook)
        for kill in kills:
            run(killed, notebook, *kill)
        run(killed, notebook) if kills else shutil.copytree(whole, killed, dirs_exist_ok=True)
        assert content(killed) == content(whole), notebook
