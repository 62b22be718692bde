"""cirlib: composed image retrieval (CIR) — benchmarks, encoders, composers, losses, mining and metrics.

Importing the package is light; torch is loaded by the modules that need it.
"""

from importlib import import_module
from types import ModuleType

__version__ = "0.1.0"
__all__ = ["benchmarks", "evaluation", "figures", "losses", "metrics", "mining"]


def __getattr__(name: str) -> ModuleType:
    """The modules of ``__all__``, each imported when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module 'cirlib' has no attribute {name!r}")
    return import_module(f"cirlib.{name}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
