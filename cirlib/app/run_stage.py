"""One stage of the study, run as ``dvc repro`` runs it: a line of the terminal tells how far it is and what came out.

``python -m cirlib.app.run_stage 03_qformer`` executes the notebook into ``results/<study>/notebooks/``. What libraries
say meanwhile goes to ``runs/<study>/logs/``.
"""

import argparse
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import shorten
from threading import Event, Thread
from typing import TextIO

import nbformat
import papermill
from nbclient.exceptions import DeadKernelError

from cirlib.study.errors import StudyError
from cirlib.study.files import ADVICE
from cirlib.study.locks import alone
from cirlib.study.parameters import PIPELINE, load_study
from cirlib.study.progress import STATUS
from cirlib.study.stage import Stage, project_root

EVERY = 0.5, 15.0  # seconds between two looks: at a terminal, and where lines are kept
WIDTH = 118  # characters of a line
KILLED = "the notebook's process was killed, as systems do where memory is full: a smaller batch_size wants less"
STOPPED = "stopped: run it again to go on"


def run_stage(root: Path, notebook: str, terminal: TextIO) -> bool:
    """Executes the notebook ``notebook`` (its name without ending) of the project ``root``; whether that went well.

    StageError: another run writes the stage's results; its notebook and its log are left alone.

    >>> run_stage(Path.cwd(), "03_qformer", sys.stderr)  # doctest: +SKIP
    True
    """
    study, stage = load_study(root / "params.yaml"), notebook.split("_", 1)[1]
    out = root / "results" / study.name / stage
    with alone(Stage(stage, study, root, out, out, {}).lock, os.path.relpath(out, root)):
        pass  # the notebook itself takes the lock again
    title = f"[{PIPELINE.index(stage) + 1}/{len(PIPELINE)}] {stage:<13}"
    source = root / "notebooks" / f"{notebook}.ipynb"
    target = root / "results" / study.name / "notebooks" / source.name
    log = root / "runs" / study.name / "logs" / f"{notebook}.log"
    for folder in (target.parent, log.parent):
        folder.mkdir(parents=True, exist_ok=True)
    own_kernels = f"{sys.prefix}/share/jupyter"  # before those of the user
    os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, [own_kernels, os.environ.get("JUPYTER_PATH")]))
    start, failure = time.monotonic(), None
    with _followed(title, start, terminal), _stderr_into(log):
        try:
            papermill.execute_notebook(source, target, kernel_name="python3", cwd=root, progress_bar=False)
        except papermill.PapermillExecutionError as error:
            failure = f"{error.ename}: {error.evalue}"
        except DeadKernelError:
            failure = KILLED
        except KeyboardInterrupt:
            failure = STOPPED
        except OSError as error:
            failure = f"{os.path.relpath(error.filename or target)} could not be written: {error.strerror}: {ADVICE}"
    said = "failed" if failure else shorten(_last_word(target), 160, placeholder=" …")
    _show(terminal, f"{title} {_clock(time.monotonic() - start)}  {said}", ends=True)
    if failure:
        print(f"The executed notebook: {os.path.relpath(target)}  ·  the log: {os.path.relpath(log)}", file=terminal)
        print(failure, file=terminal)
    return failure is None


@contextmanager
def _followed(title: str, start: float, terminal: TextIO) -> Iterator[None]:
    """Inside, ``terminal`` shows what the notebook's bars say."""
    done = Event()
    with TemporaryDirectory() as folder:
        status = Path(folder) / "status"
        os.environ[STATUS] = str(status)

        def follow() -> None:
            while not done.wait(EVERY[0] if terminal.isatty() else EVERY[1]):
                said = status.read_text() if status.is_file() else ""
                _show(terminal, f"{title} {_clock(time.monotonic() - start)}  {said}")

        thread = Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            del os.environ[STATUS]


@contextmanager
def _stderr_into(log: Path) -> Iterator[None]:
    """Inside, this process and those that it starts write their errors and warnings to the file ``log``."""
    kept = os.dup(2)
    log.unlink(missing_ok=True)
    with log.open("a") as stream:
        os.dup2(stream.fileno(), 2)
        try:
            yield
        finally:
            logging.shutdown()
            os.dup2(kept, 2)
            os.close(kept)


def _show(terminal: TextIO, line: str, ends: bool = False) -> None:
    """``line`` in the place of the one before at a terminal, else below it."""
    if not terminal.isatty():
        print(line, file=terminal, flush=True)
    else:
        print(f"\r{line if ends else line[:WIDTH]:<{WIDTH}}", end="\n" if ends else "", file=terminal, flush=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}"


def _last_word(executed: Path) -> str:
    """The first line of the last text that a notebook's code printed or displayed."""
    for cell in reversed(nbformat.read(executed, as_version=4).cells):
        for output in reversed(cell.get("outputs", [])):
            text = output.get("text") or output.get("data", {}).get("text/markdown", "")
            if output.get("name") != "stderr" and text.strip():
                return text.strip().splitlines()[0].replace("**", "")
    return ""


def main() -> None:
    """Runs one stage's notebook, with one line in the terminal."""
    parser = argparse.ArgumentParser(prog="python -m cirlib.app.run_stage", description=main.__doc__)
    try:
        root = project_root()
    except StudyError as error:
        parser.exit(1, f"{error}\n")
    names = sorted(path.stem for path in (root / "notebooks").glob("*.ipynb") if path.stem.split("_", 1)[1] in PIPELINE)
    parser.add_argument("notebook", choices=names)
    notebook = parser.parse_args().notebook
    with os.fdopen(os.dup(2), "w") as terminal:
        try:
            if not run_stage(root, notebook, terminal):
                parser.exit(1)
        except (StudyError, OSError) as error:
            parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
