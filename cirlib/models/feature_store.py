"""Features of images on disk: memory-mapped float16 plus ids, written in shards, finished by one rename.

Several processes (:mod:`cirlib.study.processes`) share the shards out; what they write is what one would have written.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor
from tqdm.auto import tqdm

from cirlib.study.errors import StudyError, WriteError
from cirlib.study.files import ADVICE, write_json
from cirlib.study.processes import broadcast, shard

FEATURES, MANIFEST, PROGRESS = "features.npy", "store.json", "progress.json"
SHARD_SIZE = 1024  # images


class StoreError(StudyError, RuntimeError):
    """A feature store is missing, cut off, or lacks an image."""


class FeatureStore:
    """Read access to the features of a fixed list of images.

    ``store[ids]`` gives float32 features (B, D) or (B, T, D) in the order asked for; ``store.array`` is the
    memory map itself, ``store.rows(ids)`` the rows in it.

    Raises:
        StoreError: the folder holds no finished store, or its file is shorter than it says.
    """

    def __init__(self, folder: Path) -> None:
        manifest = _read_manifest(folder)
        if manifest is None:
            raise StoreError(f"{folder} holds no finished feature store: run the data preparation stage")
        self.folder = folder
        self.key: str = manifest["key"]
        self.ids: list[str] = manifest["ids"]
        self.array: np.ndarray = np.load(folder / FEATURES, mmap_mode="r")
        self.shape: tuple[int, ...] = self.array.shape
        self._row = {image: row for row, image in enumerate(self.ids)}
        self._fetcher = ThreadPoolExecutor(1)
        self._ahead: deque[tuple[np.ndarray, Future[Tensor]]] = deque(maxlen=2)  # of the batch at work, and the next

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, image: str) -> bool:
        return image in self._row

    def rows(self, ids: Sequence[str]) -> np.ndarray:
        """Rows (B,) int64 of ``ids``; StoreError names the first one that is absent."""
        return rows_of(self._row, ids, str(self.folder))

    def prefetch(self, rows: np.ndarray, device: torch.device) -> None:
        """Fetches ``rows`` (B,) to ``device`` in the background, for a :meth:`read` soon to come."""
        wanted = np.unique(rows)  # sorted: the memory map is read front to back
        self._ahead.append((wanted, self._fetcher.submit(self._fetch, wanted, device)))

    def read(self, rows: np.ndarray, device: torch.device) -> Tensor:
        """Features (B, *shape) float32 of ``rows``, on ``device``."""
        for wanted, fetched in self._ahead:
            at = np.searchsorted(wanted[:-1], rows)
            if len(wanted) and np.array_equal(wanted[at], rows):
                values = fetched.result()
                break
        else:
            wanted, at = np.unique(rows, return_inverse=True)
            values = self._fetch(wanted, device)
        return values[torch.from_numpy(at).to(values.device)].float()

    def _fetch(self, rows: np.ndarray, device: torch.device) -> Tensor:
        """Features (B, *shape) float16 of sorted ``rows``; on their way to a GPU from memory it reads by itself."""
        if len(rows) and not 0 <= rows[0] <= rows[-1] < len(self):
            raise IndexError(f"rows run from 0 to {len(self) - 1}, got {rows[0]} to {rows[-1]}")
        values = torch.empty((len(rows), *self.shape[1:]), dtype=torch.float16, pin_memory=device.type == "cuda")
        np.take(self.array, rows, axis=0, out=values.numpy(), mode="clip")
        return values.to(device, non_blocking=True)

    def __getitem__(self, ids: Sequence[str]) -> Tensor:
        return torch.from_numpy(self.array[self.rows(ids)].astype(np.float32))


def rows_of(row: Mapping[str, int], ids: Sequence[str], where: str) -> np.ndarray:
    """The row of each id, (B,) int64; StoreError names the first one that is absent."""
    try:
        return np.fromiter((row[image] for image in ids), np.int64, len(ids))
    except KeyError as error:
        raise StoreError(f"image {error.args[0]!r} has no features in {where}") from None


def num_pending(folder: Path, key: str, ids: Sequence[str], shape: tuple[int, ...]) -> int:
    """How many images :func:`build_store` would still have to encode."""
    wanted = _manifest(key, ids, shape)
    if _is_of(folder, wanted):
        return 0
    shards = _Shards(_partial(folder), wanted, SHARD_SIZE)
    return _images(shards.open() if shards.are_whole() else shards.all())


def is_allocated(folder: Path, key: str, ids: Sequence[str], shape: tuple[int, ...]) -> bool:
    """Whether an interrupted :func:`build_store` has the disk space of the whole already."""
    return _Shards(_partial(folder), _manifest(key, ids, shape), SHARD_SIZE).are_whole()


def build_store(
    folder: Path,
    key: str,
    ids: Sequence[str],
    shape: tuple[int, ...],
    encode: Callable[[slice], Iterable[Tensor]],
    *,
    shard_size: int = SHARD_SIZE,
    description: str = "encoding",
) -> FeatureStore:
    """The store of ``ids`` under ``key`` in ``folder``: opened where it is finished and current, else built.

    Args:
        key: names model, preprocessing and image contents; another key is another store.
        shape: features of one image, (D,) or (T, D).
        encode: gives the features of one slice of ``ids``, batch by batch, (B, *shape).
        shard_size: images between two points from which an interrupted run goes on.
    """
    wanted = _manifest(key, ids, shape)
    if broadcast(_is_of(folder, wanted) and _is_undamaged(folder) if PartialState().is_main_process else None):
        if PartialState().is_main_process:
            _clear_marks(folder)
        return FeatureStore(folder)
    shards = _Shards(_partial(folder), wanted, shard_size)
    if PartialState().is_main_process and not shards.are_whole():
        shards.begin()
    PartialState().wait_for_everyone()
    todo = shards.open()
    PartialState().wait_for_everyone()  # else the first to finish a shard would change the others' shares
    own = shard(todo)
    array = np.load(shards.folder / FEATURES, mmap_mode="r+")
    done = len(ids) - _images(todo)
    with tqdm(
        total=done + _images(own),
        initial=done,
        desc=description,
        unit="image",
        disable=not PartialState().is_main_process,
    ) as bar:
        for rows in own:
            _write_shard(array, rows, encode, bar)
            array.flush()
            shards.close(rows)
    del array
    PartialState().wait_for_everyone()
    if PartialState().is_main_process:
        _finish(shards.folder, folder, wanted)
    PartialState().wait_for_everyone()
    return FeatureStore(folder)


class _Shards:
    """A store under way: its array, what it is of, and a mark beside it for every shard that is written."""

    def __init__(self, folder: Path, wanted: Mapping[str, Any], size: int) -> None:
        self.folder, self.wanted, self.size = folder, {"shard_size": size, **wanted}, size

    def all(self) -> list[slice]:
        """Every shard, as rows of the store."""
        count = len(self.wanted["ids"])
        return [slice(start, min(start + self.size, count)) for start in range(0, count, self.size)]

    def open(self) -> list[slice]:
        """The shards that are still to be written."""
        return [rows for rows in self.all() if not self._mark(rows).is_file()]

    def are_whole(self) -> bool:
        """Whether an interrupted run of the same store left them."""
        return _read_json(self.folder / PROGRESS) == self.wanted and _is_whole(self.folder, self.wanted)

    def begin(self) -> None:
        """Afresh, with room for every row."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        _allocate(self.folder / FEATURES, (len(self.wanted["ids"]), *self.wanted["shape"]))
        write_json(self.wanted, self.folder / PROGRESS, indent=None)

    def close(self, rows: slice) -> None:
        """Notes that ``rows`` are on the disk."""
        self._mark(rows).touch()

    def _mark(self, rows: slice) -> Path:
        return self.folder / f"{rows.start}.written"


