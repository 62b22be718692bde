"""What a notebook opens first: its parameters checked, its folders resolved, its inputs present."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cirlib.study.errors import ParameterError, StageError, StudyError
from cirlib.study.locks import hold, release
from cirlib.study.parameters import Study, load_study, override

PARAMETERS_MARK = "# Parameters"  # begins the notebooks' parameters cells, and those that papermill injects


@dataclass(frozen=True)
class Stage:
    """One stage of a study: its parameters and where it reads and writes.

    Attributes:
        name: ``data_prep``, ``zero_shot``, ``qformer``, ``dpo``, ``failure_cases``; ``search`` writes nothing.
        study: every parameter, overrides included.
        root: the project's folder.
        out: where this run writes tables and checkpoints.
        figures: where this run writes its PNG figures.
        overrides: what was set by the notebook's parameters, empty in the pipeline.
    """

    name: str
    study: Study
    root: Path
    out: Path
    figures: Path
    overrides: Mapping[str, Any]

    @property
    def params(self) -> Any:
        """The stage's own block of parameters."""
        return getattr(self.study, self.name)

    @property
    def data(self) -> Path:
        """The folder with the study's features, one for every run; a changed data preparation has its own."""
        return self.out / "data" if self._prepares_anew else self.root / "data" / self.study.name

    @property
    def images(self) -> Path:
        """The folder with ``captions/``, ``image_splits/`` and ``images/``."""
        drawn = self.study.data_prep.drawing is not None
        return self.data / "raw" if drawn and self._prepares_anew else self.root / self.study.data.root

    @property
    def _prepares_anew(self) -> bool:
        return self.name == "data_prep" and bool(self.overrides)

    @property
    def unfinished(self) -> Path:
        """Where trainings keep their state until the stage is done; a pipeline run does not clear it first."""
        return self.out / "unfinished"

    @property
    def table(self) -> Path:
        """The study's result table, every method's numbers one after the other."""
        return (self.out if self.overrides else self.out.parent) / "summary.csv"

    def results(self, stage: str) -> Path:
        """The pipeline's own results of ``stage``."""
        return self.root / "results" / self.study.name / stage

    def require(self, path: Path, made_by: str) -> Path:
        """``path``, or a :class:`StageError` naming the command that makes it."""
        if not path.exists():
            where = os.path.relpath(path, self.root)
            raise StageError(f"{self.name} needs {where}, which is missing: run `dvc repro {made_by}` first")
        return path

    def read_choice(self, stage: str, name: str) -> dict[str, Any]:
        """What ``stage`` chose by the dev part, from the file ``name`` of its results; StageError: it has not run."""
        return json.loads(self.require(self.results(stage) / name, stage).read_text())

    def finish(self) -> None:
        """Clears what was kept for going on after an interruption, and leaves the folder to other runs."""
        shutil.rmtree(self.unfinished, ignore_errors=True)
        release(self.out)


def open_stage(name: str) -> Stage:
    """The stage ``name`` as the running notebook's parameters cells ask for it; also seeds every generator.

    Parameters that are None keep what ``params.yaml`` says. With nothing overridden the stage writes to
    ``results/<study>/<stage>``; else to ``runs/<study>/<stage>-<overrides>``, so the pipeline's results stay.

    Raises:
        ParameterError: an unknown parameter, or a value that is not allowed.
        StageError: another run writes to the same folder, or the folder may not be written.

    >>> open_stage("search").study.name
    garments · search
    'garments'
    """
    from accelerate.utils import set_seed

    _prepare_notebook()
    root = project_root()
    given = {key: value for key, value in _notebook_parameters().items() if value is not None}
    study = override(load_study(root / "params.yaml"), name, given)
    set_seed(study.seed)
    out = root / "results" / study.name / name
    figures = root / "figures" / study.name / name
    if given:
        out = root / "runs" / study.name / f"{name}-{_label(given)}"
        figures = out / "figures"
    if name != "search":
        _take(root, out, figures)
    target = "" if name == "search" else f" → {os.path.relpath(out, root)}"
    print(f"{study.name} · {name}{target}" + (f"   {given}" if given else ""))
    return Stage(name, study, root, out, figures, given)


def project_root(start: Path | None = None) -> Path:
    """The nearest folder at or above ``start`` (the current one) with ``params.yaml`` and ``dvc.yaml``.

    Raises:
        ParameterError: there is none.

    >>> sorted(file.name for file in project_root().glob("*.yaml"))
    ['dvc.yaml', 'params.yaml']
    """
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        if (folder / "params.yaml").is_file() and (folder / "dvc.yaml").is_file():
            return folder
    raise ParameterError(f"no params.yaml and dvc.yaml at or above {start}: start this inside the project")


def assigned_names(source: str) -> set[str]:
    """The plain names that Python ``source`` assigns at its top level; none of a source that is no Python.

    >>> assigned_names("lr = 1e-5")
    {'lr'}
    """
    try:
        body = ast.parse(source).body
    except SyntaxError:  # a cell that was mistyped once stays in the history
        return set()
    targets = [target for node in body if isinstance(node, ast.Assign) for target in node.targets]
    targets += [node.target for node in body if isinstance(node, ast.AnnAssign) and node.value is not None]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _take(root: Path, out: Path, figures: Path) -> None:
    """Makes a run's folders and holds the first against other runs."""
    where = os.path.relpath(out, root)
    try:
        for folder in (out, figures):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StageError(f"{where} cannot be made: {error.strerror}: move the project to where it may write") from None
    if not os.access(out, os.W_OK):
        raise StageError(f"{where} may not be written: change its permissions, or those of its file system")
    if not hold(out):
        raise StageError(f"another run writes to {where}: wait for it, or stop it (JupyterLab: shut its kernel down)")


def _label(given: Mapping[str, Any]) -> str:
    """A folder name that says what was changed: ``lr=1e-05``; long or odd ones become a hash."""
    label = ",".join(f"{key}={value}" for key, value in sorted(given.items()))
    if len(label) <= 80 and all(c.isalnum() or c in "=,.+-_" for c in label):
        return label
    return hashlib.sha256(json.dumps(given, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _notebook_parameters() -> dict[str, Any]:
    """Names set by the notebook's parameters cells, papermill's injected one included, with their values."""
    shell = _ipython()
    values: dict[str, Any] = shell.user_ns if shell else {}
    cells = [cell for cell in values.get("In", []) if cell.lstrip().startswith(PARAMETERS_MARK)]
    names = set().union(*map(assigned_names, cells))
    return {name: values[name] for name in sorted(names & values.keys())}


def _ipython() -> Any:
    return sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None


def _prepare_notebook() -> None:
    """Tables show their texts whole, and errors that are meant for the reader their one sentence only."""
    import pandas as pd

    pd.options.display.max_colwidth = 120
    shell = _ipython()
    if shell is None:
        return

    def show(self: Any, kind: type, error: BaseException, trace: Any, tb_offset: int | None = None) -> list[str]:
        lines = [f"{kind.__name__}: {error}"]
        self._showtraceback(kind, error, lines)
        return lines

    shell.set_custom_exc((StudyError, FloatingPointError), show)
