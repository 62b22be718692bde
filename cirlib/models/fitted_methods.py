"""The methods that a study is asked for beside its own, made and fitted, and found again."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cirlib.models.prepared import Prepared
from cirlib.study.method_registry import Method, requested_methods


def fit_methods(prepared: Prepared, names: Sequence[str]) -> dict[str, Any]:
    """What :func:`~cirlib.study.method_registry.requested_methods` gives, made and fitted: name → method.

    Those that can be saved are, among the stage's results. Without train triplets nothing is trained on them.

    >>> fit_methods(prepared, [])
    {}
    """
    fitted = {}
    for method in requested_methods(names, prepared.stage.root):
        if method.trained and not prepared.splits.train:
            continue
        fitted[method.name] = made = method.make()
        if hasattr(made, "fit"):
            made.fit(prepared)
        if hasattr(made, "save"):
            made.save(_file(prepared.stage.out, method.name))
    return fitted


def fitted_methods(prepared: Prepared, names: Sequence[str], results: Path) -> dict[str, Callable[[], Any]]:
    """The methods that a stage with these ``results`` fitted: name → what opens it; one that was not saved is fitted.

    >>> fitted_methods(prepared, ["prompt_tuned"], folder)  # saved nowhere
    {}
    """
    found: dict[str, Callable[[], Any]] = {}
    for method in requested_methods(names, prepared.stage.root):
        file = _file(results, method.name)
        if file.is_file() or not hasattr(method.make(), "load"):
            found[method.name] = partial(_open, method, prepared, file)
    return found


def _open(method: Method, prepared: Prepared, file: Path) -> Any:
    made = method.make()
    if file.is_file():
        made.load(prepared, file)
    elif hasattr(made, "fit"):
        made.fit(prepared)
    return made


def _file(results: Path, name: str) -> Path:
    return results / "checkpoints" / f"{name}.safetensors"
