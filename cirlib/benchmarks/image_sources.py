"""Images out of what a user has: a folder, an archive, a parquet file, or a data set on the Hugging Face hub."""

import hashlib
import shutil
import subprocess
import tarfile
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from cirlib.study.errors import StudyError
from cirlib.study.files import write_bytes
from cirlib.study.pictures import EXTENSIONS
from cirlib.study.progress import progress

from .base import BenchmarkError
from .downloads import DownloadOutcome, RequestLimits, check_picture
from .image_files import Candidate, ImageNames, best_of, find_images, several

HUB = "hf://datasets/"
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".rar", ".parquet")
BSDTAR = "`sudo apt install libarchive-tools`, or unpack it yourself and name the folder"
MAX_BYTES = RequestLimits.max_bytes  # of one image
THERE = DownloadOutcome("there")


def take_images(source: str | Path, wanted: Iterable[str], folder: Path) -> dict[str, DownloadOutcome]:
    """Puts the wanted images of ``source`` into ``folder``, by the rule of :mod:`cirlib.benchmarks.image_files`.

    Image files of a folder are linked, those of archives and parquet files are written. Nothing else is taken out of
    an archive, and no path in it is followed.

    ``source``: a folder (with images, archives or parquet files at any depth), one archive (.zip, .tar, .tar.gz …; .rar
    where the machine has bsdtar) or parquet file, or ``hf://datasets/<owner>/<name>[@<revision>]``. Returns what became
    of the images that it has.

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
            _take_from(archive, [image for image in left if outcomes.get(image) != THERE], folder, outcomes)
        except BenchmarkError as error:
            if not path.is_dir():
                raise
            print(f"{error} It is passed over.")
    if left and all(outcome.kind == "refused" for outcome in outcomes.values()):
        first = next((f" ({image!r}: {outcome.reason})" for image, outcome in outcomes.items()), "")
        raise BenchmarkError(
            f"{source} has none of the {len(left)} images that are wanted, as {next(iter(left))!r}: expected a folder, "
            f"an archive ({', '.join(ARCHIVES)}) or {HUB}<owner>/<name> with files of these names "
            f"({', '.join(EXTENSIONS)}){first}."
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
    found, _ = find_images({image: image for image in wanted}, source)
    for image, file in found.items():
        if isinstance(file, Path):
            link = folder / f"{image}{file.suffix.lower()}"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(file.resolve())
    return {i: DownloadOutcome("refused", file) if isinstance(file, str) else THERE for i, file in found.items()}


def _take_from(archive: Path, wanted: Iterable[str], folder: Path, outcomes: dict[str, DownloadOutcome]) -> None:
    """Writes the wanted images, each as soon as a file answers to it; one found to have several is taken back."""
    name, pictures = archive.name.lower(), defaultdict(list)
    special = {".zip": _of_zip, ".rar": _of_rar, ".parquet": _of_parquet}
    read = special.get(Path(name).suffix, _of_tar)
    try:
        for (image, *rank), member, content in read(archive, ImageNames({image: image for image in wanted})):
            outcome, ending = check_picture(content, MAX_BYTES)
            if outcome != THERE:
                outcomes.setdefault(image, outcome)
                continue
            pictures[image].append(Candidate(tuple(rank), member, hashlib.sha256(content).digest()))
            best = best_of(pictures[image])
            alike = len({one.content for one in best}) == 1
            if alike and best != pictures[image][-1:]:
                continue
            for other in EXTENSIONS:
                (folder / f"{image}{other}").unlink(missing_ok=True)
            if alike:
                write_bytes(content, folder / f"{image}{ending}")
            outcomes[image] = THERE if alike else DownloadOutcome("refused", several(best))
    except StudyError:
        raise
    except Exception as error:  # a damaged archive makes its reader raise nearly anything
        raise BenchmarkError(f"{archive} cannot be read: {error}.") from error


Found = Iterator[tuple[tuple[str, bool, bool], str, bytes]]  # what `ImageNames.find` says, the member, its content


def _of_zip(archive: Path, names: ImageNames) -> Found:
    """Of a picture too large only the beginning is read."""
    with zipfile.ZipFile(archive) as opened:
        for member in progress(opened.infolist(), archive.name, unit="file"):
            if not member.is_dir() and (match := names.find(member.filename)):
                with opened.open(member) as content:
                    yield match, member.filename, content.read(MAX_BYTES + 1)


def _of_tar(archive: Path, names: ImageNames) -> Found:
    with tarfile.open(archive) as opened:
        yield from _members(opened, archive.name, names)


def _members(opened: tarfile.TarFile, title: str, names: ImageNames) -> Found:
    for member in progress(opened, title, unit="file"):
        if member.isfile() and (match := names.find(member.name)):
            yield match, member.name, opened.extractfile(member).read(MAX_BYTES + 1)


def _of_rar(archive: Path, names: ImageNames) -> Found:
    """Through libarchive's bsdtar, which writes the archive's members as a tar into a pipe: no file is unpacked."""
    tool = shutil.which("bsdtar")
    if tool is None:
        raise BenchmarkError(f"{archive} is a .rar, which bsdtar reads and this machine lacks: {BSDTAR}.")
    command = [tool, "-cf", "-", f"@{archive}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as opened:
                yield from _members(opened, archive.name, names)
        except tarfile.TarError:  # of an empty pipe; bsdtar says why
            pass
        process.stdout.read()
        said = process.stderr.read().decode(errors="replace").strip().splitlines()
    if process.returncode:
        raise ValueError(said[0] if said else "bsdtar failed")


def _of_parquet(archive: Path, names: ImageNames) -> Found:
    """Rows with one image (bytes, with or without the path of the file) and, in one column or that path, its id."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def columns(*kinds) -> list[str]:
        return [f.name for f in table.schema_arrow if any(is_kind(f.type) for is_kind in kinds)]

    with pq.ParquetFile(archive) as table, progress(None, archive.name, table.metadata.num_rows, unit="row") as bar:
        images = columns(pa.types.is_binary, pa.types.is_large_binary, pa.types.is_struct)
        others = columns(pa.types.is_string, pa.types.is_large_string, pa.types.is_integer)
        if len(images) != 1:
            raise BenchmarkError(f"{archive}: expected one column of images, found {', '.join(images) or 'none'}.")
        for batch in table.iter_batches(64, columns=others + images):
            bar.update(batch.num_rows)
            for row in batch.to_pylist():
                cell = row.pop(images[0])
                content, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
                cells = [str(cell) for cell in (path, *row.values()) if cell is not None]
                found = {match[0]: match for match in map(names.find, cells) if match}
                if len(found) > 1:
                    raise BenchmarkError(f"{archive}: a row names {' and '.join(sorted(found))}, expected one image.")
                if found and content:
                    yield *found.values(), cells[0], content
