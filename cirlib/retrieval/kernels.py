"""Which vector units of the CPU faiss uses."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

KERNELS = {"avx512_vl": "SkylakeX", "avx2": "Haswell"}  # vector unit → OpenBLAS' name of the first CPUs that have it


@contextmanager
def newest_kernels() -> Iterator[None]:
    """Has an OpenBLAS that is loaded inside use the CPU's vector units: by itself one older than the CPU uses few.

    The one in faiss' packages takes some three times as long on Intel's CPUs from 2023 on. What the environment asks
    for in ``OPENBLAS_CORETYPE`` stays.
    """
    known, given = torch.cpu.get_capabilities(), os.environ.get("OPENBLAS_CORETYPE")
    unit = next((unit for unit in KERNELS if known.get(unit)), None)
    if given is None and unit:
        os.environ["OPENBLAS_CORETYPE"] = KERNELS[unit]
    try:
        yield
    finally:
        if given is None:
            os.environ.pop("OPENBLAS_CORETYPE", None)
