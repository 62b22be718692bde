"""Stages killed (SIGKILL) again and again, at chosen writes and random moments after them: they end as if never."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from dvc.utils.hydra import compose_and_dump

from cirlib.app.rehearsal import prepare
from cirlib.study.parameters import load_study

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

DRAWING = {
    "train_triplets": 30, "val_queries": 10, "gallery_size": 40, "alignment_pairs": 32, "pretraining_pairs": 32,
    "family_size": 8,
}  # fmt: skip


def run(root: Path, notebook: str, *kill: str) -> subprocess.CompletedProcess:
    """The notebook's code in a process of its own; `kill`: the part of a path, the number of the write, the delay."""
    command = [sys.executable, ROOT / "tests" / "robustness" / "run_notebook.py", notebook, *kill]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)


def finish(root: Path, notebook: str) -> list[str]:
    """Runs it undisturbed; what it wrote, in order."""
    done = run(root, notebook)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


def kill(root: Path, notebook: str, part: str, number: int, delay: float) -> None:
    done = run(root, notebook, part, str(number), str(delay))
    assert done.returncode == -9, f"{part} {number}: {done.returncode} {done.stderr[-2000:]}"


def contents(root: Path) -> dict[str, bytes]:
    """Every file but the training histories, which tell times."""
    files = [path for path in root.rglob("*") if path.is_file() and path.name != "history.csv"]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def assert_same(found: Path, wanted: Path) -> None:
    ours, theirs = contents(found), contents(wanted)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []


@pytest.fixture(scope="module")
def bare_garments(tmp_path_factory) -> Path:
    """A project that is to draw a small garments study."""
    root = tmp_path_factory.mktemp("garments")
    study = load_study(ROOT / "params.yaml").model_dump(mode="json")
    study["models"]["image_size"] = 64
    study["data_prep"] |= {"drawing": DRAWING, "alignment_epochs": 2, "num_workers": 2, "batch_size": 16}
    (root / "params.yaml").write_text(yaml.safe_dump(study))
    return with_notebooks(root)


@pytest.fixture(scope="module")
def bare_rehearsal(tmp_path_factory) -> Path:
    """A project whose models are tiny and random, with everything there that the Q-Former's training needs."""
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
    small = ["study=fashioniq_rehearsal", "qformer.range_max=10", "qformer.batch_size=16", "qformer.epochs=3"]
    compose_and_dump(root / "params.yaml", str(ROOT / "conf"), None, "config", "", small)
    with_notebooks(root)
    finish(root, "01_data_prep.ipynb")
    finish(root, "02_zero_shot.ipynb")
    return root


def with_notebooks(root: Path) -> Path:
    shutil.copytree(ROOT / "notebooks", root / "notebooks")
    shutil.copy(ROOT / "dvc.yaml", root)
    return root


def test_drawing_and_encoding(bare_garments, tmp_path):
    rng = random.Random("drawing and encoding")
    shutil.copytree(bare_garments, tmp_path / "undisturbed")
    shutil.copytree(bare_garments, tmp_path / "killed")
    finish(tmp_path / "undisturbed", "01_data_prep.ipynb")
    for part, number, delay in [
        ("captions/cap", rng.randint(1, 18), 0),
        ("tokens.partial/features.npy", 2, rng.uniform(0.1, 0.5)),
        ("results", rng.randint(1, 15), 0),
    ]:
        kill(tmp_path / "killed", "01_data_prep.ipynb", part, number, delay)
    finish(tmp_path / "killed", "01_data_prep.ipynb")
    assert_same(tmp_path / "killed", tmp_path / "undisturbed")


def test_training_mining_and_writing_results(bare_rehearsal, tmp_path):
    rng = random.Random("training, mining and writing")
    shutil.copytree(bare_rehearsal, tmp_path / "undisturbed")
    shutil.copytree(bare_rehearsal, tmp_path / "killed")
    written = finish(tmp_path / "undisturbed", "03_qformer.ipynb")
    assert any("negatives-" in path for path in written)
    for part, number, delay in [
        ("unfinished/qformer/", rng.randint(1, 12), rng.uniform(0, 0.1)),
        ("negatives-", rng.randint(1, 3), 0),
        ("unfinished/qformer_hard_negatives", rng.randint(1, 6), rng.uniform(0, 0.1)),
        ("results/fashioniq_rehearsal/qformer/ranks.csv", rng.randint(1, 3), 0),
    ]:
        kill(tmp_path / "killed", "03_qformer.ipynb", part, number, delay)
    finish(tmp_path / "killed", "03_qformer.ipynb")
    assert_same(tmp_path / "killed", tmp_path / "undisturbed")


DRAWER = """
import sys
from pathlib import Path
from cirlib.benchmarks.garments import draw_garments
from cirlib.study.parameters import Drawing
sizes = Drawing(train_triplets=900, val_queries=100, gallery_size=200, alignment_pairs=900, pretraining_pairs=900,
                family_size=8)
draw_garments(Path(sys.argv[1]), sizes, image_size=64, seed=0, workers=2)
"""


def drawing(root: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", DRAWER, str(root)], env=os.environ)


def drawn(root: Path) -> int:
    return len(list(root.glob("images/*.jpg")))


@pytest.mark.skipif(sys.platform != "linux", reason="looks processes up as Linux lists them")
def test_drawing_killed_at_random_moments(tmp_path):
    """Its workers end with it: they would go on writing beside the run that is started next."""
    undisturbed, killed, rng = tmp_path / "undisturbed", tmp_path / "killed", random.Random("drawing")
    assert drawing(undisturbed).wait() == 0
    for share in sorted(rng.uniform(0.05, 0.8) for _ in range(3)):
        process = drawing(killed)
        end = time.monotonic() + 60
        workers: list[psutil.Process] = []
        while drawn(killed) < share * drawn(undisturbed) or len(workers) < 2:
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.01)
            workers = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        _, alive = psutil.wait_procs(workers, timeout=5)
        assert len(workers) == 2 and alive == []
        assert drawn(killed) < drawn(undisturbed)
    assert drawing(killed).wait() == 0
    assert_same(killed, undisturbed)
