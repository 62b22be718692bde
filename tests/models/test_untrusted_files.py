"""Files from elsewhere: no pickle is run, no member of an archive leaves the folder."""

from __future__ import annotations

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
from torch import nn

from cirlib.benchmarks import BenchmarkError
from cirlib.benchmarks.image_sources import take_images
from cirlib.models.clip import load_clip
from cirlib.models.feature_store import FeatureStore, StoreError, build_store
from cirlib.models.mini import ModelError, load_two_towers
from cirlib.models.qformer import QFormerSettings, blip2_qformer, load_weights, save_weights
from cirlib.retrieval.run_files import RunError, read_run
from cirlib.training.loop import TrainingConfig, train


class Bomb:
    """Makes a file when it is unpickled."""

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
def test_a_training_state_that_is_a_pickle_is_not_run_but_started_over(tmp_path, forms, mark, form, capsys):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "state.pt").write_bytes(forms[form])
    model = nn.Linear(2, 2)
    loss_of = lambda rows: (model(torch.ones(rows, 2)).square().mean(), {})  # noqa: E731
    config = TrainingConfig("toy", epochs=1, steps_per_epoch=1, lr=0.01, precision="fp32")
    history = train(model, lambda epoch: [_Rows(2)], loss_of, config, tmp_path / "toy")
    assert len(history.records) == 1 and "goes on" not in capsys.readouterr().out
    assert not mark.exists()


class _Rows(int):
    def __len__(self) -> int:
        return int(self)


@pytest.mark.parametrize("form", ["pickle", "torch"])
@pytest.mark.parametrize("suffix", [".pt", ".bin", ".pth", ".ckpt"])
def test_weights_of_clip_that_are_a_pickle_are_refused(tmp_path, forms, mark, cpu, tiny_clip, form, suffix):
    (tmp_path / f"weights{suffix}").write_bytes(forms[form])
    with pytest.raises(ModelError, match="could not be loaded"):
        load_clip(tiny_clip[0], str(tmp_path / f"weights{suffix}"), **cpu)
    assert not mark.exists()


@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_weights_of_the_study_that_are_a_pickle_are_refused(tmp_path, forms, mark, tiny_blip2, form):
    composer = blip2_qformer(str(tiny_blip2), QFormerSettings())
    save_weights(composer, tmp_path / "qformer")
    for file in (tmp_path / "qformer" / "model.safetensors", tmp_path / "two_towers.safetensors"):
        file.write_bytes(forms[form])
    with pytest.raises(ModelError, match="does not fit"):
        load_weights(composer, tmp_path / "qformer")
    with pytest.raises(ModelError, match="is no whole safetensors file"):
        load_two_towers(tmp_path / "two_towers.safetensors")
    assert not mark.exists()


def test_features_that_are_python_objects_are_no_store(tmp_path, forms, mark):
    build_store(tmp_path / "store", "key", ["a"], (2,), lambda rows: [torch.ones(1, 2)])
    (tmp_path / "store" / "features.npy").write_bytes(forms["npy"])
    with pytest.raises(StoreError, match="holds no finished feature store"):
        FeatureStore(tmp_path / "store")
    assert not mark.exists()


def test_a_run_of_python_objects_is_refused(tmp_path, forms, mark, make_benchmark):
    (tmp_path / "run.npz").write_bytes(forms["npz"])
    with pytest.raises(RunError, match=r"run\.npz: not a readable \.npz file"):
        read_run(tmp_path / "run.npz", make_benchmark([("a", "b", "is blue")], ["a", "b", "c"]), removed=True)
    assert not mark.exists()


# ------------------------------------------------------------------ archives


def as_tar(path: Path, kind: bytes, link: str) -> Path:
    """An archive whose `a.jpg` is a link."""
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("a.jpg")
        member.type, member.linkname = kind, link
        archive.addfile(member)
    return path


def as_zip(path: Path, link: str) -> Path:
    """An archive whose `a.jpg` is a symbolic link, as `zip --symlinks` stores it."""
    member = zipfile.ZipInfo("a.jpg")
    member.create_system, member.external_attr = 3, 0o120777 << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, link)
    return path


@pytest.mark.parametrize("kind", ["symbolic in tar", "hard in tar", "symbolic in zip"])
def test_a_link_in_an_archive_shows_nothing_of_what_it_leads_to(tmp_path, write_image, kind):
    secret = write_image(tmp_path / "secret.jpg")
    if kind == "symbolic in zip":
        source = as_zip(tmp_path / "i.zip", str(secret))
    else:
        source = as_tar(tmp_path / "i.tar", tarfile.LNKTYPE if "hard" in kind else tarfile.SYMTYPE, str(secret))
    try:
        outcomes = take_images(source, ["a"], tmp_path / "images")
    except BenchmarkError as error:
        assert "none of the 1 images" in str(error)
    else:
        assert outcomes["a"].kind == "broken"
    assert list((tmp_path / "images").iterdir()) == []


def test_an_archive_that_unpacks_to_a_thousand_times_its_size_is_read_up_to_the_cap_only(tmp_path):
    with zipfile.ZipFile(tmp_path / "i.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jpg", bytes(200_000_000))
    assert (tmp_path / "i.zip").stat().st_size < 1_000_000
    outcome = take_images(tmp_path / "i.zip", ["a"], tmp_path / "images")["a"]
    assert outcome.kind == "broken" and "larger than" in outcome.reason