def _manifest(key: str, ids: Sequence[str], shape: tuple[int, ...]) -> dict[str, Any]:
    """What a store says of itself."""
    return {"key": key, "shape": list(shape), "ids": list(ids)}


def _partial(folder: Path) -> Path:
    return folder.with_name(folder.name + ".partial")


def _images(shards: Sequence[slice]) -> int:
    return sum(rows.stop - rows.start for rows in shards)


def contents_key(model_key: str, files: Sequence[Path]) -> str:
    """A key from what encodes and from the bytes of every file, in order."""
    digest = hashlib.sha256(model_key.encode())
    for file in files:
        digest.update(hashlib.blake2b(file.read_bytes(), digest_size=16).digest())
    return digest.hexdigest()


def _write_shard(array: np.memmap, rows: slice, encode: Callable[[slice], Iterable[Tensor]], bar: tqdm) -> None:
    at = rows.start
    for features in encode(rows):
        values = features.detach().half().cpu().numpy()
        if not np.isfinite(values).all():
            raise StoreError(f"features of the images at rows {at}:{at + len(values)} are not finite in float16")
        array[at : at + len(values)] = values
        at += len(values)
        bar.update(len(values))
    if at != rows.stop:
        raise StoreError(f"the encoder gave {at - rows.start} features for {rows.stop - rows.start} images")


