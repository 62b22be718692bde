"""Studies so small that every notebook runs in seconds."""

import shutil
from pathlib import Path

import nbformat
import papermill
import yaml

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

SMALL = {
    "data_prep": {
        "drawing": {
            "train_triplets": 40, "val_queries": 12, "gallery_size": 40, "alignment_pairs": 64,
            "pretraining_pairs": 64, "family_size": 8,
        },
        "num_workers": 0,
    },
    "models": {"image_size": 96},
    "zero_shot": {"weights": [0.0, 0.5, 1.0]},
    "qformer": {
        "pretraining_epochs": 1, "epochs": 2, "mine_from": 1, "batch_size": 32, "num_query_tokens": 2, "width": 32,
        "range_max": 10,
    },
    "dpo": {"epochs": 1, "num_negatives": 2, "range_max": 10, "grid": "small", "grid_edits": 24},
}  # fmt: skip
REHEARSED = [
    "study=fashioniq_rehearsal", "qformer.range_max=10", "qformer.batch_size=16",
    "dpo.range_max=10", "dpo.batch_size=16", "dpo.grid=small", "dpo.grid_edits=12",
]  # fmt: skip


def run_all(root: Path, study: dict) -> Path:
    """Runs every notebook on the parameters ``study`` in a project of its own, ``root``."""
    (root / "params.yaml").write_text(yaml.safe_dump(study))
    shutil.copy(ROOT / "dvc.yaml", root)
    shutil.copytree(ROOT / "notebooks", root / "notebooks")
    (root / "executed").mkdir()
    for path in NOTEBOOKS:
        execute(root, path.name)
    return root


def execute(root: Path, name: str, *, cwd: Path | None = None, **parameters) -> nbformat.NotebookNode:
    out = root / "executed" / name
    return papermill.execute_notebook(
        root / "notebooks" / name, out, parameters, kernel_name="python3", cwd=cwd or root, progress_bar=False
    )
