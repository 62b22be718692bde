"""Two runs of one stage in one folder: the second is refused, and a killed one leaves nothing to clear away."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cirlib.study import stage
from cirlib.study.errors import StageError
from cirlib.study.stage import open_stage

# Opens a stage as a notebook does, tells so, and stays; "forks": with a worker that outlives it.
HOLDER = """
import multiprocessing, sys, time
from cirlib.study.stage import open_stage
stage = open_stage(sys.argv[1])
if "forks" in sys.argv:
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    worker.start()
    print(worker.pid)
print("open", flush=True)
sys.stdin.readline()
stage.finish()
print("finished", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch) -> Path:
    (tmp_path / "params.yaml").write_text("name: small\ndata: {root: raw}\n")
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path.resolve()
    for folder in list(stage._held):
        stage._release(folder)


@pytest.fixture
def holder(project: Path):
    """Starts a process that opens a stage and waits; gives it and the lines it printed."""
    started: list[subprocess.Popen] = []

    def start(*arguments: str) -> tuple[subprocess.Popen, list[str]]:
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        process = subprocess.Popen([sys.executable, "-c", HOLDER, *arguments], text=True, **pipes)
        started.append(process)
        lines = []
        while (line := process.stdout.readline().strip()) != "open":
            assert line, process.stderr.read()
            lines.append(line)
        return process, lines

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_the_second_run_in_a_folder_is_refused_until_the_first_finishes_its_notebook_still_open(holder):
    first, _ = holder("qformer")
    with pytest.raises(StageError, match="another run writes to results/small/qformer: wait for it, or stop it"):
        open_stage("qformer")
    first.stdin.write("\n")
    first.stdin.flush()
    assert first.stdout.readline().strip() == "finished"
    open_stage("qformer")


def test_other_stages_the_search_page_and_the_same_cell_again_are_not_hindered(holder):
    holder("qformer")
    open_stage("search")
    assert open_stage("dpo").out == open_stage("dpo").out


@pytest.mark.parametrize("workers", [[], ["forks"]], ids=["alone", "with a worker that lives on"])
def test_a_killed_run_leaves_no_lock(holder, project, workers):
    first, lines = holder("qformer", *workers)
    first.kill()
    first.wait()
    try:
        assert list(open_stage("qformer").out.iterdir()) == []
    finally:
        for worker in filter(str.isdigit, lines):
            os.kill(int(worker), signal.SIGKILL)


def test_a_folder_that_may_not_be_written_is_refused_before_any_work(project):
    (project / "results" / "small" / "dpo").mkdir(parents=True)
    if subprocess.run(["mount", "--bind", "results", "results"], capture_output=True).returncode:
        pytest.skip("no folder can be mounted here")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", "results"], check=True)
        for stage in ("dpo", "qformer"):  # one is there, the other is to be made
            with pytest.raises(StageError, match=f"results/small/{stage} may not be written: Read-only file system"):
                open_stage(stage)
    finally:
        subprocess.run(["umount", "-l", "results"], check=True)


@pytest.mark.parametrize("cell", ["1 / 0", "1 / 1"])
def test_a_notebook_that_failed_or_is_looked_at_gives_its_folder_to_others_while_its_kernel_goes_on(project, cell):
    shell = (
        "from IPython.core.interactiveshell import InteractiveShell\n"
        "shell = InteractiveShell.instance()\n"
        "shell.run_cell('from cirlib.study.stage import open_stage; stage = open_stage(\"qformer\")')\n"
        f"shell.run_cell('{cell}')\n"
        "print('done', flush=True)\n"
        "input()\n"
    )
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", shell], text=True, **pipes) as process:
        while process.stdout.readline().strip() != "done":
            assert process.poll() is None, process.stderr.read()
        try:
            assert open_stage("qformer").out.is_dir()
        finally:
            process.kill()
