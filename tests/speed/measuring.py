"""Timing ways in turns, and measuring memory in processes of their own."""

import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
MEGABYTE = 2**20
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
needs_linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from /proc")


def taking_turns(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """The seconds of each way in each round, after one to warm up; they take turns: a busy machine slows all."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(1 + rounds):
        for name, run in ways.items():
            begun = time.perf_counter()
            run()
            wait_for_gpu()
            times[name].append(time.perf_counter() - begun)
    return {name: own[1:] for name, own in times.items()}


def medians(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The median seconds of each way, :func:`taking_turns`."""
    return {name: statistics.median(own) for name, own in taking_turns(ways, rounds).items()}


def wait_for_gpu() -> None:
    """Returns when the GPU, where there is one, has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak(*arguments: str) -> dict[str, float]:
    """What ``peak.py`` prints, in a fresh process."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, str(HERE / "peak.py"), *arguments]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def status(field: str) -> int:
    """A line of /proc/self/status, in bytes; VmHWM is the peak of VmRSS, RssAnon its part outside files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024


def settle() -> None:
    """Give freed memory back, lest the run live on it unseen, and forget earlier peaks."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def extra_peak(run: Callable[[], object]) -> int:
    """Bytes the run needed at its peak beyond what was there before, by the kernel's own high-water mark."""
    settle()
    before = status("VmRSS")
    run()
    return status("VmHWM") - before


def anonymous_peak(run: Callable[[], object]) -> int:
    """The same without pages of mapped files, looked at every few milliseconds."""
    settle()
    before, seen = status("RssAnon"), [0]
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run)
        while not running.done():
            seen.append(status("RssAnon"))
            time.sleep(0.003)
    running.result()
    return max(seen) - before
