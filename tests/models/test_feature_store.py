"""The feature store: what comes back is what went in, and nothing half-written or stale is ever trusted."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import PartialState
from torch import Tensor

from cirlib.models import feature_store
from cirlib.models.feature_store import FeatureStore, StoreError, begin_store, build_store, contents_key
from cirlib.study.errors import ResourceError
from cirlib.study.processes import launch

SHAPE, CPU = (3, 4), torch.device("cpu")
feature_store.SHARD_SIZE = 10
IDS = [f"image-{i}" for i in range(47)]


def features_of(rows: range) -> Tensor:
    """(B, 3, 4), other for every image, not exact in float16."""
    return torch.stack([torch.sin(torch.arange(12) + 100.0 * row).view(SHAPE) for row in rows])


EVERYTHING = features_of(range(len(IDS))).half()


class Encoder:
    """Gives `features_of` in batches of 5 and remembers every image it was asked for."""

    def __init__(self, features: Callable[[range], Tensor] = features_of) -> None:
        self.asked, self.features = [], features

    def __call__(self, rows: slice) -> Iterator[Tensor]:
        for start in range(rows.start, rows.stop, 5):
            batch = range(start, min(start + 5, rows.stop))
            self.asked += batch
            yield self.features(batch)


def build(folder: Path, encoder: Encoder, key: str = "key", ids: list[str] = IDS, shape=SHAPE) -> FeatureStore:
    return build_store(folder, key, ids, shape, encoder)


def kill_in_the_third_shard(rows: range) -> Tensor:
    """When the first batch of the third shard is written."""
    if rows.start >= 25:
        os.kill(os.getpid(), signal.SIGKILL)
    return features_of(rows)


@pytest.fixture(scope="module")
def killed_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a build killed in its third shard of five left behind."""
    folder = tmp_path_factory.mktemp("killed") / "store"
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from test_feature_store import *; "
    code += f"build(Path({str(folder)!r}), Encoder(kill_in_the_third_shard))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return folder.parent


@pytest.fixture
def killed(tmp_path: Path, killed_once: Path) -> Path:
    """The folder of a store whose build was killed; a copy for each test."""
    shutil.copytree(killed_once, tmp_path / "copy")
    return tmp_path / "copy" / "store"


def test_the_encoders_features_come_back_rounded_to_float16(tmp_path):
    store, expected = build(tmp_path / "store", Encoder()), EVERYTHING.float()
    assert (len(store), store.shape, store.ids) == (47, (47, 3, 4), IDS)
    got = store[["image-40", "image-2", "image-40"]]
    assert got.dtype == torch.float32
    assert torch.equal(got, expected[[40, 2, 40]])
    rows = np.array([5, 0, 17, 5, 3])
    assert torch.equal(store.read(rows, CPU), expected[rows])


def test_an_unknown_image_or_row_is_named(tmp_path):
    store = build(tmp_path / "store", Encoder())
    with pytest.raises(StoreError, match="'image-99' has no features"):
        store[["image-1", "image-99"]]
    for row in (-1, 47):
        with pytest.raises(IndexError, match=f"rows run from 0 to 46, got {row} to {row}"):
            store.read(np.array([row]), CPU)


def test_what_is_prefetched_is_read_once_and_given_like_the_rest(tmp_path, monkeypatch):
    store, loaded = build(tmp_path / "store", Encoder()), []
    load = store._load
    monkeypatch.setattr(store, "_load", lambda rows, device: loaded.append(rows.tolist()) or load(rows, device))
    now, after = np.array([7, 3, 7, 19]), np.array([0, 2])
    store.prefetch(now, CPU)
    store.prefetch(after, CPU)
    for rows in (now, now[:2], now[3:], after):
        assert torch.equal(store.read(rows, CPU), EVERYTHING[rows].float())
    assert loaded == [[3, 7, 19], [0, 2]]
    for rows in (np.array([3, 8]), np.array([19, 0])):
        assert torch.equal(store.read(rows, CPU), EVERYTHING[rows].float())
    assert loaded[2:] == [[3, 8], [0, 19]]


@pytest.mark.parametrize(
    "change",
    [{"key": "other model"}, {"ids": IDS[::-1]}, {"ids": IDS[:30]}, {"shape": (4, 3)}],
)
def test_a_stale_store_is_built_again(tmp_path, change):
    build(tmp_path / "store", Encoder())
    shape = change.get("shape", SHAPE)
    encoder = Encoder(lambda rows: -features_of(rows).view(-1, *shape))
    store = build(tmp_path / "store", encoder, **change)
    assert store.ids == change.get("ids", IDS)
    assert encoder.asked == list(range(len(store)))
    build(tmp_path / "store", lambda rows: 1 / 0, **change)  # and then opened
    assert np.array_equal(store.array, -EVERYTHING[: len(store)].view(-1, *shape))


