"""Stages killed (SIGKILL) again and again, at chosen writes and random moments after them: they end as if never."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cirlib.study.parameters import load_study

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

DRAWING = {
    "train_triplets": 30, "val_queries": 10, "gallery_size": 40, "alignment_pairs": 32, "pretraining_pairs": 32,
    "family_size": 8,
}  # fmt: skip


def run(root: Path, notebook: str, *kill: str) -> subprocess.CompletedProcess:
    """The notebook's code in a process of its own; `kill`: the part of a path, the number of the write, the delay."""
    command = [sys.executable, Path(__file__).with_name("run_notebook.py"), notebook, *kill]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)


def finish(root: Path, notebook: str) -> list[str]:
    """Runs it undisturbed; what it wrote, in order."""
    done = run(root, notebook)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


def kill(root: Path, notebook: str, part: str, number: int, delay: float) -> None:
    done = run(root, notebook, part, str(number), str(delay))
    assert done.returncode == -9, f"{part} {number}: {done.returncode} {done.stderr[-2000:]}"


def assert_same(found: Path, wanted: Path) -> None:
    """Every file but the training histories, which tell times."""
    ours, theirs = (
        {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (found, wanted)
    )
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name] and not name.endswith("history.csv")] == []


@pytest.fixture(scope="module")
def bare_garments(tmp_path_factory) -> Path:
    """A project that is to draw a small garments study."""
    root = tmp_path_factory.mktemp("garments")
    study = load_study(ROOT / "params.yaml").model_dump(mode="json")
    study["models"]["image_size"] = 64
    study["data_prep"] |= {"drawing": DRAWING, "num_workers": 2, "batch_size": 16}
    study["qformer"] |= {"epochs": 3, "mine_from": 1, "range_max": 10, "batch_size": 16}
    (root / "params.yaml").write_text(yaml.safe_dump(study))
    shutil.copytree(ROOT / "notebooks", root / "notebooks")
    shutil.copy(ROOT / "dvc.yaml", root)
    return root


def test_drawing_and_encoding(bare_garments, tmp_path):
    rng = random.Random("drawing and encoding")
    shutil.copytree(bare_garments, tmp_path / "undisturbed")
    shutil.copytree(bare_garments, tmp_path / "killed")
    finish(tmp_path / "undisturbed", "01_data_prep.ipynb")
    for part, number, delay in [
        ("captions/cap", rng.randint(1, 18), 0),
        ("tokens.partial/features.npy", 2, rng.uniform(0.1, 0.5)),
        ("results", rng.randint(1, 15), 0),
    ]:
        kill(tmp_path / "killed", "01_data_prep.ipynb", part, number, delay)
    finish(tmp_path / "killed", "01_data_prep.ipynb")
    assert_same(tmp_path / "killed", tmp_path / "undisturbed")


def test_training_mining_and_writing_results(bare_garments, tmp_path):
    rng = random.Random("training, mining and writing")
    shutil.copytree(bare_garments, tmp_path / "undisturbed")
    for notebook in ("01_data_prep.ipynb", "02_zero_shot.ipynb"):
        finish(tmp_path / "undisturbed", notebook)
    shutil.copytree(tmp_path / "undisturbed", tmp_path / "killed")
    written = finish(tmp_path / "undisturbed", "03_qformer.ipynb")
    assert any("qformer/epoch-1.pt" in path for path in written)
    for part, number, delay in [
        ("unfinished/pretraining", rng.randint(2, 4), 0),
        ("unfinished/qformer/", rng.randint(2, 8), rng.uniform(0, 0.1)),
        ("unfinished/qformer_hard_negatives", rng.randint(1, 6), rng.uniform(0, 0.1)),
        ("qformer/ranks.csv", rng.randint(1, 3), 0),
    ]:
        kill(tmp_path / "killed", "03_qformer.ipynb", part, number, delay)
    finish(tmp_path / "killed", "03_qformer.ipynb")
    assert_same(tmp_path / "killed", tmp_path / "undisturbed")
