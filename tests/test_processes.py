"""Several processes, real ones: the loss and the gradients are those of one process with the same batch."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from cirlib.losses.info_nce import info_nce
from cirlib.preparation import Prepared, encode_tokens, needed_images
from cirlib.processes import average_gradients, gathered, is_first, own_rows, run, size
from cirlib.qformer_training import train_qformer

WIDTH = 6


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
    rank = torch.distributed.get_rank()
    assert is_first() == (rank == 0)
    torch.save({"loss": loss.detach(), "weight": model.weight.grad, "size": size()}, folder / f"{rank}.pt")


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "count"), [(2, 8), (2, 7), (3, 7)])
def test_loss_and_gradients_are_those_of_one_process(tmp_path, processes, count):
    model, loss = step(count)
    run(save_step, (tmp_path, count), processes)
    for rank in range(processes):
        saved = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert saved["size"] == processes
        torch.testing.assert_close(saved["loss"], loss.detach())
        torch.testing.assert_close(saved["weight"], model.weight.grad, atol=1e-5, rtol=1e-5)


def fail_second(_: None) -> None:
    if not is_first():
        raise ValueError("the second process fails")


@pytest.mark.slow
def test_a_process_that_fails_ends_all_with_its_error():
    with pytest.raises(torch.multiprocessing.ProcessRaisedException, match="the second process fails"):
        run(fail_second, None, 2)


def test_alone_everything_is_as_it_was():
    rows = torch.arange(6.0)
    assert (size(), is_first(), own_rows(3).tolist()) == (1, True, [0, 1, 2])
    assert gathered(rows, 6) is rows


@pytest.mark.slow
def test_two_processes_train_the_qformer_that_one_trains(custom_stage):
    """Batches of five: one row more on the first process than on the second."""
    histories, weights = {}, {}
    models = {"image_size": 64, "precision": "fp32"}
    prepared = Prepared(custom_stage("data_prep", models=models))
    encode_tokens(prepared, needed_images(prepared))
    for processes in (1, 2):
        qformer = {"pretraining_epochs": 1, "epochs": 2, "mine_from": 1, "batch_size": 5, "num_query_tokens": 2,
                   "width": 16, "hard_negatives": 2, "range_max": 4, "processes": processes}  # fmt: skip
        stage = custom_stage("qformer", models=models, qformer=qformer)
        torch.manual_seed(stage.study.seed)
        composers, histories[processes] = train_qformer(Prepared(stage))
        weights[processes] = {name: c.state_dict()["vision_projection.weight"].cpu() for name, c in composers.items()}
        stage.finish()
    one, two = (histories[n].drop(columns=["pairs/s", "triplets/s"]) for n in (1, 2))
    pd.testing.assert_frame_equal(two, one, rtol=1e-3, check_dtype=False)
    assert list(weights[1]) == list(weights[2]) == ["qformer", "qformer_hard_negatives"]
    for name, weight in weights[1].items():
        torch.testing.assert_close(weights[2][name], weight, atol=2e-3, rtol=0)
