"""Files are whole or not there, also on a disk that is full or may not be written, and one sentence says what to do."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from cirlib.models.feature_store import FeatureStore, StoreError, build_store
from cirlib.models.qformer import QFormerSettings, blip2_qformer, save_weights
from cirlib.study.errors import ReadError, WriteError
from cirlib.study.files import load_table, read_json, replace_file, write_json, write_table
from cirlib.training import loop


@pytest.fixture
def small_disk(tmp_path: Path):
    """A real file system of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=False, capture_output=True)
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, left: int = 4096) -> None:
    """Leaves so many bytes free."""
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    (folder / "filling").write_bytes(b"f" * max(0, free - left))


def test_a_full_or_read_only_disk_keeps_what_was_there_and_leaves_nothing_half_written(small_disk):
    file, write = small_disk / "table.csv", partial(write_table, pd.DataFrame(np.ones((100, 400))))
    write(file)
    before = file.read_bytes()
    fill(small_disk)
    with pytest.raises(WriteError, match=r"table\.csv could not be written: No space left on device: make room on its"):
        write(file)
    assert file.read_bytes() == before
    assert {path.name for path in small_disk.iterdir()} == {"table.csv", "filling"}
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(WriteError, match=r"table\.csv could not be written: Read-only file system"):
        write(file)


@pytest.mark.parametrize(
    ("read", "content"), [(read_json, b"[1"), (read_json, b""), (load_table, b'a,b\n"1'), (load_table, b"")]
)
def test_a_damaged_file_is_named(tmp_path, read, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ReadError, match=r"file is damaged \(.+\): delete it and run what makes it again"):
        read(tmp_path / "file")


def test_what_is_wrong_with_the_content_is_not_taken_for_the_disks_fault(tmp_path):
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json({"path": tmp_path}, tmp_path / "a.json")
    with pytest.raises(ZeroDivisionError):
        replace_file(tmp_path / "a.txt", lambda path: path.write_text(str(1 / 0)))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_keeps_the_weights(small_disk, tiny_blip2):
    composer = blip2_qformer(str(tiny_blip2), QFormerSettings())
    fill(small_disk, 100_000)
    with pytest.raises(WriteError, match=r"model\.safetensors could not be written: .*No space left on device"):
        save_weights(composer, small_disk)
    assert [path.name for path in small_disk.iterdir()] == ["filling"]


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


def test_a_training_on_a_disk_that_fills_up_goes_on_after_the_last_epoch_it_could_keep(small_disk, monkeypatch, capsys):
    """At the start there was room; somebody else takes it during epoch 2."""
    monkeypatch.setattr(loop, "require_disk", lambda *_: None)
    rows, full = torch.randn(8, 200, generator=torch.Generator().manual_seed(0)), [True]

    def batches(epoch: int) -> list[torch.Tensor]:
        if epoch == 2 and full:
            fill(small_disk)
        return [rows]

    def run(folder: Path) -> list[float]:
        torch.manual_seed(0)
        model, config = nn.Linear(200, 200), loop.TrainingConfig("toy", 3, 1, lr=0.01, precision="fp32")
        history = loop.train(model, batches, lambda batch: (model(batch).square().mean(), {}), config, folder)
        return [record["loss"] for record in history.records]

    with pytest.raises(WriteError, match=r"toy/state\.pt could not be written: No space left on device: make room"):
        run(small_disk / "toy")
    (small_disk / "filling").unlink()
    full.clear()
    capsys.readouterr()
    losses = run(small_disk / "toy")
    assert "toy: goes on after epoch 1" in capsys.readouterr().out
    assert run(small_disk / "anew") == losses


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_others_may_read_every_file_as_the_umask_has_it(tmp_path, tiny_blip2, umask, mode):
    """safetensors makes its files for their owner alone."""
    before = os.umask(umask)
    try:
        save_weights(blip2_qformer(str(tiny_blip2), QFormerSettings()), tmp_path)
        write_json({}, tmp_path / "a.json")
        write_json({}, tmp_path / "a.json")
    finally:
        os.umask(before)
    assert {oct(file.stat().st_mode & 0o777) for file in tmp_path.iterdir()} == {oct(mode)}
