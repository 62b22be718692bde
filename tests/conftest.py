"""Fixtures of several test files: the real annotations where there are any, and small made-up data."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

PROJECT_ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """Folder of a benchmark's real annotations ("fashioniq", "cirr", "circo"); skips where it is absent."""
    base = Path(os.environ.get("CIRLIB_SHARED", PROJECT_ROOT.parent / "shared"))

    def find(name: str) -> Path:
        if not (base / name).is_dir():
            pytest.skip(f"no {name} annotations in {base} (set CIRLIB_SHARED to the folder that has them)")
        return base / name

    return find


@pytest.fixture
def write_json() -> Callable[[Path, Any], Path]:
    """Writes JSON, making the folder."""

    def write(path: Path, content: Any) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")
        return path

    return write


@pytest.fixture
def write_image() -> Callable[..., Path]:
    """Saves a random picture; the same seed gives the same pixels."""

    def write(path: Path, seed: int = 0, size: tuple[int, int] = (48, 64)) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = np.random.default_rng(seed).integers(0, 256, (6, 5, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)
        return path

    return write


@pytest.fixture
def small_fashioniq(tmp_path: Path, write_json: Callable[[Path, Any], Path]) -> Path:
    """FashionIQ's files with three categories, no images: 2 train and 2 val queries a category.

    Galleries are `{category}-{split}-{0..4}`; image 4 is in no query; shirt and toptee share "both" in val,
    and shirt's train gallery has toptee's first val reference.
    """
    for category in ("dress", "shirt", "toptee"):
        for split in ("train", "val", "test"):
            ids = [f"{category}-{split}-{i}" for i in range(5)]
            queries: list[dict[str, Any]] = [
                {"target": ids[2], "candidate": ids[0], "captions": ["is blue.", "has long sleeves"]},
                {"target": ids[3], "candidate": ids[1], "captions": ["is red", "is red"]},
            ]
            if split == "test":
                queries = [{k: v for k, v in q.items() if k != "target"} for q in queries]
            if split == "val" and category != "dress":
                ids.append("both")
            if split == "train" and category == "shirt":
                ids.append("toptee-val-0")
            write_json(tmp_path / "captions" / f"cap.{category}.{split}.json", queries)
            write_json(tmp_path / "image_splits" / f"split.{category}.{split}.json", ids)
    return tmp_path
