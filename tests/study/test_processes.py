"""Several processes, real ones: the loss and the gradients are those of one process with the same batch."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from accelerate import PartialState
from torch.nn import functional as F

from cirlib.losses.info_nce import info_nce
from cirlib.study.errors import ParameterError, ResourceError
from cirlib.study.processes import (
    all_gather,
    all_reduce,
    average_gradients,
    broadcast,
    launch,
    local_indices,
    process_count,
    shard,
)

WIDTH = 6
GPUS = torch.cuda.device_count()
needs_two = pytest.mark.skipif(GPUS == 1, reason="2 processes need as many GPUs")


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes find the work that is defined here."""
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parent}{os.pathsep}{Path(__file__).parents[2]}")


def step(count: int) -> tuple[torch.nn.Module, torch.Tensor]:
    """One backward pass of a linear model whose rows this process computes in part."""
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(2, count, WIDTH, generator=generator)
    model = torch.nn.Linear(WIDTH, WIDTH)
    model.load_state_dict({"weight": torch.randn(WIDTH, WIDTH, generator=generator), "bias": torch.zeros(WIDTH)})
    mine = local_indices(count)
    queries, targets = (all_gather(F.normalize(model(x[mine]), dim=-1), count) for x in (images, texts))
    loss = info_nce(queries, targets, temperature=0.1)
    loss.backward()
    average_gradients(model)
    return model, loss


def save_step(asked: tuple[Path, int]) -> None:
    """What this process has after a step, and of what all of them share."""
    folder, count = asked
    model, loss = step(count)
    whole, own = torch.zeros(5, dtype=torch.int64), shard(range(5))
    whole[own] = torch.tensor(own) + 10
    shared = [all_reduce(whole).tolist(), broadcast(f"of process {PartialState().process_index}")]
    saved = {"loss": loss.detach(), "weight": model.weight.grad, "shared": shared}
    torch.save(saved, folder / f"{PartialState().process_index}.pt")


@pytest.mark.slow
@needs_two
@pytest.mark.parametrize(("processes", "count"), [(2, 8), (2, 7), (3, 7)])
def test_loss_and_gradients_are_those_of_one_process(tmp_path, processes, count):
    if 0 < GPUS < processes:
        pytest.skip(f"{processes} processes need as many GPUs")
    model, loss = step(count)
    launch(save_step, (tmp_path, count), processes)
    assert len(list(tmp_path.iterdir())) == processes
    for file in tmp_path.iterdir():
        saved = torch.load(file, weights_only=True)
        torch.testing.assert_close(saved["loss"].cpu(), loss.detach())
        torch.testing.assert_close(saved["weight"].cpu(), model.weight.grad, atol=1e-5, rtol=1e-5)
        assert saved["shared"] == [[10, 11, 12, 13, 14], "of process 0"]


def end_badly(way: str) -> None:
    """The second process fails or is killed; the first would go on for ten minutes."""
    if PartialState().is_main_process:
        time.sleep(600)
    if way == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    raise ValueError("the second process fails")


@pytest.mark.slow
@needs_two
@pytest.mark.parametrize(("way", "said"), [("fails", "ValueError: the second process fails"), ("killed", "SIGKILL")])
def test_a_process_that_fails_or_is_killed_ends_all_with_one_sentence(capfd, way, said):
    with pytest.raises(ResourceError, match="one of 2 processes failed, its error stands above: run it again"):
        launch(end_badly, way, 2)
    assert said in capfd.readouterr().err


def wait_long(folder: Path) -> None:
    (folder / f"{os.getpid()}").touch()
    time.sleep(600)


OWNER = """
import sys
from pathlib import Path
from cirlib.study.processes import launch, process_pool
from test_processes import wait_long

if __name__ == "__main__":
    if sys.argv[2] == "launch":
        launch(wait_long, Path(sys.argv[1]), 2)
    else:
        list(process_pool(2).map(wait_long, [Path(sys.argv[1])] * 2))
"""


def test_what_a_test_starts_can_be_interrupted_however_the_tests_were_started():
    """Also as a background job, which has SIGINT ignored: `sh -c 'trap "" INT; pytest …'`."""
    sleeper = subprocess.Popen(["sleep", "60"])
    sleeper.send_signal(signal.SIGINT)
    assert sleeper.wait(10) == -signal.SIGINT


@pytest.mark.slow
@needs_two
@pytest.mark.parametrize(
    ("how", "sent"), [("launch", signal.SIGKILL), ("launch", signal.SIGINT), ("pool", signal.SIGKILL)]
)
def test_no_process_outlives_the_one_that_started_it(tmp_path, how, sent):
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path), how], stderr=subprocess.PIPE, text=True)
    while len(list(tmp_path.iterdir())) < 2:
        assert owner.poll() is None, owner.stderr.read()
        time.sleep(0.1)
    started = psutil.Process(owner.pid).children(recursive=True)
    assert {int(file.name) for file in tmp_path.iterdir()} <= {process.pid for process in started}
    owner.send_signal(sent)
    _, alive = psutil.wait_procs(started, timeout=60)
    assert alive == []
    assert owner.wait(10) != 0
    assert ("KeyboardInterrupt" in owner.stderr.read()) == (sent == signal.SIGINT)


def test_a_process_a_gpu_and_no_more_than_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert [process_count(asked, "p") for asked in (None, 3)] == [1, 3]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [process_count(asked, "p") for asked in (None, 1, 2)] == [2, 1, 2]
    with pytest.raises(ParameterError, match=r"qformer\.processes is 3, at most 2 is allowed: so many GPUs are here"):
        process_count(3, "qformer.processes")
