"""What a run's numbers came from beside its parameters: machine, package versions, commit, times."""

import os
import platform
import re
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from importlib import metadata
from pathlib import Path

import psutil

from cirlib.study.provenance import Provenance, write_provenance
from cirlib.study.stage import Stage


def finish(stage: Stage) -> None:
    """Ends a notebook: writes down what it was computed on and when, and leaves its folder to other runs.

    >>> finish(stage)
    """
    from cirlib.models.devices import precision_here

    facts = {
        "started": f"{stage.started:%Y-%m-%d %H:%M:%S %Z}",
        "seconds": round((datetime.now().astimezone() - stage.started).total_seconds()),
        "precision": precision_here(stage.study.models.precision),
        "machine": dict(hardware()),
        "commit": commit(stage.root),
        "versions": dict(versions()),
    }
    write_provenance(stage, facts)
    stage.finish()


def where_computed(provenance: Mapping[str, Provenance]) -> str:
    """The machine and precision of a study's stages in a sentence to add, or that they are not the same.

    >>> facts = {"precision": "fp32", "machine": {"processor": "A", "cores": "2", "GPU": "none"}}
    >>> where_computed({"zero_shot": facts})
    ' Computed on A, 2 cores, fp32.'
    >>> where_computed({"zero_shot": facts, "qformer": facts | {"precision": "bf16"}})
    ' **Not computed in one place:** zero_shot on A, 2 cores, fp32; qformer on A, 2 cores, bf16.'
    """
    places: dict[str, list[str]] = {}
    for stage, facts in provenance.items():
        machine = facts["machine"]
        device = f"{machine['processor']}, {machine['cores']} cores" if machine["GPU"] == "none" else machine["GPU"]
        places.setdefault(f"{device}, {facts['precision']}", []).append(stage)
    if len(places) < 2:
        return "".join(f" Computed on {place}." for place in places)
    said = "; ".join(f"{', '.join(stages)} on {place}" for place, stages in places.items())
    return f" **Not computed in one place:** {said}."


def hardware() -> list[tuple[str, str]]:
    """(what, value) of this machine.

    >>> [what for what, _ in hardware()]
    ['processor', 'cores', 'memory', 'GPU', 'bfloat16', 'system', 'Python']
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
        ("bfloat16", "much faster than float32" if precision_here("auto") == "bf16" else "no faster than float32"),
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
