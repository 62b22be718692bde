"""Several processes, real ones: the loss and the gradients are those of one process with the same batch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch
import yaml
from torch.nn import functional as F

from cirlib.losses.info_nce import info_nce
from cirlib.models.feature_store import FeatureStore, build_store
from cirlib.models.preparation import Prepared, encode_tokens, needed_images
from cirlib.study import processes as processes_module
from cirlib.study.errors import ParameterError, ResourceError
from cirlib.study.processes import (
    available,
    average_gradients,
    gathered,
    is_first,
    joined,
    own_rows,
    rank,
    run,
    share,
    size,
)
from cirlib.training.qformer_training import train_qformer

WIDTH = 6
MODELS = {"image_size": 64, "precision": "fp32"}
GPUS = torch.cuda.device_count()


def several(count: int) -> pytest.MarkDecorator:
    """Marks a test that starts ``count`` processes."""
    return pytest.mark.skipif(0 < GPUS < count, reason=f"{count} processes need as many GPUs, {GPUS} is here")


def step(count: int) -> tuple[torch.nn.Module, torch.Tensor]:
    """One backward pass of a linear model whose rows this process computes in part."""
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(2, count, WIDTH, generator=generator)
    model = torch.nn.Linear(WIDTH, WIDTH)
    with torch.no_grad():
        model.weight.copy_(torch.randn(WIDTH, WIDTH, generator=generator))
        model.bias.zero_()
    mine = own_rows(count)
    queries, targets = (gathered(F.normalize(model(x[mine]), dim=-1), count) for x in (images, texts))
    loss = info_nce(queries, targets, temperature=0.1)
    loss.backward()
    average_gradients(model)
    return model, loss


def save_step(asked: tuple[Path, int]) -> None:
    folder, count = asked
    model, loss = step(count)
    assert is_first() == (rank() == 0)
    torch.save({"loss": loss.detach(), "weight": model.weight.grad, "size": size()}, folder / f"{rank()}.pt")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "count"), [pytest.param(n, count, marks=several(n)) for n, count in ((2, 8), (2, 7), (3, 7))]
)
def test_loss_and_gradients_are_those_of_one_process(tmp_path, processes, count):
    model, loss = step(count)
    run(save_step, (tmp_path, count), processes)
    for number in range(processes):
        saved = torch.load(tmp_path / f"{number}.pt", weights_only=True)
        assert saved["size"] == processes
        torch.testing.assert_close(saved["loss"], loss.detach())
        torch.testing.assert_close(saved["weight"], model.weight.grad, atol=1e-5, rtol=1e-5)


def fail_second(_: None) -> None:
    if not is_first():
        raise ValueError("the second process fails" + 100_000 * "!")


@several(2)
@pytest.mark.slow
def test_a_process_that_fails_ends_all_with_its_error():
    with pytest.raises(ValueError, match="the second process fails"):
        run(fail_second, None, 2)


def kill_second(_: None) -> None:
    if not is_first():
        os.kill(os.getpid(), signal.SIGKILL)


@several(2)
@pytest.mark.slow
def test_a_process_that_is_killed_ends_all_with_a_sentence():
    with pytest.raises(ResourceError, match=r"one of 2 processes was ended \(SIGKILL\): run it again"):
        run(kill_second, None, 2)


def kill_second_fail_first(_: None) -> None:
    kill_second(None)
    raise RuntimeError("connection reset by peer")


@several(2)
@pytest.mark.slow
def test_what_another_raises_after_a_kill_does_not_hide_it(monkeypatch):
    join = torch.multiprocessing.ProcessContext.join

    def late(self, *arguments):
        for process in self.processes:
            process.join()
        return join(self, *arguments)

    monkeypatch.setattr(torch.multiprocessing.ProcessContext, "join", late)
    with pytest.raises(ResourceError, match=r"one of 2 processes was ended \(SIGKILL\): run it again"):
        run(kill_second_fail_first, None, 2)


def wait_long(mark: Path) -> None:
    mark.touch()
    time.sleep(600)


@several(2)
@pytest.mark.slow
def test_an_interrupt_of_the_first_process_alone_ends_all(tmp_path):
    def interrupt() -> None:
        while not (tmp_path / "mark").exists():
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    before = set(psutil.Process().children(recursive=True))
    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        run(wait_long, tmp_path / "mark", 2)
    left = set(psutil.Process().children(recursive=True)) - before
    assert [process for process in left if "spawn_main" in " ".join(process.cmdline())] == []


class Unportable(Exception):
    def __init__(self, *, wanted: str) -> None:
        super().__init__(wanted)


def fail_unportably(_: None) -> None:
    raise Unportable(wanted="a keyword")


@several(2)
@pytest.mark.slow
def test_an_error_that_cannot_be_passed_on_is_told_in_words():
    with pytest.raises(RuntimeError, match="Unportable: a keyword"):
        run(fail_unportably, None, 2)


def save_joined(folder: Path) -> None:
    items = list(range(5))
    whole = torch.zeros(5, dtype=torch.int64)
    whole[share(items)] = torch.tensor(share(items)) + 10
    torch.save(joined(whole), folder / f"{rank()}.pt")


@several(2)
@pytest.mark.slow
def test_what_is_shared_out_is_joined_whole_on_every_process(tmp_path):
    run(save_joined, tmp_path, 2)
    for number in range(2):
        assert torch.load(tmp_path / f"{number}.pt", weights_only=True).tolist() == [10, 11, 12, 13, 14]


def test_no_more_processes_than_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [available(asked, "p") for asked in (None, 1, 2)] == [2, 1, 2]
    with pytest.raises(ParameterError, match=r"qformer\.processes is 3, at most 2 is allowed: so many GPUs are here"):
        available(3, "qformer.processes")


def test_without_gpus_as_many_processes_as_are_asked_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert (available(None, "p"), available(3, "p")) == (1, 3)


def test_alone_everything_is_as_it_was():
    rows = torch.arange(6.0)
    assert (size(), is_first(), own_rows(3).tolist()) == (1, True, [0, 1, 2])
    assert gathered(rows, 6) is rows


@several(2)
@pytest.mark.slow
def test_two_processes_write_the_store_that_one_writes(custom_stage, monkeypatch):
    stores, started = [], []
    monkeypatch.setattr(processes_module, "run", lambda *asked: (started.append(asked[-1]), run(*asked)))
    for processes in (1, 2):
        prepared = Prepared(custom_stage("data_prep", models=MODELS, data_prep={"processes": processes}))
        encode_tokens(prepared, needed_images(prepared))
        folder = prepared.stage.data / "tokens"
        stores.append({file.name: file.read_bytes() for file in folder.iterdir()})
        for file in folder.iterdir():
            file.unlink()
    assert sorted(stores[0]) == ["features.npy", "store.json"]
    assert stores[0] == stores[1]
    assert started == [2]


def build(asked: tuple[Path, Path]) -> None:
    """A store in shards of two, the second process' second of which kills it where ``mark`` is missing."""
    folder, mark = asked

    def encode(rows: slice) -> list[torch.Tensor]:
        with (folder.parent / "encoded.txt").open("a") as log:
            log.write(f"{rows.start}\n")
        if rows.start == 6 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return [torch.arange(rows.start, rows.stop).float()[:, None].expand(-1, 3)]

    build_store(folder, "key", [str(n) for n in range(9)], (3,), encode, shard_size=2)


