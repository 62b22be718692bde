"""The methods that a study is asked for beside its own, made and fitted, and found again."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from cirlib.models.prepared import Prepared
from cirlib.study.errors import own_code
from cirlib.study.method_registry import OWN, Method, requested_methods


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
        with _told(method):
            fitted[method.name] = made = method.make()
            if hasattr(made, "fit"):
                made.fit(prepared)
            if hasattr(made, "save"):
                (file := _file(prepared.stage.out, method.name)).parent.mkdir(exist_ok=True)
                made.save(file)
    return fitted


def fitted_methods(prepared: Prepared, names: Sequence[str], results: Path) -> dict[str, Callable[[], Any]]:
    """The methods that a stage with these ``results`` fitted: name → what opens it; one that was not saved is fitted.

    >>> fitted_methods(prepared, ["prompt_tuned"], folder)  # saved nowhere
    {}
    """
    found: dict[str, Callable[[], Any]] = {}
    for method in requested_methods(names, prepared.stage.root):
        file = _file(results, method.name)
        with _told(method):
            loads = hasattr(method.make(), "load")
        if file.is_file() or not loads:
            found[method.name] = partial(_open, method, prepared, file)
    return found


def _open(method: Method, prepared: Prepared, file: Path) -> Any:
    with _told(method):
        made = method.make()
        if file.is_file():
            made.load(prepared, file)
        elif hasattr(made, "fit"):
            made.fit(prepared)
    return made


def _told(method: Method) -> AbstractContextManager[None]:
    return own_code(f"method {method.name!r}") if method.family == OWN else nullcontext()


def _file(results: Path, name: str) -> Path:
    return results / "checkpoints" / f"{name}.safetensors"
