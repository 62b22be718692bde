"""Timing ways in turns, and measuring memory in processes of their own."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

import cirlib

HERE = Path(__file__).parent
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
needs_linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from /proc")


def taking_turns(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The median seconds of each way after a round to warm up; they take turns, so that a busy machine slows all."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(1 + rounds):
        for name, run in ways.items():
            begun = time.perf_counter()
            run()
            wait_for_gpu()
            times[name].append(time.perf_counter() - begun)
    return {name: statistics.median(own[1:]) for name, own in times.items()}


def wait_for_gpu() -> None:
    """Returns when the GPU, where there is one, has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measured(script: str, *arguments: str) -> dict[str, float]:
    """What a script of this folder prints, from a fresh process."""
    root = str(Path(cirlib.__path__[0]).parent)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, str(HERE / script), *arguments]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found
