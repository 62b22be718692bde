"""Features of images on disk: memory-mapped float16 plus ids, written in shards, finished by one rename.

A store under way is a folder ``….partial``; its ``store.json`` counts the images that are on the disk, from which an
interrupted run goes on. Several processes write side by side what one would have written.
"""

import hashlib
import json
import os
import shutil
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor

from cirlib.study.errors import StudyError, WriteError
from cirlib.study.files import ADVICE, write_json
from cirlib.study.processes import broadcast
from cirlib.study.progress import progress
from cirlib.study.resources import require_disk

FEATURES, MANIFEST = "features.npy", "store.json"
SHARD_SIZE = 1024  # images that a process writes between two counts
Encode = Callable[[slice], Iterable[Tensor]]


class StoreError(StudyError, RuntimeError):
    """A feature store is missing, cut off, or lacks an image."""


class ImageFeatures(ABC):
    """What the encoder named ``key`` makes of images: ``features[ids]`` are float32, (B, D) or (B, T, D)."""

    def __init__(self, key: str, ids: Sequence[str], shape: tuple[int, ...], where: object) -> None:
        self.key, self.ids, self.shape, self._where = key, list(ids), shape, where
        self._row = {image: row for row, image in enumerate(self.ids)}
        self._loader = ThreadPoolExecutor(1)
        self._ahead: deque[tuple[np.ndarray, Future[Tensor]]] = deque(maxlen=2)  # of the batch at work, and the next

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, ids: Sequence[str]) -> Tensor:
        return self.read(self.rows(ids), torch.device("cpu"))

    def rows(self, ids: Sequence[str]) -> np.ndarray:
        """Rows (B,) int64 of ``ids``; StoreError names the first one that is absent."""
        try:
            return np.fromiter((self._row[image] for image in ids), np.int64, len(ids))
        except KeyError as error:
            raise StoreError(f"image {error.args[0]!r} has no features in {self._where}") from None

    def prefetch(self, rows: np.ndarray, device: torch.device) -> None:
        """Loads ``rows`` (B,) in the background, for a :meth:`read` of some of them soon to come."""
        wanted = np.unique(rows)  # sorted: a memory map is read front to back
        self._ahead.append((wanted, self._loader.submit(self._load, wanted, device)))

    def read(self, rows: np.ndarray, device: torch.device) -> Tensor:
        """Features (B, D) or (B, T, D) float32 of ``rows`` (B,), on ``device``."""
        for wanted, future in self._ahead:
            at = np.searchsorted(wanted[:-1], rows)
            if len(wanted) and np.array_equal(wanted[at], rows):
                loaded = future.result()
                break
        else:
            wanted, at = np.unique(rows, return_inverse=True)
            loaded = self._load(wanted, device)
        return self._features(loaded[torch.from_numpy(at).to(loaded.device)]).float().to(device)

    @abstractmethod
    def _load(self, rows: np.ndarray, device: torch.device) -> Tensor:
        """What the features of sorted ``rows`` are made from."""

    def _features(self, loaded: Tensor) -> Tensor:
        return loaded


class FeatureStore(ImageFeatures):
    """The finished store in ``folder``, else a StoreError; ``store.array`` is the memory map itself."""

    def __init__(self, folder: Path) -> None:
        manifest = _manifest(folder)
        if manifest is None:
            raise StoreError(f"{folder} holds no finished feature store: run the data preparation stage")
        self.folder = folder
        self.array: np.ndarray = np.load(folder / FEATURES, mmap_mode="r")
        super().__init__(manifest["key"], manifest["ids"], self.array.shape, folder)

    def _load(self, rows: np.ndarray, device: torch.device) -> Tensor:
        """In float16, on ``device``; on the way to a GPU from memory that it reads by itself."""
        if len(rows) and not 0 <= rows[0] <= rows[-1] < len(self):
            raise IndexError(f"rows run from 0 to {len(self) - 1}, got {rows[0]} to {rows[-1]}")
        values = torch.empty((len(rows), *self.shape[1:]), dtype=torch.float16, pin_memory=device.type == "cuda")
        np.take(self.array, rows, axis=0, out=values.numpy(), mode="clip")
        return values.to(device, non_blocking=True)


def contents_key(model_key: str, files: Sequence[Path]) -> str:
    """A key from what encodes and from the bytes of every file, in order.

    >>> len(contents_key("CLIP", [write_image(folder / "a.png")]))
    64
    """
    digest = hashlib.sha256(model_key.encode())
    for file in files:
        digest.update(hashlib.blake2b(file.read_bytes(), digest_size=16).digest())
    return digest.hexdigest()


