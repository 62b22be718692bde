"""The feature store: what comes back is what went in, and nothing half-written or stale is ever trusted."""

from __future__ import annotations

import hashlib
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
from torch import Tensor

from cirlib.models import feature_store as store_module
from cirlib.models.feature_store import FeatureStore, StoreError, build_store, contents_key

SHAPE = (3, 4)
IDS = [f"image-{i}" for i in range(47)]


def features_of(rows: range) -> Tensor:
    """(B, 3, 4), other for every image, not exact in float16."""
    return torch.stack([torch.sin(torch.arange(12) + 100.0 * row).view(SHAPE) for row in rows])


class Encoder:
    """Gives `features_of` in batches of 5 and remembers every image it was asked for."""

    def __init__(self, features: Callable[[range], Tensor] = features_of) -> None:
        self.asked: list[int] = []
        self.features = features

    def __call__(self, rows: slice) -> Iterator[Tensor]:
        for start in range(rows.start, rows.stop, 5):
            batch = range(start, min(start + 5, rows.stop))
            self.asked += batch
            yield self.features(batch)


def build(folder: Path, encoder: Encoder, key: str = "key", ids: list[str] = IDS, shape=SHAPE) -> FeatureStore:
    return build_store(folder, key, ids, shape, encoder, shard_size=10)


def everything() -> np.ndarray:
    return features_of(range(len(IDS))).numpy().astype(np.float16)


# Killed with SIGKILL in its third shard, after the first batch of it is written.
KILLED_BUILD = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.test_store import IDS, Encoder, build, features_of

def features(rows):
    if rows.start >= 25:
        os.kill(os.getpid(), signal.SIGKILL)
    return features_of(rows)

build(Path(sys.argv[1]), Encoder(features))
"""


@pytest.fixture(scope="module")
def killed_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a build killed in its third shard of five left behind."""
    folder = tmp_path_factory.mktemp("killed") / "store"
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", KILLED_BUILD, str(folder), str(root)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return folder.parent


@pytest.fixture
def killed(tmp_path: Path, killed_once: Path) -> Path:
    """The folder of a store whose build was killed; a copy for each test."""
    shutil.copytree(killed_once, tmp_path / "copy")
    return tmp_path / "copy" / "store"


def test_gives_the_encoders_features_rounded_to_float16(tmp_path):
    store = build(tmp_path / "store", Encoder())
    assert isinstance(store.array, np.memmap)
    assert store.array.dtype == np.float16
    np.testing.assert_array_equal(store.array, everything())


def test_gives_float32_in_the_order_asked_for(tmp_path):
    store = build(tmp_path / "store", Encoder())
    got = store[["image-40", "image-2", "image-40"]]
    assert got.dtype == torch.float32
    assert torch.equal(got, torch.from_numpy(everything()[[40, 2, 40]]).float())
    assert store.rows(["image-7", "image-0"]).tolist() == [7, 0]
    assert store.rows([]).shape == (0,)


def test_rounds_bfloat16_features_like_float32_ones(tmp_path):
    store = build(tmp_path / "store", Encoder(lambda rows: features_of(rows).bfloat16()))
    expected = features_of(range(len(IDS))).bfloat16().float().numpy().astype(np.float16)
    np.testing.assert_array_equal(store.array, expected)


def test_knows_its_images_and_names_an_unknown_one(tmp_path):
    store = build(tmp_path / "store", Encoder())
    assert len(store) == 47
    assert "image-46" in store
    assert "image-47" not in store
    with pytest.raises(StoreError, match="'image-99' has no features"):
        store[["image-1", "image-99"]]


def test_a_finished_store_is_opened_not_built_again(tmp_path):
    build(tmp_path / "store", Encoder())
    again = Encoder()
    build(tmp_path / "store", again)
    assert again.asked == []


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"key": "other model"}, id="key"),
        pytest.param({"ids": IDS[::-1]}, id="order of the images"),
        pytest.param({"ids": [*IDS[:-1], "another"]}, id="one image"),
    ],
)
def test_a_stale_store_is_built_again(tmp_path, change):
    build(tmp_path / "store", Encoder())
    encoder = Encoder(lambda rows: -features_of(rows))
    store = build(tmp_path / "store", encoder, **change)
    assert encoder.asked == list(range(len(IDS)))
    np.testing.assert_array_equal(store.array, -everything())
    assert store.ids == change.get("ids", IDS)


