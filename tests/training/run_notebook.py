"""Runs the code of a notebook in this process, which kills itself (SIGKILL) at a chosen write; the tests call it.

    python run_notebook.py NOTEBOOK [PART NUMBER DELAY]

dies DELAY seconds after the NUMBER-th opening for writing, renaming or removing of a file in the project whose path
has PART in it. Undisturbed, it prints every such path, a line each, at its end.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import nbformat

ROOT = Path.cwd()
touched: list[str] = []


def watch(part: str, number: int, delay: float) -> None:
    own = os.getpid()  # forked workers inherit the hook

    def hook(event: str, arguments: tuple) -> None:
        if event not in ("open", "os.rename", "os.remove") or os.getpid() != own:
            return
        if event == "open" and not (isinstance(arguments[1], str) and set(arguments[1]) & set("wx+")):
            return
        path = str(arguments[1] if event == "os.rename" else arguments[0])
        if not path.startswith(str(ROOT)):
            return
        touched.append(os.path.relpath(path, ROOT))
        if part and sum(part in one for one in touched) == number and part in touched[-1]:
            if not delay:
                os.kill(own, signal.SIGKILL)
            threading.Timer(delay, os.kill, (own, signal.SIGKILL)).start()

    sys.addaudithook(hook)


if __name__ == "__main__":
    notebook, *kill = sys.argv[1:]
    import matplotlib

    matplotlib.use("Agg")
    watch(*(kill[0], int(kill[1]), float(kill[2])) if kill else ("", 0, 0.0))
    names: dict[str, object] = {"__name__": "__main__"}
    for cell in nbformat.read(ROOT / "notebooks" / notebook, as_version=4).cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, notebook, "exec"), names)
    print("\n".join(touched))
