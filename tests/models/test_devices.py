"""The precision that "auto" stands for on the machine at hand."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from cirlib.models import devices
from cirlib.models.devices import KERNELS, autocast, dtype_of, has_bf16, newest_kernels, precision_here
from cirlib.study.errors import ParameterError

CPU = torch.device("cpu")


@pytest.fixture
def on_a_cpu_with(monkeypatch):
    def set_capabilities(**known: bool) -> None:
        monkeypatch.setattr(devices, "best_device", lambda: CPU)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known)

    return set_capabilities


@pytest.mark.parametrize("known", [{"amx_bf16": True}, {"avx512_bf16": True}, {"bf16": True}])
def test_auto_is_bf16_where_the_processor_has_it(on_a_cpu_with, known):
    on_a_cpu_with(avx2=True, **known)
    assert precision_here("auto") == "bf16"
    with autocast(CPU):
        assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.bfloat16


def test_auto_is_fp32_elsewhere(on_a_cpu_with):
    on_a_cpu_with(avx2=True, avx512_f=True, amx_bf16=False)
    assert precision_here("auto") == "fp32"
    with autocast(CPU):
        assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.float32


@pytest.mark.parametrize(("asked", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_what_is_asked_for_is_taken(on_a_cpu_with, asked, dtype):
    on_a_cpu_with(amx_bf16=asked == "fp32")
    assert (precision_here(asked), dtype_of(asked)) == (asked, dtype)


def test_fp16_is_for_gpus(on_a_cpu_with, monkeypatch):
    on_a_cpu_with(avx2=True)
    with pytest.raises(ParameterError, match=r"models\.precision is fp16, which wants a GPU: allowed here are auto, "):
        precision_here("fp16")
    monkeypatch.setattr(devices, "best_device", lambda: torch.device("cuda"))
    assert dtype_of("fp16") == torch.half


def test_a_gpu_that_only_emulates_bf16_does_not_have_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert not has_bf16(torch.device("cuda"))


def test_torch_knows_what_this_processor_has():
    """The names that are asked for are torch's: without them every machine would be taken for one without bf16."""
    known = torch.cpu.get_capabilities()
    assert {"amx_bf16", "avx512_bf16"} <= set(known) if known["architecture"].startswith("x86") else "bf16" in known


@pytest.mark.parametrize(
    ("known", "kernels"),
    [({"avx2": True, "avx512_vl": True}, "SkylakeX"), ({"avx2": True}, "Haswell"), ({"neon": True}, None)],
)
def test_openblas_is_told_of_the_vector_units_while_it_is_loaded(on_a_cpu_with, monkeypatch, known, kernels):
    on_a_cpu_with(**known)
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)
    with newest_kernels():
        assert os.environ.get("OPENBLAS_CORETYPE") == kernels
    assert "OPENBLAS_CORETYPE" not in os.environ
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Zen")
    with newest_kernels():
        assert os.environ["OPENBLAS_CORETYPE"] == "Zen"
    assert os.environ["OPENBLAS_CORETYPE"] == "Zen"


def test_faiss_uses_the_vector_units_of_this_processor():
    if not torch.cpu.get_capabilities().get("avx2"):
        pytest.skip("this processor has none of the vector units that OpenBLAS is told of")
    asking = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}
    asking["OPENBLAS_VERBOSE"] = "2"
    said = subprocess.run(
        [sys.executable, "-c", "import cirlib.retrieval.hard_negatives"],
        env=asking,
        capture_output=True,
        text=True,
        check=True,
    )
    cores = [line.split()[-1] for line in said.stderr.splitlines() if line.startswith("Core: ")]
    if len(cores) < 2:
        pytest.skip("faiss is built on another BLAS here")  # the first is numpy's
    assert cores[-1] in KERNELS.values()
