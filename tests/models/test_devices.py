"""The precision that "auto" stands for on the machine at hand."""

import pytest
import torch

from cirlib.models import devices
from cirlib.models.devices import autocast, precision_here
from cirlib.study.errors import ParameterError

CPU = torch.device("cpu")


AMD, INTEL = ({"avx512_bf16": True, "cpu_name": name} for name in ("AMD EPYC", "Intel(R) Xeon(R) Processor"))


@pytest.mark.parametrize(
    ("known", "set_to", "precision", "dtype"),
    [
        (INTEL | {"amx_bf16": True}, "AVX512", "bf16", torch.bfloat16),
        (INTEL, "AVX512", "fp32", torch.float32),  # whose dot products are slower
        (AMD, "AVX512", "bf16", torch.bfloat16),
        (AMD, "AVX2", "fp32", torch.float32),
        ({"bf16": True}, "DEFAULT", "bf16", torch.bfloat16),
        ({"avx512_f": True, "amx_bf16": False, "cpu_name": "AMD EPYC"}, "AVX512", "fp32", torch.float32),
    ],
)
def test_auto_is_bf16_where_it_is_faster_and_what_is_asked_for_is_taken(monkeypatch, known, set_to, precision, dtype):
    monkeypatch.setattr(devices, "best_device", lambda: CPU)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: set_to)
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


def test_torch_knows_what_this_processor_has():
    """The names that are asked for are torch's: without them every machine would be taken for one without bf16."""
    known = torch.cpu.get_capabilities()
    if known["architecture"].startswith("x86"):
        assert known.keys() >= {"amx_bf16", "avx512_bf16", "cpu_name"}
    else:
        assert "bf16" in known
