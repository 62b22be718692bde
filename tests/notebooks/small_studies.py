"""Studies so small that every notebook runs in seconds."""

from __future__ import annotations

from pathlib import Path

import nbformat
import papermill

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
    "zero_shot": {"weights": [0.0, 0.5, 1.0]},
    "qformer": {
        "pretraining_epochs": 1, "epochs": 2, "mine_from": 1, "batch_size": 32, "num_query_tokens": 2, "width": 32,
        "range_max": 10,
    },
    "dpo": {
        "epochs": 1, "num_negatives": 2, "range_max": 10, "grid": "small", "grid_edits": 24,
    },
}  # fmt: skip


def execute(root: Path, name: str, *, cwd: Path | None = None, **parameters) -> nbformat.NotebookNode:
    out = root / "executed" / name
    return papermill.execute_notebook(
        root / "notebooks" / name, out, parameters, kernel_name="python3", cwd=cwd or root, progress_bar=False
    )