def begin_store(folder: Path, key: str, ids: Sequence[str], shape: tuple[int, ...], advice: str = "") -> int:
    """How many images :func:`build_store` still has to encode; for a new store the disk space is taken now.

    Raises:
        WriteError: the disk has no room for it. ResourceError: ``advice`` is given, and no spare room would be left.

    >>> begin_store(folder / "store", "key", ["a", "b"], (3,))
    2
    """
    wanted, partial = {"key": key, "shape": list(shape), "ids": list(ids)}, _partial(folder)
    if _manifest(folder, wanted):
        return 0
    begun = _manifest(partial, wanted)
    if begun is None:
        shutil.rmtree(partial, ignore_errors=True)
        if advice:
            require_disk(folder, 2 * len(ids) * prod(shape), advice)
        partial.mkdir(parents=True)
        array = np.lib.format.open_memmap(partial / FEATURES, "w+", np.float16, (len(ids), *shape))
        if hasattr(os, "posix_fallocate"):  # a disk that ran full under a memory map would kill the process
            try:
                with (partial / FEATURES).open("r+b") as stream:
                    os.posix_fallocate(stream.fileno(), 0, array.offset + array.nbytes)
            except OSError as error:
                raise WriteError(f"{stream.name} could not be written: {error.strerror}: {ADVICE}") from error
        begun = {**wanted, "done": 0}
        write_json(begun, partial / MANIFEST, indent=None)
    return len(ids) - begun["done"]


def build_store(
    folder: Path, key: str, ids: Sequence[str], shape: tuple[int, ...], encode: Encode, description: str = "encoding"
) -> FeatureStore:
    """The store of ``ids`` under ``key`` in ``folder``: opened where it is finished and current, else built.

    Args:
        key: names model, preprocessing and image contents; another key is another store.
        shape: of the features of one image, (D,) or (T, D).
        encode: gives the features of one slice of ``ids``, batch by batch, (B, *shape).

    >>> build_store(folder / "store", "key", ["a", "b"], (3,), lambda rows: [torch.ones(2, 3)])[["b"]]
    tensor([[1., 1., 1.]])
    """
    state, partial = PartialState(), _partial(folder)
    pending = broadcast(begin_store(folder, key, ids, shape) if state.is_main_process else None)
    if pending:
        array, manifest = np.load(partial / FEATURES, mmap_mode="r+"), _manifest(partial)
        step = SHARD_SIZE * state.num_processes  # a shard for each, side by side
        with progress(total=len(ids), desc=description, unit="image", disable=not state.is_main_process) as bar:
            for start in range(len(ids) - pending, len(ids), step):
                bar.update(start - bar.n)
                shard = range(len(ids))[start : start + step]
                _write_shard(array, shard[state.process_index * SHARD_SIZE :][:SHARD_SIZE], encode, bar)
                state.wait_for_everyone()
                if state.is_main_process and shard.stop < len(ids):
                    write_json({**manifest, "done": shard.stop}, partial / MANIFEST, indent=None)
        del array
        if state.is_main_process:
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(partial, folder)  # finished; what follows only says so
            write_json({**manifest, "done": len(ids)}, folder / MANIFEST, indent=None)
        state.wait_for_everyone()
    return FeatureStore(folder)


def _write_shard(array: np.memmap, rows: range, encode: Encode, bar: Any) -> None:
    at = rows.start
    for features in encode(slice(rows.start, rows.stop)) if rows else ():
        values = features.detach().half().cpu().numpy()
        if not np.isfinite(values).all():
            raise StoreError(f"features of the images at rows {at}:{at + len(values)} are not finite in float16")
        array[at : at + len(values)] = values
        at += len(values)
        bar.update(len(values))
    if at != rows.stop:
        raise StoreError(f"the encoder gave {at - rows.start} features for {len(rows)} images")
    array.flush()


def _partial(folder: Path) -> Path:
    return folder.with_name(folder.name + ".partial")


def _manifest(folder: Path, wanted: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """What a store says of itself; None where it is not what is wanted, or missing, damaged or cut off."""
    try:
        said = json.loads((folder / MANIFEST).read_text())
        array = np.load(folder / FEATURES, mmap_mode="r")  # to read: opening to write would grow a cut-off file
        whole = array.shape == (len(said["ids"]), *said["shape"]) and array.dtype == np.float16
        return said if whole and said["done"] >= 0 and said | (wanted or {}) == said else None
    except (OSError, ValueError, EOFError, KeyError, TypeError):
        return None
