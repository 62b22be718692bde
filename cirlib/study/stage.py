"""What a notebook opens first: its parameters checked, its folders resolved, its inputs present."""

import ast
import hashlib
import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

from cirlib.study.errors import ParameterError, StageError, StudyError
from cirlib.study.files import read_json
from cirlib.study.locks import claim, take_lock
from cirlib.study.method_registry import DPO, METHODS, RERANKED, requested_methods
from cirlib.study.parameters import Study, load_study, overridable, override

if TYPE_CHECKING:
    import pandas as pd

NOTEBOOK = "this notebook"
PARAMETERS_MARK = "# Parameters"  # begins the notebooks' parameters cells, and those that papermill injects
_held: dict[Path, int | None] = {}  # lock of a run in this process → its open descriptor; None between two cells


@dataclass(frozen=True)
class Stage:
    """One stage of a study: its parameters and where it reads and writes."""

    name: str  # one of :data:`cirlib.study.parameters.STAGES`; ``search`` writes nothing
    study: Study  # every parameter, overrides included
    root: Path  # of the project
    out: Path  # where this run writes tables and checkpoints
    figures: Path  # where this run writes its PNG figures
    overrides: Mapping[str, Any]  # what was set by the notebook's parameters, empty in the pipeline
    started: datetime = field(default_factory=lambda: datetime.now().astimezone())

    @property
    def params(self) -> Any:
        """The stage's own block of parameters."""
        return getattr(self.study, self.name)

    def in_force(self) -> "pd.DataFrame":
        """Every parameter of the stage: its value, and whether the notebook or ``params.yaml`` says so."""
        import pandas as pd

        study = self.study.model_dump()
        rows = [
            (name, str((study[block] if block else study)[name]), NOTEBOOK if name in self.overrides else "params.yaml")
            for name, block in overridable(self.name).items()
        ]
        return pd.DataFrame(rows, columns=["parameter", "value", "set in"]).set_index("parameter")

    @property
    def data(self) -> Path:
        """What data preparation makes: features, aligned heads, drawings. A changed data preparation has its own."""
        anew = self.name == "data_prep" and self.overrides
        return self.out / "data" if anew else self.root / "data" / self.study.name / "prepared"

    @property
    def features(self) -> Path:
        """Where features are made and kept, each under what decides them, for every data preparation that asks."""
        return self.root / "runs" / self.study.name / "features"

    @property
    def images(self) -> Path:
        """The folder with ``captions/``, ``image_splits/`` and ``images/``."""
        if self.study.data.catalogue:
            return self.data / "made"
        return self.data / "drawn" if self.study.data_prep.drawing else self.root / self.study.data.root.expanduser()

    @property
    def trainings(self) -> Path:
        """Where the study's trainings are kept, each under what decides it, for every run that asks for the same."""
        return self.root / "runs" / self.study.name / "trainings"

    @property
    def table(self) -> Path:
        """The study's result table, every method's numbers one after the other."""
        return (self.out if self.overrides else self.out.parent) / "summary.csv"

    def results(self, stage: str) -> Path:
        """The pipeline's own results of ``stage``."""
        return self.root / "results" / self.study.name / stage

    def require(self, path: Path, made_by: str) -> Path:
        """``path``, or a :class:`StageError` naming the command that makes it, or lets this user read it."""
        where = os.path.relpath(path, self.root)
        if path.exists():
            if os.access(path, os.R_OK):
                return path
            raise StageError(f"{self.name} needs {where}, which this user may not read: chmod -R a+rX {where}")
        raise StageError(f"{self.name} needs {where}, which is missing: run `dvc repro {made_by}` first")

    def read_choice(self, stage: str, name: str) -> dict[str, Any]:
        """What ``stage`` chose by the dev part, from the file ``name`` of its results; StageError: it has not run."""
        return read_json(self.require(self.results(stage) / name, stage))

    def finish(self) -> None:
        """Leaves the folder to other runs."""
        _release(self.lock)

    @property
    def lock(self) -> Path:
        """The file that the run which writes to ``out`` holds; beside it, for DVC takes the folder away."""
        return self.root / "runs" / self.study.name / "locks" / f"{self.out.name}.lock"


def open_stage(name: str) -> Stage:
    """The stage ``name`` as the running notebook's parameters cells ask for it; also seeds every generator.

    Parameters that are None keep what ``params.yaml`` says. With nothing overridden the stage writes to
    ``results/<study>/<stage>``; else to ``runs/<study>/<stage>-<overrides>``, so the pipeline's results stay.
    ParameterError: a parameter is not allowed. StageError: another run writes there, or nobody may.

    >>> open_stage("search").study.name
    garments · search
    'garments'
    """
    import pandas as pd
    from accelerate.utils import set_seed

    pd.options.display.max_colwidth = 120  # tables show their texts whole
    root, given = project_root(), _notebook_parameters()
    study = override(load_study(root / "params.yaml"), name, given)
    check_names(study, root)
    set_seed(study.seed)
    out, figures = (root / kind / study.name / name for kind in ("results", "figures"))
    if given:
        out = root / "runs" / study.name / f"{name}-{_label(given)}"
        figures = out / "figures"
    heading, target = f"{study.name} · {name}", os.path.relpath(out, root)
    stage = Stage(name, study, root, out, figures, given)
    if name != "search":
        _take(stage)
        heading += f" → {target}"
    print(f"{heading}   {given}" if given else heading)
    return stage


