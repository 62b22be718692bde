"""The runner of a stage: what a terminal shows meanwhile, what came out, and what went wrong."""

import contextlib
import errno
import io
import os
import re
import subprocess
import sys

import nbformat
import pytest
from small_studies import compose

from cirlib.app import run_stage
from cirlib.study.errors import StageError
from cirlib.study.locks import take_lock
from cirlib.study.progress import STATUS

COUNTS = """\
import time, warnings
from cirlib.study.progress import progress
warnings.warn("noise")
for _ in progress(range(4), "counting"):
    time.sleep(0.4)"""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(run_stage, "EVERY", (0.1, 0.1))
    compose(tmp_path / "params.yaml")
    (tmp_path / "notebooks").mkdir()

    def execute(terminal: io.StringIO, *cells: str) -> tuple[bool, list[str]]:
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        nbformat.write(notebook, tmp_path / "notebooks" / "02_zero_shot.ipynb")
        went_well = run_stage.run_stage(tmp_path, "02_zero_shot", terminal)
        return went_well, terminal.getvalue().removesuffix("\n").split("\n")

    return execute


def test_one_line_tells_how_far_it_is_and_in_the_end_what_was_found(run, tmp_path, monkeypatch):
    went_well, lines = run(Terminal(), COUNTS, "print('All counted.\\nAnd more.')", "1 + 1")
    assert went_well
    *live, last = lines[0].split("\r")  # one line, written over
    assert len(lines) == 1 and last.startswith("[2/5] zero_shot     0:0") and last.rstrip().endswith("  All counted.")
    counted = [line for line in live if "counting" in line]
    assert counted and all(len(line) == run_stage.WIDTH and " left" in line for line in counted)
    assert (tmp_path / "results" / "garments" / "notebooks" / "02_zero_shot.ipynb").is_file()
    assert STATUS not in run_stage.os.environ


def test_under_plain_papermill_the_terminal_shows_it_too(tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(COUNTS)])
    nbformat.write(notebook, tmp_path / "counts.ipynb")
    command = [sys.executable, "-m", "papermill", "counts.ipynb", "out.ipynb", "-k", "python3"]
    terminal, its_end = os.openpty()
    papermill = subprocess.Popen(command, cwd=tmp_path, preexec_fn=lambda: os.login_tty(its_end))
    os.close(its_end)
    said = b""
    with contextlib.suppress(OSError):  # a terminal that all have left
        while some := os.read(terminal, 4096):
            said += some
    assert papermill.wait() == 0
    assert re.search(rb"counting  \d+ %  00:0\d left", said), said.decode()


def test_where_lines_are_kept_each_is_one_of_its_own(run):
    _, lines = run(io.StringIO(), COUNTS)
    assert len(lines) > 3 and not any("noise" in line for line in lines)


def test_a_stage_that_fails_says_where_to_look_and_last_why_in_full(run):
    sentence = f"zero_shot needs {'a very large ' * 30}picture"
    went_well, lines = run(io.StringIO(), f"raise ValueError({sentence!r})")
    assert not went_well
    assert lines[-3].endswith("  failed") and lines[-1] == f"ValueError: {sentence}"
    assert lines[-2].endswith("results/garments/notebooks/02_zero_shot.ipynb  ·  the log: " + lines[-2].split(": ")[-1])
    assert lines[-2].endswith("runs/garments/logs/02_zero_shot.log")


def test_a_notebook_that_is_killed_says_so(run):
    went_well, lines = run(io.StringIO(), "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    assert not went_well and lines[-1].startswith(
        "the notebook's process was killed, as systems do where memory is full"
    )


def test_a_stage_that_another_run_writes_is_refused_and_the_others_notebook_and_log_are_left_alone(run, tmp_path):
    run(io.StringIO(), "print('mine')")
    executed = tmp_path / "results" / "garments" / "notebooks" / "02_zero_shot.ipynb"
    log = tmp_path / "runs" / "garments" / "logs" / "02_zero_shot.log"
    before = executed.read_bytes(), log.stat().st_ino
    held = take_lock(tmp_path / "runs" / "garments" / "locks" / "zero_shot.lock")
    with pytest.raises(StageError, match="another run writes to results/garments/zero_shot: wait for it, or stop it"):
        run(io.StringIO(), "print('another')")
    assert (executed.read_bytes(), log.stat().st_ino) == before
    os.close(held)
    assert run(io.StringIO(), "print('another')")[0]


def test_where_the_executed_notebook_cannot_be_written_its_name_is_said(run, monkeypatch):
    def full(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(run_stage.papermill, "execute_notebook", full)
    went_well, lines = run(io.StringIO(), "1")
    assert not went_well
    assert "results/garments/notebooks/02_zero_shot.ipynb could not be written: No space left on device" in lines[-1]


def test_a_wrong_parameter_is_one_sentence_before_anything_runs(tmp_path):
    compose(tmp_path / "params.yaml", "qformer.lr=-3")
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "notebooks").mkdir()
    nbformat.write(nbformat.v4.new_notebook(), tmp_path / "notebooks" / "03_qformer.ipynb")
    command = [sys.executable, "-m", "cirlib.app.run_stage", "03_qformer"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    (sentence,) = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (1, "")
    assert "'qformer.lr'" in sentence and "greater than 0" in sentence
    assert not (tmp_path / "results").exists()


def test_the_environments_kernel_runs_whatever_kernel_the_user_calls_python3(run, tmp_path, monkeypatch, write_json):
    write_json(
        tmp_path / "home/kernels/python3/kernel.json", {"argv": ["false"], "display_name": "x", "language": "python"}
    )
    for name, value in (("DATA_DIR", str(tmp_path / "home")), ("PREFER_ENV_PATH", "0"), ("PATH", "")):
        monkeypatch.setenv(f"JUPYTER_{name}", value)
    went_well, lines = run(io.StringIO(), "print('mine')")
    assert went_well and lines[-1].endswith("mine")
