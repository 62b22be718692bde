"""The precision that "auto" stands for on the machine at hand."""

from __future__ import annotations

import pytest
import torch

from cirlib.models import devices
from cirlib.models.devices import autocast, dtype_of, precision_here
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
    monkeypatch.setattr(devices, "best_device", lambda: torch.device("cuda"))
    assert precision_here("auto") == "fp32"


def test_torch_knows_what_this_processor_has():
    """The names that are asked for are torch's: without them every machine would be taken for one without bf16."""
    known = torch.cpu.get_capabilities()
    assert {"amx_bf16", "avx512_bf16"} <= set(known) if known["architecture"].startswith("x86") else "bf16" in known
