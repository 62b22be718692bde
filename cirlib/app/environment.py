"""What a run's numbers came from beside its parameters: machine, package versions, commit."""

import os
import platform
import re
import subprocess
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import psutil


def hardware() -> list[tuple[str, str]]:
    """(what, value) of this machine.

    >>> [what for what, _ in hardware()]
    ['processor', 'cores', 'memory', 'GPU', 'precision', 'system', 'Python']
    """
    import torch

    from cirlib.models.devices import precision_here

    file = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.+)$", file.read_text(), re.MULTILINE) if file.is_file() else []
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return [
        ("processor", names[0] if names else platform.processor() or platform.machine()),
        ("cores", str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())),
        ("memory", f"{psutil.virtual_memory().total / 2**30:.0f} GB"),
        ("GPU", ", ".join(gpus) or "none"),
        ("precision", f"{precision_here('auto')} where models.precision is auto"),
        ("system", platform.platform()),
        ("Python", platform.python_version()),
    ]


def versions() -> list[tuple[str, str]]:
    """(package, version) of everything that the project asks for and that is installed.

    >>> "pandas" in dict(versions())
    True
    """
    found = []
    for name in sorted({re.split(r"[^\w.-]", line)[0] for line in metadata.requires("cirlib") or []}, key=str.lower):
        with suppress(metadata.PackageNotFoundError):
            found.append((name, metadata.version(name)))
    return found


def commit(root: Path) -> str:
    """The git commit of ``root``, and whether files differ from it; a sentence where there is none.

    >>> commit(folder)
    'not in a git repository'
    """
    words = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=, with changed files"]
    with suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(words, cwd=root, capture_output=True, text=True, check=True).stdout.strip()
    return "not in a git repository"