def project_root() -> Path:
    """The nearest folder at or above the current one with ``params.yaml`` and ``dvc.yaml``; ParameterError: none.

    >>> sorted(file.name for file in project_root().glob("*.yaml"))
    ['dvc.yaml', 'params.yaml']
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "params.yaml").is_file() and (folder / "dvc.yaml").is_file():
            return folder
    raise ParameterError(f"no params.yaml and dvc.yaml at or above {here}: start this inside the project")


def check_names(study: Study, root: Path) -> list[str]:
    """The methods that the study is asked for; a ParameterError where it names one, or a file, that is not there.

    >>> check_names(stage.study, folder)
    ['prompt_tuned']
    """
    asked = requested_methods([*study.zero_shot.methods, *study.qformer.methods], root)
    firsts = [m.name for m in METHODS.values() if m.family not in (DPO, RERANKED) and m.name != "sum_raw"]
    if (first := study.qformer.rerank) not in firsts:
        raise ParameterError(f"qformer.rerank: {first!r} cannot be the first. Allowed: {', '.join(firsts)}")
    known = [*METHODS, *(method.name for method in asked if method.name not in METHODS)]
    shown = {"failure_cases.method": study.failure_cases.method, "your_method.against": study.your_method.against}
    shown |= {f"search.{side}": name for side, name in study.search.model_dump().items()}
    for where, name in shown.items():
        if name not in (None, *known):
            raise ParameterError(f"{where}: there is no method {name!r}. Allowed: {', '.join(known)}")
    models, trained = study.models, study.models.fusion_checkpoint
    files = {
        "models.fusion_checkpoint, a Q-Former that another study trained": trained and trained / "model.safetensors",
        "models.clip_pretrained, of mini heads that another study aligned": models.clip == "mini"
        and models.clip_pretrained,
        "qformer.phi": study.qformer.phi,
    }
    for name, file in files.items():
        if file and not (root / file).is_file():
            raise ParameterError(f"{name}: there is no file {root / file}")
    return [method.name for method in asked]


def assigned_names(source: str) -> set[str]:
    """The plain names that Python ``source`` assigns; none of a source that is no Python.

    >>> assigned_names("lr = 1e-5")
    {'lr'}
    """
    try:
        nodes = ast.walk(ast.parse(source))
    except SyntaxError:  # a cell that was mistyped once stays in the history
        return set()
    return {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def _take(stage: Stage) -> None:
    """Makes a run's folders and holds them against other runs while a cell runs."""
    where = os.path.relpath(stage.out, stage.root)
    try:
        for folder in (stage.out, stage.figures):
            folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=stage.out).close()
        _release(stage.lock)  # held already where the same cell runs again
        _held[stage.lock] = claim(stage.lock, where)
    except OSError as error:
        raise StageError(f"{where} may not be written: {error.strerror}: move the project elsewhere") from None


def _release(lock: Path) -> None:
    if (descriptor := _held.pop(lock, None)) is not None:
        os.close(descriptor)


def _release_all() -> None:
    for lock in list(_held):
        _release(lock)


def _before_a_cell(_info: Any) -> None:
    for lock in [lock for lock, descriptor in _held.items() if descriptor is None]:
        _held[lock] = take_lock(lock)
        if _held[lock] is None:
            print("another run writes what this notebook writes: waits for it", flush=True)
            _held[lock] = take_lock(lock, wait=True)


def _after_a_cell(_result: Any) -> None:
    """A notebook that is looked at, or that failed, keeps nobody waiting."""
    for lock in list(_held):
        _release(lock)
        _held[lock] = None


# A forked worker may outlive a killed parent: the lock is not its own.
os.register_at_fork(after_in_child=_release_all)


def _label(given: Mapping[str, Any]) -> str:
    """A folder name that says what was changed: ``lr=1e-05``; long or odd ones become a hash."""
    label = ",".join(f"{key}={value}" for key, value in given.items())
    if re.fullmatch(r"[\w=,.+-]{1,80}", label):
        return label
    return hashlib.sha256(json.dumps(given, default=str).encode()).hexdigest()[:12]


def _ipython() -> Any:
    return sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None


def _notebook_parameters() -> dict[str, Any]:
    """What the running notebook's parameters cells set, papermill's injected one included, sorted by name.

    From then on its errors that are meant for the reader show their one sentence only.
    """
    shell = _ipython()
    if shell is None:
        return {}

    def show(self: Any, kind: type, error: BaseException, trace: Any, tb_offset: int | None = None) -> list[str]:
        lines = [f"{kind.__name__}: {error}"]
        self._showtraceback(kind, error, lines)
        return lines

    shell.set_custom_exc((StudyError, FloatingPointError, OSError), show)
    shell.events.register("pre_run_cell", _before_a_cell)
    shell.events.register("post_run_cell", _after_a_cell)
    values = shell.user_ns
    cells = [cell for cell in values["In"] if cell.lstrip().startswith(PARAMETERS_MARK)]
    names = set().union(*map(assigned_names, cells))
    return {name: values[name] for name in sorted(names) if values.get(name) is not None}
