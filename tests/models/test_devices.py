"""The precision that "auto" stands for on the machine at hand."""

import os
import subprocess
import sys

import pytest
import torch

from cirlib.models import devices
from cirlib.models.devices import autocast, precision_here
from cirlib.study.errors import ParameterError

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("bf16", "precision", "dtype"),
    [(1.0, "bf16", torch.bfloat16), (3.0, "fp32", torch.float32), (100.0, "fp32", torch.float32)],
)
def test_auto_is_bf16_where_it_is_much_faster_and_what_is_asked_for_is_taken(monkeypatch, bf16, precision, dtype):
    monkeypatch.setattr(devices, "best_device", lambda: CPU)
    monkeypatch.setattr(devices, "_seconds", {torch.float32: 4.0, torch.bfloat16: bf16}.get)
    assert [precision_here(asked) for asked in ("auto", "fp32", "bf16")] == [precision, "fp32", "bf16"]
    with autocast(CPU):
        assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype == dtype


def test_fp16_is_for_gpus_and_emulated_bf16_is_not_had(monkeypatch):
    monkeypatch.setattr(devices, "best_device", lambda: CPU)
    with pytest.raises(ParameterError, match=r"models\.precision is fp16, which wants a GPU: allowed here are auto, "):
        precision_here("fp16")
    monkeypatch.setattr(devices, "best_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert (precision_here("fp16"), precision_here("auto")) == ("fp16", "fp32")


def test_emulated_bf16_is_slower_and_auto_is_fp32():
    """Held to AVX2, a processor has no bfloat16, and torch converts every number."""
    if not torch.cpu.get_capabilities().get("avx2"):
        pytest.skip("this processor has no AVX2 to be held to")
    held = {"MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    code = "from cirlib.models.devices import precision_here; print(precision_here('auto'))"
    said = subprocess.run([sys.executable, "-c", code], env=os.environ | held, capture_output=True, text=True)
    assert said.stdout == "fp32\n", said.stderr
