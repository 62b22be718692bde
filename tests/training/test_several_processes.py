"""Encoding and training on two processes, real ones: what they leave is what one process leaves."""

import subprocess
import sys

import pandas as pd
import pytest
import torch
import yaml

from cirlib.models import feature_store
from cirlib.models.preparation import encode_tokens
from cirlib.models.prepared import Prepared
from cirlib.training.qformer_training import train_qformer

GPUS = torch.cuda.device_count()
MODELS = {"image_size": 64, "precision": "fp32"}
pytestmark = [pytest.mark.slow, pytest.mark.skipif(GPUS == 1, reason="2 processes need as many GPUs")]


def qformer_params(**changed: object) -> dict[str, object]:
    return {"pretraining_epochs": 1, "epochs": 2, "mine_from": 1, "batch_size": 5, "num_query_tokens": 2,
            "width": 16, "hard_negatives": 2, "range_max": 4, **changed}  # fmt: skip


def test_two_processes_write_the_store_that_one_writes(custom_stage, monkeypatch):
    monkeypatch.setattr(feature_store, "SHARD_SIZE", 1024)  # as the started processes have it, whatever a test set
    stores = []
    for processes in (1, 2):
        prepared = Prepared(custom_stage("data_prep", models=MODELS, data_prep={"processes": processes}))
        encode_tokens(prepared)
        folder = prepared.stage.data / "tokens"
        stores.append({file.name: file.read_bytes() for file in folder.iterdir()})
        for file in folder.iterdir():
            file.unlink()
    assert "features.npy" in stores[0]
    assert stores[0] == stores[1]


def test_two_processes_train_the_qformer_that_one_trains(custom_stage):
    """Batches of five: one row more on the first process than on the second."""
    histories, weights = {}, {}
    prepared = Prepared(custom_stage("data_prep", models=MODELS))
    encode_tokens(prepared)
    for processes in (1, 2):
        stage = custom_stage("qformer", models=MODELS, qformer=qformer_params(processes=processes))
        composers, histories[processes] = train_qformer(Prepared(stage))
        weights[processes] = {name: c.state_dict()["vision_projection.weight"].cpu() for name, c in composers.items()}
        stage.finish()
    one, two = (histories[n].drop(columns=["pairs/s", "triplets/s"]) for n in (1, 2))
    pd.testing.assert_frame_equal(two, one, rtol=1e-3, check_dtype=False)
    assert list(weights[1]) == list(weights[2]) == ["qformer_pretrained", "qformer", "qformer_hard_negatives"]
    for name, weight in weights[1].items():
        torch.testing.assert_close(weights[2][name], weight, atol=2e-3, rtol=0)


def test_processes_of_a_launcher_train_what_the_notebook_goes_on_from(custom_stage):
    """As `accelerate launch` starts them; then one process only reads what they left."""
    prepared = Prepared(custom_stage("data_prep", models=MODELS))
    encode_tokens(prepared)
    stage = custom_stage("qformer", models=MODELS, qformer=qformer_params())
    (stage.root / "params.yaml").write_text(yaml.safe_dump(stage.study.model_dump(mode="json")))
    (stage.root / "dvc.yaml").touch()
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--num_machines", "1",
              "--mixed_precision", "no", "--dynamo_backend", "no", "--multi_gpu" if GPUS else "--cpu",
              "-m", "cirlib.training.qformer_training"]  # fmt: skip
    done = subprocess.run(launch, cwd=stage.root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("small · qformer") == 1
    left = {file: file.stat().st_mtime_ns for file in stage.trainings.rglob("*") if file.is_file()}
    assert left
    other_needs = qformer_params(processes=1, chunk_size=4, gradient_checkpointing=True)
    composers, history = train_qformer(Prepared(custom_stage("qformer", models=MODELS, qformer=other_needs)))
    assert {file: file.stat().st_mtime_ns for file in left} == left
    assert set(history["run"]) == {"pretraining", "qformer", "qformer_hard_negatives"}
    assert list(composers) == ["qformer_pretrained", "qformer", "qformer_hard_negatives"]
