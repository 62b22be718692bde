"""Where and in what precision models run."""

import os
import shutil
import subprocess
from functools import cache

import torch

from cirlib.study.errors import ParameterError, ResourceError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def best_device() -> torch.device:
    """The first CUDA GPU, else Apple's, else the CPU.

    A ResourceError where the machine lists a GPU that torch cannot use: nobody waits weeks for a CPU by mistake. With
    ``CUDA_VISIBLE_DEVICES`` empty none is looked for.

    >>> best_device().type in ("cuda", "mps", "cpu")
    True
    """
    if torch.cuda.is_available():
        return torch.device("cuda")
    if (listed := listed_gpus()) and os.environ.get("CUDA_VISIBLE_DEVICES", "all") not in ("", "-1"):
        built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built without CUDA"
        raise ResourceError(
            f"nvidia-smi lists {listed[0]}, which torch {torch.__version__} cannot use: it {built}. Install a driver "
            "that nvidia-smi shows with at least this CUDA version, or set CUDA_VISIBLE_DEVICES= to use the CPU"
        )
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


@cache
def listed_gpus() -> tuple[str, ...]:
    """Name, memory and driver of each NVIDIA GPU that the machine's driver lists; none without a driver.

    >>> isinstance(listed_gpus(), tuple)
    True
    """
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    if shutil.which(command[0]) is None:
        return ()
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return ()
    return tuple(said.stdout.strip().splitlines()) if said.returncode == 0 else ()


def precision_here(asked: str) -> str:
    """A key of ``DTYPES``: what was asked for; for "auto" ``bf16`` where it is much faster here, else ``fp32``.

    A ParameterError for ``fp16`` without a GPU, where training would be in fp32.

    >>> precision_here("fp32")
    'fp32'
    """
    if asked == "fp16" and best_device().type == "cpu":
        raise ParameterError("models.precision is fp16, which wants a GPU: allowed here are auto, fp32 and bf16")
    return asked if asked != "auto" else "bf16" if _has_bf16(best_device()) else "fp32"


def autocast(device: torch.device, dtype: torch.dtype | None = None) -> torch.autocast:
    """Matrix products in ``dtype``; None: bfloat16 where it is much faster. float32 is what the weights have.

    >>> with autocast(torch.device("cpu"), torch.bfloat16):
    ...     (torch.ones(1, 2) @ torch.ones(2, 1)).dtype
    torch.bfloat16
    """
    dtype = dtype or (torch.bfloat16 if _has_bf16(device) else torch.float32)
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def _has_bf16(device: torch.device) -> bool:
    """Whether ``device`` multiplies bfloat16 matrices in hardware, and much faster than float32's.

    Of processors with AVX-512's dot products of bfloat16 but no matrix units, AMD's is 4 times faster, Intel's slower.
    It goes by the processor, not by a measurement: the stages of a study must agree, whatever else is running.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    known = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    if known.get("avx512_bf16") and known["cpu_name"].startswith("AMD"):
        return torch.backends.cpu.get_cpu_capability() == "AVX512"  # it may be held to less
    return any(known.get(name) for name in ("amx_bf16", "bf16", "sve_bf16"))