def _allocate(file: Path, shape: tuple[int, ...]) -> None:
    """Writes a new array whose bytes are all on the disk: one that ran full under a memory map would kill the process.

    Raises:
        WriteError: there is no room for it.
    """
    array = np.lib.format.open_memmap(file, "w+", np.float16, shape)
    if hasattr(os, "posix_fallocate"):
        try:
            with file.open("r+b") as stream:
                os.posix_fallocate(stream.fileno(), 0, array.offset + array.nbytes)
        except OSError as error:
            raise WriteError(f"{file} could not be written: {error.strerror}: {ADVICE}") from error


def _finish(partial: Path, folder: Path, manifest: dict) -> None:
    write_json({**manifest, "digest": _digest(partial / FEATURES)}, partial / MANIFEST, indent=None)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    _clear_marks(folder)  # last: a run killed before only has to rename again


def _clear_marks(folder: Path) -> None:
    for left in (folder / PROGRESS, *folder.glob("*.written")):
        left.unlink(missing_ok=True)


def _read_manifest(folder: Path) -> dict | None:
    """The manifest of a finished store whose file has the size it says, else None."""
    manifest = _read_json(folder / MANIFEST)
    return manifest if manifest is not None and _is_whole(folder, manifest) else None


def _is_of(folder: Path, wanted: Mapping[str, Any]) -> bool:
    """Whether a finished store says of itself what is ``wanted``."""
    manifest = _read_manifest(folder)
    return manifest is not None and {name: manifest.get(name) for name in wanted} == wanted


def _is_undamaged(folder: Path) -> bool:
    """Whether the features of a finished store are those that were written."""
    if _read_json(folder / MANIFEST).get("digest") == _digest(folder / FEATURES):
        return True
    print(f"{folder / FEATURES} is not what was written: encoding again", flush=True)
    return False


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "blake2b").hexdigest()


def _is_whole(folder: Path, manifest: Mapping[str, Any]) -> bool:
    """Whether the features file has the size ``manifest`` says; opened to read, as opening to write would grow it."""
    try:
        array = np.load(folder / FEATURES, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return False
    return array.shape == (len(manifest["ids"]), *manifest["shape"]) and array.dtype == np.float16


def _read_json(path: Path) -> dict | None:
    """What a store, finished or under way, says of itself; None where there is no such file or it is damaged."""
    try:
        said = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return said if isinstance(said, dict) and {"key", "shape", "ids"} <= said.keys() else None
