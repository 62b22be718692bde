"""Runs the code of a notebook in this process, which kills itself (SIGKILL) at a chosen write; the tests call it.

`python run_notebook.py NOTEBOOK [PART NUMBER]` dies at the NUMBER-th time that a file whose path has PART in it is
opened for writing, renamed or removed.
"""

import os
import signal
import sys
from pathlib import Path

import matplotlib
import nbformat


def watch(part: str, number: int) -> None:
    own, touched = os.getpid(), []  # forked workers inherit the hook

    def hook(event: str, arguments: tuple) -> None:
        if event not in ("open", "os.rename", "os.remove") or os.getpid() != own:
            return
        if event == "open" and not set(str(arguments[1])) & set("wx+"):
            return
        if part in str(arguments[event == "os.rename"]):
            touched.append(event)
            if len(touched) == number:
                os.kill(own, signal.SIGKILL)

    sys.addaudithook(hook)


if __name__ == "__main__":
    notebook, *kill = sys.argv[1:]
    matplotlib.use("Agg")
    if kill:
        watch(kill[0], int(kill[1]))
    names: dict[str, object] = {"__name__": "__main__"}
    for cell in nbformat.read(Path("notebooks", notebook), as_version=4).cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, notebook, "exec"), names)
