"""Studies so small that every notebook runs in seconds, and the commands that run them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
from dvc.utils.hydra import compose_and_dump

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

SMALL = (
    "data_prep.drawing.train_images=75", "data_prep.drawing.train_triplets=40", "data_prep.drawing.val_queries=12",
    "data_prep.drawing.gallery_size=50",
    "data_prep.drawing.pairs=64",
    "data_prep.drawing.family_size=8", "data_prep.num_workers=0", "models.image_size=96",
    "zero_shot.weights=[0.0,0.5,1.0]",
    "qformer.pretraining_epochs=1", "qformer.epochs=2", "qformer.mine_from=1", "qformer.batch_size=32",
    "qformer.num_query_tokens=2", "qformer.width=32", "qformer.range_max=10",
    "dpo.epochs=1", "dpo.num_negatives=2", "dpo.range_max=10", "dpo.grid=small", "dpo.grid_edits=24",
)  # fmt: skip
REHEARSED = (
    "study=fashioniq_rehearsal", "qformer.range_max=10", "qformer.batch_size=16",
    "dpo.range_max=10", "dpo.batch_size=16", "dpo.grid=small", "dpo.grid_edits=12",
)  # fmt: skip


def compose(path: Path, *overrides: str) -> Path:
    """Writes ``path``, a ``params.yaml``, as ``dvc exp run`` does."""
    compose_and_dump(path, str(ROOT / "conf"), None, "config", "", list(overrides))
    return path


def run(folder: Path, *command: str) -> str:
    """What a command that succeeds prints."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment["PYTHONPATH"] = str(folder)  # a clone's own library, not the one that is installed
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def dvc(folder: Path, *arguments: str) -> str:
    return run(folder, sys.executable, "-m", "dvc", *arguments)


def git(folder: Path, *arguments: str) -> str:
    return run(folder, "git", "-c", "user.name=test", "-c", "user.email=test@example.org", *arguments)


def reproduce(root: Path, *overrides: str) -> Path:
    """A git repository with what git would commit of the project now, reproduced by DVC and committed."""
    for name in git(ROOT, "ls-files", "-co", "--exclude-standard").splitlines():
        if (ROOT / name).is_file() and not name.startswith("tests/") and name != "dvc.lock":
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes((ROOT / name).read_bytes())
    compose(root / "params.yaml", *overrides)
    git(root, "init", "-q")
    dvc(root, "repro")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "small study")
    return root


def run_all(root: Path) -> Path:
    """Runs every notebook on ``params.yaml`` in a project of its own, ``root``."""
    shutil.copy(ROOT / "dvc.yaml", root)
    shutil.copytree(ROOT / "notebooks", root / "notebooks")
    for path in NOTEBOOKS:
        execute(root, path.name)
    return root


def execute(root: Path, name: str, *, cwd: Path | None = None, **parameters) -> nbformat.NotebookNode:
    """Runs a notebook with ``parameters``; it lies in ``runs/executed`` then."""
    out = root / "runs" / "executed" / name
    out.parent.mkdir(parents=True, exist_ok=True)
    return papermill.execute_notebook(
        root / "notebooks" / name, out, parameters, kernel_name="python3", cwd=cwd or root, progress_bar=False
    )
