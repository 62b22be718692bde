"""How long it takes until anything happens: importing the library, and `dvc repro` where nothing is to be done.

Timings are reported and not asserted.
"""

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from measuring import medians

ROOT = Path(__file__).parents[2]


def run(*command: str) -> None:
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


def test_importing_the_library(report) -> None:
    ways = {"torch": "import torch", "both": "import torch, cirlib"}
    spent = medians({name: partial(run, sys.executable, "-c", code) for name, code in ways.items()}, rounds=5)
    seconds = spent["both"] - spent["torch"]
    report("seconds of `import cirlib` beyond those of torch", f"{seconds:.2f}", "< 0.3", seconds < 0.3)


def test_a_repro_with_nothing_to_do(report) -> None:
    if "up to date" not in subprocess.run(["dvc", "status"], cwd=ROOT, capture_output=True, text=True).stdout:
        pytest.skip("the study has not run here as it stands: `make study` first")
    spent = medians({"repro": partial(run, "dvc", "repro")}, rounds=3)
    report("seconds of `dvc repro` with nothing to do", f"{spent['repro']:.1f}", "< 5", spent["repro"] < 5)
