"""What a run's numbers came from beside its parameters: machine, package versions, commit."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path

import psutil


def hardware() -> list[list[str]]:
    """(what, value) of this machine."""
    import torch

    from cirlib.models.devices import precision_here

    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return [
        ["processor", _processor()],
        ["cores", str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())],
        ["memory", f"{psutil.virtual_memory().total / 2**30:.0f} GB"],
        ["GPU", ", ".join(gpus) or "none"],
        ["precision", f"{precision_here('auto')} where models.precision is auto"],
        ["system", platform.platform()],
        ["Python", platform.python_version()],
    ]


def versions() -> list[list[str]]:
    """(package, version) of everything that the project asks for and that is installed."""
    names = sorted({re.split(r"[^\w.-]", line)[0] for line in metadata.requires("cirlib") or []}, key=str.lower)
    found = []
    for name in names:
        try:
            found.append([name, metadata.version(name)])
        except metadata.PackageNotFoundError:
            continue
    return found


def commit(root: Path) -> str:
    """The git commit of ``root``, and whether files differ from it; a sentence where there is none."""
    done = [_git(root, *words) for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))]
    if done[0] is None:
        return "not in a git repository"
    return done[0] + ("" if not done[1] else f", {len(done[1].splitlines())} files changed since")


def _git(root: Path, *words: str) -> str | None:
    try:
        return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.+)$", file.read_text(), re.MULTILINE) if file.is_file() else []
    return names[0] if names else platform.processor() or platform.machine()
