"""Files from elsewhere: no pickle is run, no member of an archive leaves the folder."""

import io
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cirlib.benchmarks import BenchmarkError
from cirlib.benchmarks.image_sources import take_images
from cirlib.models.clip import load_clip
from cirlib.models.feature_store import FeatureStore, StoreError, build_store
from cirlib.models.mini import mini_towers
from cirlib.models.qformer import QFormerSettings, blip2_qformer, load_weights, save_weights
from cirlib.models.weights import ModelError
from cirlib.retrieval.run_files import RunError, read_run
from cirlib.training.loop import TrainingConfig, train


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable, tuple]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """What must not be there afterwards."""
    return tmp_path / "executed"


@pytest.fixture
def forms(mark: Path) -> dict[str, bytes]:
    """The bomb as a bare pickle and in torch's archive, and as an array of objects."""
    archive, array, arrays = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save({"model": Bomb(mark)}, archive)
    objects = np.array([Bomb(mark)], dtype=object)
    np.save(array, objects)
    np.savez(arrays, queries=objects, gallery=objects)
    bare = pickle.dumps(Bomb(mark), protocol=2)
    return {"pickle": bare, "torch": archive.getvalue(), "npy": array.getvalue(), "npz": arrays.getvalue()}


@pytest.mark.parametrize("form", ["pickle", "torch", "npy", "npz"])
def test_the_bomb_works(forms, mark, form):
    """Else the tests below would pass whatever is done."""
    content = io.BytesIO(forms[form])
    if form == "pickle":
        pickle.load(content)
    elif form == "torch":
        torch.load(content, weights_only=False)
    else:
        loaded: Any = np.load(content, allow_pickle=True)
        _ = loaded["queries"] if form == "npz" else loaded
    assert mark.is_dir()


@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_weights_and_checkpoints_that_are_a_pickle_are_refused(tmp_path, forms, mark, cpu, tiny_clip, tiny_blip2, form):
    for suffix in (".pt", ".bin", ".ckpt"):
        (tmp_path / f"weights{suffix}").write_bytes(forms[form])
        with pytest.raises(ModelError, match="could not be loaded"):
            load_clip(tiny_clip[0], str(tmp_path / f"weights{suffix}"), **cpu)
    composer = blip2_qformer(str(tiny_blip2), QFormerSettings())
    save_weights(composer, tmp_path / "qformer")
    for file in (tmp_path / "qformer" / "model.safetensors", tmp_path / "heads.safetensors"):
        file.write_bytes(forms[form])
    with pytest.raises(ModelError, match="no Q-Former of this study could be loaded"):
        load_weights(composer, tmp_path / "qformer")
    with pytest.raises(ModelError, match="holds no aligned heads"):
        mini_towers(64, tmp_path / "heads.safetensors", **cpu)
    assert not mark.exists()


@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_a_training_state_that_is_a_pickle_is_not_run_but_started_over(tmp_path, forms, mark, form, capsys):
    def run() -> None:
        model = torch.nn.Linear(2, 2)
        config = TrainingConfig("toy", epochs=1, steps_per_epoch=1, lr=0.01, precision="fp32")
        history = train(model, lambda epoch: [torch.ones(4, 2)], lambda x: (model(x).sum(), {}), config, tmp_path / "t")
        assert len(history.records) == 1

    run()
    for file in filter(Path.is_file, (tmp_path / "t").rglob("*")):
        file.write_bytes(forms[form])
    run()
    assert "goes on" not in capsys.readouterr().out
    assert not mark.exists()


def test_features_and_runs_that_are_python_objects_are_refused(tmp_path, forms, mark, make_benchmark):
    build_store(tmp_path / "store", "key", ["a"], (2,), lambda rows: [torch.ones(1, 2)])
    (tmp_path / "store" / "features.npy").write_bytes(forms["npy"])
    with pytest.raises(StoreError, match="holds no finished feature store"):
        FeatureStore(tmp_path / "store")
    (tmp_path / "run.npz").write_bytes(forms["npz"])
    with pytest.raises(RunError, match=r"run\.npz: not a readable \.npz file"):
        read_run(tmp_path / "run.npz", make_benchmark([("a", "b", "is blue")], ["a", "b", "c"]), removed=True)
    assert not mark.exists()


@pytest.mark.parametrize("kind", ["symbolic in tar", "hard in tar", "symbolic in zip"])
def test_a_link_in_an_archive_shows_nothing_of_what_it_leads_to(tmp_path, write_image, kind):
    secret, source = write_image(tmp_path / "secret.jpg"), tmp_path / ("i.zip" if "zip" in kind else "i.tar")
    if kind == "symbolic in zip":  # as `zip --symlinks` stores it
        entry = zipfile.ZipInfo("a.jpg")
        entry.create_system, entry.external_attr = 3, 0o120777 << 16
        with zipfile.ZipFile(source, "w") as archive:
            archive.writestr(entry, str(secret))
    else:
        member = tarfile.TarInfo("a.jpg")
        member.type, member.linkname = tarfile.LNKTYPE if "hard" in kind else tarfile.SYMTYPE, str(secret)
        with tarfile.open(source, "w") as archive:
            archive.addfile(member)
    try:
        outcomes = take_images(source, ["a"], tmp_path / "images")
    except BenchmarkError as error:
        assert "none of the 1 images" in str(error)
    else:
        assert outcomes["a"].kind == "broken"
    assert list((tmp_path / "images").iterdir()) == []
