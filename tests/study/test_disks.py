"""A disk that is full or may not be written: one sentence, and what was finished before is kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from cirlib import figures
from cirlib.models.feature_store import FeatureStore, StoreError, build_store
from cirlib.models.qformer import QFormerSettings, blip2_qformer, save_weights
from cirlib.study.errors import WriteError
from cirlib.study.files import replace_file, write_json, write_table
from cirlib.training import loop as training
from cirlib.training.loop import Recipe, train


@pytest.fixture
def small_disk(tmp_path: Path):
    """A real file system of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=False, capture_output=True)
    subprocess.run(["umount", "-l", str(folder)], check=True)


KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
from cirlib import figures
from cirlib.training import loop as training
from cirlib.models.qformer import QFormerSettings, blip2_qformer, save_weights
from cirlib.models.feature_store import StoreError, FeatureStore, build_store
from cirlib.study.errors import WriteError
from cirlib.study.files import replace_file, write_json, write_table
from cirlib.training.loop import Recipe, train

def write(path):
    path.write_text("hal")
    os.kill(os.getpid(), signal.SIGKILL)

replace_file(Path(sys.argv[1]), write)
"""


def test_a_full_disk_keeps_the_old_file_and_says_what_to_do(small_disk):
    file = small_disk / "table.csv"
    replace_file(file, lambda path: path.write_text("old"))
    with pytest.raises(OSError, match=r"table\.csv could not be written: No space left on device.*make room"):
        replace_file(file, lambda path: path.write_bytes(b"n" * 8_000_000))
    assert [path.name for path in small_disk.iterdir()] == ["table.csv"]  # nothing half-written is left
    assert file.read_text() == "old"
    replace_file(file, lambda path: path.write_text("new"))  # the room is there again
    assert file.read_text() == "new"


def test_a_folder_that_may_not_be_written_is_named(small_disk):
    replace_file(small_disk / "table.csv", lambda path: path.write_text("old"))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(OSError, match=r"table\.csv could not be written: Read-only file system"):
        replace_file(small_disk / "table.csv", lambda path: path.write_text("new"))
    assert (small_disk / "table.csv").read_text() == "old"


def test_a_writer_that_is_killed_leaves_the_old_file(tmp_path):
    file = tmp_path / "table.csv"
    file.write_text("old")
    done = subprocess.run([sys.executable, "-c", KILLED_WRITER, str(file)], env=os.environ, capture_output=True)
    assert done.returncode == -9
    assert file.read_text() == "old"


# ------------------------------------------------------------------ whatever the study writes


def fill(folder: Path, left: int = 4096) -> None:
    """Leaves so many bytes free."""
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    (folder / "filling").write_bytes(b"f" * max(0, free - left))


NOISE = np.random.default_rng(0).random((400, 400))


def noisy_figure() -> Figure:
    figure = Figure()
    figure.subplots().imshow(NOISE)
    return figure


WRITERS = {
    "table": ("table.csv", lambda path: write_table(pd.DataFrame(NOISE[:100]), path)),
    "metrics": ("metrics.json", lambda path: write_json(NOISE[:100].tolist(), path)),
    "picture": ("picture.png", lambda path: figures.save(noisy_figure(), path)),
}


@pytest.mark.parametrize("what", WRITERS)
def test_a_full_disk_keeps_tables_metrics_and_pictures(small_disk, what):
    name, write = WRITERS[what]
    write(small_disk / name)
    before = (small_disk / name).read_bytes()
    fill(small_disk)
    with pytest.raises(WriteError, match=rf"{name} could not be written: .*: make room on its disk"):
        write(small_disk / name)
    assert (small_disk / name).read_bytes() == before
    assert {path.name for path in small_disk.iterdir()} == {name, "filling"}


def test_a_full_disk_keeps_the_weights(small_disk, tiny_blip2):
    composer = blip2_qformer(str(tiny_blip2), QFormerSettings())
    fill(small_disk, 100_000)
    with pytest.raises(WriteError, match=r"model\.safetensors could not be written: .*No space left on device"):
        save_weights(composer, small_disk)
    (small_disk / "filling").unlink()
    assert [path.name for path in small_disk.iterdir()] == []


def test_a_training_on_a_disk_that_fills_up_goes_on_after_the_last_epoch_it_could_keep(small_disk, monkeypatch, capsys):
    """At the start there was room; somebody else takes it during epoch 2."""
    monkeypatch.setattr(training, "require_disk", lambda *_: None)
    rows = torch.randn(8, 200, generator=torch.Generator().manual_seed(0))
    full = True

    def batches(epoch: int) -> list[torch.Tensor]:
        if epoch == 2 and full:
            fill(small_disk)
        return [rows]

    def run() -> list[float]:
        torch.manual_seed(0)
        model = nn.Linear(200, 200)
        loss_of = lambda batch: (model(batch).square().mean(), {})  # noqa: E731
        recipe = Recipe(epochs=3, lr=0.01, precision="fp32")
        history = train(model, batches, 1, loss_of, recipe, small_disk / "toy", run="toy", fingerprint=0)
        return [record["loss"] for record in history.records]

    with pytest.raises(WriteError, match=r"toy/state\.pt could not be written: No space left on device: make room"):
        run()
    (small_disk / "filling").unlink()
    full = False
    capsys.readouterr()
    losses = run()
    assert "toy: goes on after epoch 1" in capsys.readouterr().out
    (small_disk / "toy" / "state.pt").unlink()
    assert run() == losses


ENCODING = """
import sys
from pathlib import Path
import torch
from cirlib.models.feature_store import build_store
ids = [str(i) for i in range(5000)]
try:
    build_store(Path(sys.argv[1]), "key", ids, (1000,), lambda rows: [torch.ones(len(ids[rows]), 1000)])
except Exception as error:
    print(f"{type(error).__name__}: {error}")
"""


def test_features_larger_than_the_disk_are_refused_and_do_not_kill_the_process(small_disk):
    """Written through a memory map, they would: a bus error."""
    command = [sys.executable, "-c", ENCODING, str(small_disk / "tokens")]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = done.stdout.strip().splitlines()[-1]
    assert told.startswith("WriteError: ") and "features.npy could not be written: No space left on device" in told
    with pytest.raises(StoreError, match="holds no finished feature store"):
        FeatureStore(small_disk / "tokens")
    store = build_store(small_disk / "tokens", "key", ["a"], (10,), lambda rows: [torch.ones(1, 10)])
    assert store[["a"]].tolist() == [[1.0] * 10]


def test_a_read_only_disk_is_named_by_whatever_writes(small_disk):
    (small_disk / "out").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for name, write in WRITERS.values():
        with pytest.raises(WriteError, match=rf"{name} could not be written: Read-only file system"):
            write(small_disk / "out" / name)
