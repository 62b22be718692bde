"""Stages killed (SIGKILL) at random moments and run again: they end as if nothing had happened."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_studies import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("small_project"), pytest.mark.timeout(900)]

KILLS = 3


def start(root: Path, notebook: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "papermill", f"notebooks/{notebook}", "executed/killed.ipynb", "-k", "python3"]
    return subprocess.Popen(
        command, cwd=root, env=os.environ | {"PYTHONPATH": str(ROOT)}, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def kill_all(process: subprocess.Popen) -> None:
    """papermill and its kernel, which has a session of its own."""
    import psutil

    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in family:
        one.send_signal(signal.SIGKILL)
    process.wait()


def seconds(root: Path, notebook: str) -> float:
    begun = time.monotonic()
    assert start(root, notebook).wait() == 0
    return time.monotonic() - begun


@pytest.mark.parametrize(
    ("notebook", "stage", "begun_with", "outcome"),
    [
        ("01_data_prep.ipynb", "data_prep", [], ["metrics.json", "counts.csv", "audit.csv"]),
        ("03_qformer.ipynb", "qformer", ["data_prep", "zero_shot"], ["metrics.json", "summary.csv", "ranks.csv"]),
    ],
    ids=["drawing and encoding", "training, mining and writing"],
)
def test_a_stage_killed_again_and_again_ends_with_the_same_files(
    small_project, tmp_path, notebook, stage, begun_with, outcome
):
    root = tmp_path / "project"
    for name in ("notebooks", "executed"):
        shutil.copytree(small_project / name, root / name)
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(small_project / name, root)
    if begun_with:
        shutil.copytree(small_project / "data", root / "data")
    for name in begun_with:
        shutil.copytree(small_project / "results" / "garments" / name, root / "results" / "garments" / name)
    rng = random.Random(stage)
    killed = 0
    for _ in range(KILLS):
        process = start(root, notebook)
        try:
            process.wait(rng.uniform(7, 14))  # importing takes the first seconds
        except subprocess.TimeoutExpired:
            kill_all(process)
            killed += 1
    assert killed
    seconds(root, notebook)
    for name in outcome:
        own, undisturbed = (folder / "results" / "garments" / stage / name for folder in (root, small_project))
        assert own.read_bytes() == undisturbed.read_bytes(), name
    assert not (root / "results" / "garments" / stage / "unfinished").exists()
    assert [path for path in root.rglob("*.tmp")] == [] and [path for path in root.rglob("*.partial")] == []
