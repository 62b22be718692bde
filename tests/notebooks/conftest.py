"""Projects whose notebooks have been run: a small garments study, and the rehearsal of FashionIQ's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from dvc.utils.hydra import compose_and_dump
from small_studies import NOTEBOOKS, ROOT, SMALL, execute

from cirlib.params import load_study
from cirlib.rehearsal import prepare


@pytest.fixture(scope="session")
def small_project(tmp_path_factory) -> Path:
    """A copy of the project's notebooks and a small garments study, with every stage run once through papermill."""
    root = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "notebooks", root / "notebooks")
    shutil.copy(ROOT / "dvc.yaml", root)
    study = load_study(ROOT / "params.yaml").model_dump(mode="json")
    for stage, values in SMALL.items():
        study[stage] |= values
    study["models"]["image_size"] = 96
    (root / "params.yaml").write_text(yaml.safe_dump(study))
    (root / "executed").mkdir()
    for path in NOTEBOOKS:
        execute(root, path.name)
    return root


@pytest.fixture(scope="session")
def small_rehearsal(tmp_path_factory) -> Path:
    """The fashioniq_rehearsal study on a few made-up annotations, the tiny BLIP-2 and CLIP through the real loaders."""
    root = tmp_path_factory.mktemp("rehearsal")
    for category in ("dress", "shirt", "toptee"):
        for split, queries in (("train", 30), ("val", 12)):
            ids = [f"{category}-{split}-{i}" for i in range(queries + 1)]
            records = [
                {"candidate": ids[i], "target": ids[i + 1], "captions": ["is blue.", f"has {i} dots"]}
                for i in range(queries)
            ]
            for kind, content in (("captions/cap", records), ("image_splits/split", ids)):
                file = root / "annotations" / f"{kind}.{category}.{split}.json"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps(content))
    prepare(root / "data" / "fashioniq_rehearsal", root / "annotations")
    small = [
        "qformer.range_max=10",
        "qformer.batch_size=16",
        "dpo.range_max=10",
        "dpo.batch_size=16",
        "dpo.grid=small",
        "dpo.grid_edits=12",
    ]
    compose_and_dump(
        root / "params.yaml", str(ROOT / "conf"), None, "config", "", ["study=fashioniq_rehearsal", *small]
    )
    shutil.copy(ROOT / "dvc.yaml", root)
    shutil.copytree(ROOT / "notebooks", root / "notebooks")
    (root / "executed").mkdir()
    for path in NOTEBOOKS:
        execute(root, path.name)
    return root