def test_a_store_of_another_shape_is_built_again(tmp_path):
    build(tmp_path / "store", Encoder())
    store = build(tmp_path / "store", Encoder(lambda rows: features_of(rows).flatten(1)), shape=(12,))
    assert store.array.shape == (47, 12)


@pytest.mark.parametrize("size", [0, 60, 500])
def test_a_cut_off_file_is_refused_and_built_again(tmp_path, size):
    build(tmp_path / "store", Encoder())
    os.truncate(tmp_path / "store" / "features.npy", size)
    with pytest.raises(StoreError, match="no finished feature store"):
        FeatureStore(tmp_path / "store")
    encoder = Encoder()
    np.testing.assert_array_equal(build(tmp_path / "store", encoder).array, everything())
    assert len(encoder.asked) == len(IDS)


def test_features_that_are_not_those_that_were_written_are_built_again(tmp_path, capsys):
    build(tmp_path / "store", Encoder())
    array = np.load(tmp_path / "store" / "features.npy", mmap_mode="r+")
    array[20] = 0
    array.flush()
    encoder = Encoder()
    np.testing.assert_array_equal(build(tmp_path / "store", encoder).array, everything())
    assert len(encoder.asked) == len(IDS)
    assert f"{tmp_path / 'store' / 'features.npy'} is not what was written: encoding again" in capsys.readouterr().out


@pytest.mark.parametrize("manifest", ["{}", "[]", '{"ids": [], "shape": [3, 4]}'])
def test_another_manifest_is_refused(tmp_path, manifest):
    build(tmp_path / "store", Encoder())
    (tmp_path / "store" / "store.json").write_text(manifest)
    with pytest.raises(StoreError, match="no finished feature store"):
        FeatureStore(tmp_path / "store")
    np.testing.assert_array_equal(build(tmp_path / "store", Encoder()).array, everything())


def test_a_damaged_manifest_is_refused_and_built_again(tmp_path):
    build(tmp_path / "store", Encoder())
    (tmp_path / "store" / "store.json").write_text('{"key": "ke')
    with pytest.raises(StoreError, match="no finished feature store"):
        FeatureStore(tmp_path / "store")
    np.testing.assert_array_equal(build(tmp_path / "store", Encoder()).array, everything())


def test_a_missing_store_says_what_makes_it(tmp_path):
    with pytest.raises(StoreError, match="run the data preparation stage"):
        FeatureStore(tmp_path / "nothing")


def test_a_killed_build_leaves_no_store_and_goes_on_at_the_first_unfinished_shard(killed):
    with pytest.raises(StoreError):
        FeatureStore(killed)
    encoder = Encoder()
    store = build(killed, encoder)
    assert encoder.asked == list(range(20, len(IDS)))
    np.testing.assert_array_equal(store.array, everything())
    assert sorted(path.name for path in killed.iterdir()) == ["features.npy", "store.json"]
    assert not killed.with_name("store.partial").exists()


def test_a_killed_build_of_another_model_is_not_gone_on_with(killed):
    encoder = Encoder()
    np.testing.assert_array_equal(build(killed, encoder, key="other").array, everything())
    assert encoder.asked == list(range(len(IDS)))


@pytest.mark.parametrize("damage", ["truncated", "header cut", "removed"])
def test_a_killed_build_whose_file_is_damaged_starts_again(killed, damage):
    file = killed.with_name("store.partial") / "features.npy"
    if damage == "removed":
        file.unlink()
    else:
        os.truncate(file, 300 if damage == "truncated" else 40)
    encoder = Encoder()
    np.testing.assert_array_equal(build(killed, encoder).array, everything())
    assert encoder.asked == list(range(len(IDS)))