DAMAGES = {
    "features cut off": lambda store: os.truncate(store / "features.npy", 500),
    "features removed": lambda store: (store / "features.npy").unlink(),
    "manifest cut off": lambda store: (store / "store.json").write_text('{"key": "ke'),
    "manifest of something else": lambda store: (store / "store.json").write_text('{"ids": [], "shape": [3, 4]}'),
    "manifest of an older kind": lambda store: (store / "store.json").write_text(
        json.dumps({"key": "key", "shape": [3, 4], "ids": IDS, "digest": "0"})
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_store_is_refused_and_like_a_damaged_build_made_again(killed, damage):
    for folder in (killed.with_name("store.partial"), killed):
        DAMAGES[damage](folder)
        with pytest.raises(StoreError, match="no finished feature store: run the data preparation stage"):
            FeatureStore(killed)
        encoder = Encoder()
        assert np.array_equal(build(killed, encoder).array, EVERYTHING)
        assert encoder.asked == list(range(len(IDS)))


def test_a_killed_build_leaves_no_store_and_goes_on_at_the_first_unfinished_shard(killed):
    assert begin_store(killed, "key", IDS, SHAPE) == 27
    encoder = Encoder()
    assert np.array_equal(build(killed, encoder).array, EVERYTHING)
    assert encoder.asked == list(range(20, len(IDS)))
    assert sorted(path.name for path in killed.iterdir()) == ["features.npy", "store.json"]
    assert not killed.with_name("store.partial").exists()


def test_an_interrupted_build_needs_no_second_room_on_the_disk(killed, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 0))
    assert begin_store(killed, "key", IDS, SHAPE, "make room") == 27
    with pytest.raises(ResourceError, match="make room"):
        begin_store(killed, "other", IDS, SHAPE, "make room")


def end_with_the_second_shard(folder: Path) -> None:
    """Kills the process that computes images 30 to 39; of two it is the second, in its second shard."""

    def encode(rows: slice) -> list[Tensor]:
        if rows.start == 30:
            os.kill(os.getpid(), signal.SIGKILL)
        return [features_of(range(rows.start, rows.stop))]

    build_store(folder, "key", IDS, SHAPE, encode)


def go_on(folder: Path) -> None:
    def encode(rows: slice) -> list[Tensor]:
        with (folder.parent / "asked.txt").open("a") as log:
            log.write(f"{PartialState().process_index} {rows.start} {rows.stop}\n")
        return [features_of(range(rows.start, rows.stop))]

    build_store(folder, "key", IDS, SHAPE, encode)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.device_count() in (1, 2), reason="3 processes need as many GPUs")
@pytest.mark.parametrize(
    ("processes", "asked"),
    [(1, ["0 20 30", "0 30 40", "0 40 47"]), (3, ["0 20 30", "1 30 40", "2 40 47"])],
)
def test_what_a_killed_process_of_two_left_is_gone_on_with_by_another_number(tmp_path, monkeypatch, processes, asked):
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parent}{os.pathsep}{Path(__file__).parents[2]}")
    with pytest.raises(ResourceError):
        launch(end_with_the_second_shard, tmp_path / "store", 2)
    assert json.loads((tmp_path / "store.partial" / "store.json").read_text())["done"] == 20
    launch(go_on, tmp_path / "store", processes)
    assert sorted((tmp_path / "asked.txt").read_text().splitlines()) == asked
    assert np.array_equal(FeatureStore(tmp_path / "store").array, EVERYTHING)


def test_features_that_are_too_few_or_not_finite_in_float16_are_an_error(tmp_path):
    with pytest.raises(StoreError, match="gave 8 features for 10 images"):
        build(tmp_path / "store", Encoder(lambda rows: features_of(rows)[:4]))
    with pytest.raises(StoreError, match="rows 0:5 are not finite"):
        build(tmp_path / "store", Encoder(lambda rows: features_of(rows) * 1e6))


def test_the_contents_key_changes_with_model_bytes_and_order(tmp_path):
    a, b, c = (tmp_path / name for name in "abc")
    for file, content in ((a, b"one"), (b, b"two"), (c, b"twp")):
        file.write_bytes(content)
    keys = [contents_key(*of) for of in (("m", [a, b]), ("n", [a, b]), ("m", [b, a]), ("m", [a]), ("m", [a, c]))]
    assert len(set(keys)) == len(keys)
