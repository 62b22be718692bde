"""Images out of what a user has: a folder, an archive, a parquet file, or a data set on the Hugging Face hub."""

import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from cirlib.study.errors import StudyError
from cirlib.study.progress import progress

from .base import BenchmarkError
from .downloads import DownloadOutcome, RequestLimits, save_picture
from .image_files import EXTENSIONS, scan_images

HUB = "hf://datasets/"
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".parquet")
MAX_BYTES = RequestLimits.max_bytes  # of one image


def take_images(source: str | Path, wanted: Iterable[str], folder: Path) -> dict[str, DownloadOutcome]:
    """Puts the wanted images of ``source`` into ``folder``, by file name without extension.

    Image files of a folder are linked, those of archives and parquet files are written. Nothing else is taken out of
    an archive, and no path in it is followed. Of several files of one name the first that is a picture counts.

    ``source``: a folder (with images, archives or parquet files at any depth), one archive (.zip, .tar, .tar.gz …) or
    parquet file, or ``hf://datasets/<owner>/<name>[@<revision>]``. Returns what became of the images that it has.

    Raises `BenchmarkError` where there is no such source, it is damaged, or it has none of the wanted images.

    >>> _ = write_image(folder / "mine" / "a.jpg")
    >>> list(take_images(folder / "mine", ["a", "b"], folder / "images"))
    ['a']
    """
    left = dict.fromkeys(wanted)
    path = _snapshot(str(source)) if str(source).startswith(HUB) else Path(source).expanduser()
    outcomes = _link(path, left, folder)
    for archive in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if not archive.is_file() or not archive.name.lower().endswith(ARCHIVES):
            continue
        try:
            _take_from(archive, left.keys() - outcomes.keys(), folder, outcomes)
        except BenchmarkError as error:
            if not path.is_dir():
                raise
            print(f"{error} It is passed over.")
    if left and not outcomes:
        raise BenchmarkError(
            f"{source} has none of the {len(left)} images that are wanted, as {next(iter(left))!r}: expected a folder, "
            f"an archive ({', '.join(ARCHIVES)}) or {HUB}<owner>/<name> with files of these names "
            f"({', '.join(EXTENSIONS)})."
        )
    return outcomes


def _snapshot(source: str) -> Path:
    """The local copy of a data set of the hub: fetched, or out of the cache."""
    from huggingface_hub import snapshot_download

    name, _, revision = source.removeprefix(HUB).partition("@")
    patterns = [f"*{ending}" for ending in (*EXTENSIONS, *ARCHIVES)]
    try:
        return Path(snapshot_download(name, repo_type="dataset", revision=revision or None, allow_patterns=patterns))
    except Exception as error:  # the hub's client raises many types
        raise BenchmarkError(f"{source} could not be had: {str(error).strip().splitlines()[0]}") from error


def _link(source: Path, wanted: Iterable[str], folder: Path) -> dict[str, DownloadOutcome]:
    folder.mkdir(parents=True, exist_ok=True)
    found = scan_images(source)
    there = [image for image in wanted if image in found]
    for image in there:
        link = folder / f"{image}{found[image].suffix.lower()}"
        link.unlink(missing_ok=True)
        link.symlink_to(found[image].resolve())
    return dict.fromkeys(there, DownloadOutcome("there"))


def _take_from(archive: Path, wanted: set[str], folder: Path, outcomes: dict[str, DownloadOutcome]) -> None:
    name = archive.name.lower()
    read = _of_zip if name.endswith(".zip") else _of_parquet if name.endswith(".parquet") else _of_tar
    try:
        for image, content in read(archive, wanted):
            if image not in outcomes or outcomes[image].kind != "there":
                outcomes[image] = save_picture(content, folder / image, MAX_BYTES)
    except StudyError:
        raise
    except Exception as error:  # a damaged archive makes its reader raise nearly anything
        raise BenchmarkError(f"{archive} cannot be read: {error}.") from error


def _of_zip(archive: Path, wanted: set[str]) -> Iterator[tuple[str, bytes]]:
    """The id and content of the wanted images, those that lie least deep first; of one too large only the beginning."""
    with zipfile.ZipFile(archive) as opened:
        for member in progress(sorted(opened.namelist(), key=lambda name: name.count("/")), archive.name, unit="file"):
            if (image := _image(member)) in wanted:
                with opened.open(member) as content:
                    yield image, content.read(MAX_BYTES + 1)


def _of_tar(archive: Path, wanted: set[str]) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(archive) as opened:
        for member in progress(opened, archive.name, unit="file"):
            if member.isfile() and (image := _image(member.name)) in wanted:
                yield image, opened.extractfile(member).read(MAX_BYTES + 1)


def _image(member: str) -> str | None:
    """The image id that a member's name says, None where it is no image."""
    path = PurePosixPath(member)
    return path.stem if path.suffix.lower() in EXTENSIONS and not member.endswith("/") else None


def _of_parquet(archive: Path, wanted: set[str]) -> Iterator[tuple[str, bytes]]:
    """Rows with one image (bytes, with or without the path of the file) and, in one column or that path, its id."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def columns(*kinds) -> list[str]:
        return [f.name for f in table.schema_arrow if any(is_kind(f.type) for is_kind in kinds)]

    with pq.ParquetFile(archive) as table, progress(None, archive.name, table.metadata.num_rows, unit="row") as bar:
        images = columns(pa.types.is_binary, pa.types.is_large_binary, pa.types.is_struct)
        names = columns(pa.types.is_string, pa.types.is_large_string, pa.types.is_integer)
        if len(images) != 1:
            raise BenchmarkError(f"{archive}: expected one column of images, found {', '.join(images) or 'none'}.")
        for batch in table.iter_batches(64, columns=names + images):
            bar.update(batch.num_rows)
            for row in batch.to_pylist():
                cell = row.pop(images[0])
                content, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
                found = _named(wanted, path, *row.values())
                if len(found) > 1:
                    raise BenchmarkError(f"{archive}: a row names {' and '.join(sorted(found))}, expected one image.")
                if found and content:
                    yield found.pop(), content


def _named(wanted: set[str], *cells: object) -> set[str]:
    """The wanted images that the cells name, by their id or as a file."""
    texts = [str(cell) for cell in cells if cell is not None]
    return {next((name for name in (text, PurePosixPath(text).stem) if name in wanted), "") for text in texts} - {""}