def test_a_build_stopped_before_its_rename_is_only_renamed(tmp_path, monkeypatch):
    folder, rmtree = tmp_path / "store", shutil.rmtree

    def stop_at_the_end(path: Path, **options: bool) -> None:
        if path == folder:
            raise KeyboardInterrupt
        rmtree(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(store_module.shutil, "rmtree", stop_at_the_end)
        with pytest.raises(KeyboardInterrupt):
            build(folder, Encoder())
    encoder = Encoder()
    np.testing.assert_array_equal(build(folder, encoder).array, everything())
    assert encoder.asked == []


def test_an_encoder_that_gives_too_few_features_is_an_error(tmp_path):
    with pytest.raises(StoreError, match="gave 8 features for 10 images"):
        build(tmp_path / "store", Encoder(lambda rows: features_of(rows)[:4]))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])  # 1e6 is infinite in float16
def test_features_that_are_not_finite_in_float16_are_an_error(tmp_path, value):
    with pytest.raises(StoreError, match="rows 0:5 are not finite"):
        build(tmp_path / "store", Encoder(lambda rows: features_of(rows) * value))


def test_a_store_of_no_images_is_empty(tmp_path):
    assert len(build(tmp_path / "store", Encoder(), ids=[])) == 0


def test_the_manifest_is_json_with_key_shape_and_ids(tmp_path):
    build(tmp_path / "store", Encoder())
    manifest = json.loads((tmp_path / "store" / "store.json").read_text())
    digest = hashlib.blake2b((tmp_path / "store" / "features.npy").read_bytes()).hexdigest()
    assert manifest == {"key": "key", "shape": [3, 4], "ids": IDS, "digest": digest}


def test_the_contents_key_changes_with_model_bytes_and_order(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_bytes(b"one")
    b.write_bytes(b"two")
    keys = {contents_key("m", [a, b]), contents_key("n", [a, b]), contents_key("m", [b, a]), contents_key("m", [a])}
    assert len(keys) == 4
    before = contents_key("m", [a, b])
    assert contents_key("m", [a, b]) == before
    b.write_bytes(b"twp")
    assert contents_key("m", [a, b]) != before


def test_rows_are_read_in_the_order_asked_for(tmp_path, make_store):
    features = torch.randn(20, 4, 6, generator=torch.Generator().manual_seed(0))
    store = make_store(tmp_path / "store", [f"i{i}" for i in range(20)], features)
    rows, cpu = np.array([5, 0, 17, 5, 3]), torch.device("cpu")
    assert store.shape == (20, 4, 6)
    assert store.read(rows, cpu).dtype == torch.float32
    assert torch.equal(store.read(rows, cpu), features.half().float()[rows])
    assert store.read(rows[:0], cpu).shape == (0, 4, 6)


def test_what_is_expected_is_read_once_and_given_like_the_rest(tmp_path, make_store, monkeypatch):
    features = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    store, cpu, fetched = (
        make_store(tmp_path / "store", [f"i{i}" for i in range(20)], features),
        torch.device("cpu"),
        [],
    )
    fetch = store._fetch
    monkeypatch.setattr(store, "_fetch", lambda rows, device: fetched.append(rows.tolist()) or fetch(rows, device))
    now, after = np.array([7, 3, 7, 19]), np.array([0, 2])
    store.prefetch(now, cpu)
    store.prefetch(after, cpu)
    for rows in (now, now[:2], now[3:], after):
        assert torch.equal(store.read(rows, cpu), features.half().float()[rows])
    assert fetched == [[3, 7, 19], [0, 2]]
    for rows in (np.array([3, 8]), np.array([19, 0])):
        assert torch.equal(store.read(rows, cpu), features.half().float()[rows])
    assert fetched[2:] == [[3, 8], [0, 19]]
    for row in (-1, 20):
        with pytest.raises(IndexError, match=f"rows run from 0 to 19, got {row} to {row}"):
            store.read(np.array([row]), cpu)
