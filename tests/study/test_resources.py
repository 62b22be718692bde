"""Too little disk or memory: one sentence that says what to lower, and what was finished before is kept."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cirlib.study.errors import ResourceError
from cirlib.study.resources import require_disk, within_memory

# Trains with as much address space as is there after start-up plus some; the batch of epoch 2 grows beyond it.
TRAINING = """
import resource, sys
from pathlib import Path
import psutil, torch
from torch import nn
from cirlib.training.loop import TrainingConfig, train

torch.set_num_threads(1)
torch.manual_seed(0)
layer, sizes = nn.Linear(1000, 1000), {1: 8, 2: int(sys.argv[2])}
model = nn.Sequential(layer, nn.Tanh())
loss_of = lambda rows: (model(torch.ones(len(rows), 1000)).square().mean(), {})
used = psutil.Process().memory_info().vms
resource.setrlimit(resource.RLIMIT_AS, (used + 400_000_000,) * 2)
config = TrainingConfig("toy", epochs=2, steps_per_epoch=1, lr=0.01, precision="fp32")
try:
    train(model, lambda epoch: [range(sizes[epoch])], loss_of, config, Path(sys.argv[1]))
except Exception as error:
    print(f"{type(error).__name__}: {error}")
"""


def trained(folder: Path, size: int) -> list[str]:
    command = [sys.executable, "-c", TRAINING, str(folder), str(size)]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()


@pytest.mark.skipif(sys.platform != "linux", reason="memory can be limited on Linux only")
def test_a_batch_too_large_for_the_memory_says_what_to_lower_and_keeps_the_epoch_before(tmp_path):
    *_, last = trained(tmp_path, 1_000_000)  # 4 GB
    assert last.startswith("ResourceError: toy: a batch of 1000000 triplets does not fit into the machine's memory: ")
    assert "lower batch_size" in last
    told = trained(tmp_path, 8)
    assert "toy: goes on after epoch 1" in told
    assert told[-1].startswith("toy 2/2")


@pytest.mark.parametrize(
    ("error", "where"), [(MemoryError(), "machine"), (torch.OutOfMemoryError("CUDA out of memory"), "GPU")]
)
def test_every_way_to_run_out_of_memory_is_one_sentence_and_other_errors_pass(error, where):
    told = pytest.raises(ResourceError, match=rf"a batch does not fit into the {where}'s memory: make it smaller")
    with told, within_memory("a batch", "make it smaller"):
        raise error
    with pytest.raises(RuntimeError, match="mat1 and mat2"), within_memory("a batch", "make it smaller"):
        torch.ones(2, 3) @ torch.ones(2, 3)


def test_a_disk_that_is_too_small_is_refused_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10e9))
    require_disk(tmp_path / "not" / "there", int(9e9), "make room")
    with pytest.raises(ResourceError, match=r"9\.8 GB, 0\.5 GB beside them, and its disk has 10 GB free: make room"):
        require_disk(tmp_path / "not" / "there", int(9.8e9), "make room")