@several(2)
@pytest.mark.slow
def test_a_store_goes_on_where_a_killed_process_left_it(tmp_path):
    with pytest.raises(ResourceError, match="SIGKILL"):
        run(build, (tmp_path / "tokens", tmp_path / "killed"), 2)
    assert not (tmp_path / "tokens").exists()
    left = {int(file.stem) for file in (tmp_path / "tokens.partial").glob("*.written")}
    assert 2 in left
    assert 6 not in left
    (tmp_path / "encoded.txt").unlink()
    run(build, (tmp_path / "tokens", tmp_path / "killed"), 2)
    again = {int(line) for line in (tmp_path / "encoded.txt").read_text().splitlines()}
    assert again == {0, 2, 4, 6, 8} - left
    store = FeatureStore(tmp_path / "tokens")
    assert store[store.ids].tolist() == [[n, n, n] for n in range(9)]
    assert sorted(file.name for file in store.folder.iterdir()) == ["features.npy", "store.json"]


def qformer_params(**changed: object) -> dict[str, object]:
    return {"pretraining_epochs": 1, "epochs": 2, "mine_from": 1, "batch_size": 5, "num_query_tokens": 2,
            "width": 16, "hard_negatives": 2, "range_max": 4, **changed}  # fmt: skip


def states(folder: Path) -> dict[Path, int]:
    """When each training last wrote its state."""
    return {file: file.stat().st_mtime_ns for file in folder.rglob("state.pt")}


@several(2)
@pytest.mark.slow
def test_processes_of_a_launcher_train_what_the_notebook_goes_on_from(custom_stage, capsys):
    """As `accelerate launch` starts them; then one process only reads what they left."""
    prepared = Prepared(custom_stage("data_prep", models=MODELS))
    encode_tokens(prepared, needed_images(prepared))
    stage = custom_stage("qformer", models=MODELS, qformer=qformer_params())
    (stage.root / "params.yaml").write_text(yaml.safe_dump(stage.study.model_dump(mode="json")))
    (stage.root / "dvc.yaml").touch()
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--num_machines", "1",
              "--mixed_precision", "no", "--dynamo_backend", "no", "--multi_gpu" if GPUS else "--cpu",
              "-m", "cirlib.training.qformer_training"]  # fmt: skip
    done = subprocess.run(launch, cwd=stage.root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("small · qformer") == 1
    steps = states(stage.unfinished)
    assert steps
    other_needs = qformer_params(processes=1, chunk_size=4, gradient_checkpointing=True)
    composers, history = train_qformer(Prepared(custom_stage("qformer", models=MODELS, qformer=other_needs)))
    assert states(stage.unfinished) == steps
    assert set(history["run"]) == {"pretraining", "qformer", "qformer_hard_negatives"}
    assert list(composers) == ["qformer", "qformer_hard_negatives"]


@several(2)
@pytest.mark.slow
def test_two_processes_train_the_qformer_that_one_trains(custom_stage):
    """Batches of five: one row more on the first process than on the second."""
    histories, weights = {}, {}
    prepared = Prepared(custom_stage("data_prep", models=MODELS))
    encode_tokens(prepared, needed_images(prepared))
    for processes in (1, 2):
        stage = custom_stage("qformer", models=MODELS, qformer=qformer_params(processes=processes))
        composers, histories[processes] = train_qformer(Prepared(stage))
        weights[processes] = {name: c.state_dict()["vision_projection.weight"].cpu() for name, c in composers.items()}
        stage.finish()
    one, two = (histories[n].drop(columns=["pairs/s", "triplets/s"]) for n in (1, 2))
    pd.testing.assert_frame_equal(two, one, rtol=1e-3, check_dtype=False)
    assert list(weights[1]) == list(weights[2]) == ["qformer", "qformer_hard_negatives"]
    for name, weight in weights[1].items():
        torch.testing.assert_close(weights[2][name], weight, atol=2e-3, rtol=0)
