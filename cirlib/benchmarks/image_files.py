"""Image ids to files: one rule for folders, archives and tables.

A file answers to an id that is its path, or the end of its path, with or without the ending: ``shoes/001.jpg`` to
``shoes/001.jpg``, ``shoes/001``, ``001.jpg`` and ``001``, of those that are wanted to the first. Where it is none of
them, case and Unicode's ways to write one letter do not matter. Of several files that answer to one id, those in a
folder above the others' count; what is left must be equal.
"""

import filecmp
import os
import stat
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

from cirlib.study.pictures import EXTENSIONS, NOT_READ


class Candidate(NamedTuple):
    """A file that answers to an id."""

    rank: tuple[bool, ...]  # it cannot be used, has the name in other letters, has it without its ending: least is best
    name: str  # its path, as a person is told it
    content: object = None  # what tells it from others: its file, or a digest
    problem: str | None = None  # why it cannot be used

    @property
    def folder(self) -> str:
        """Begins and ends with a slash."""
        return f"/{self.name}".rpartition("/")[0] + "/"


class ImageNames:
    """Which of the wanted images a file is; ``names``: image id → the name that its file has."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._exact, folded = {name: image for image, name in names.items()}, defaultdict(list)
        for name, image in self._exact.items():
            folded[_folded(name)].append(image)
        self._folded = {name: images[0] for name, images in folded.items() if len(images) == 1}
        self._ends = {name.rpartition("/")[2] for name in folded}

    def find(self, path: str) -> tuple[str, bool, bool] | None:
        """The image whose file ``path`` is, whether in other letters, and whether without the ending."""
        parts = path.replace("\\", "/").split("/")
        if self._ends.isdisjoint({end := _folded(parts[-1]), os.path.splitext(end)[0]}):
            return None  # as of nearly every file where few are wanted
        tails = ["/".join(parts[start:]) for start in range(len(parts))]
        for others, known in ((False, self._exact), (True, self._folded)):
            for tail in map(_folded, tails) if others else tails:
                for cut, name in enumerate((tail, os.path.splitext(tail)[0])):
                    if name in known:
                        return known[name], others, bool(cut)
        return None


def best_of(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Those of the best rank that are not in a folder below another's.

    >>> [one.name for one in best_of(Candidate((), name) for name in ("x/thumbs/a.jpg", "x/a.jpg"))]
    ['x/a.jpg']
    """
    ranked = sorted(candidates)
    best = [one for one in ranked if one.rank == ranked[0].rank]
    folders = {one.folder for one in best}
    return [one for one in best if not any(one.folder.startswith(f) and one.folder != f for f in folders)]


def several(candidates: Iterable[Candidate]) -> str:
    """Why an image that different files answer to has none of them.

    >>> several([Candidate((), "bags/1.jpg"), Candidate((), "shoes/1.jpg")])
    "2 files have this name, bags/1.jpg and shoes/1.jpg: keep one, or say in the id which, as in 'bags/1'"
    >>> several([Candidate((), "1.jpg"), Candidate((), "1.png")])[-7:]
    "'1.jpg'"
    """
    first, *others = names = sorted(one.name for one in candidates)
    advice = f"keep one, or say in the id which, as in {_own_name(first, others)!r}"
    return f"{len(names)} files have this name, {' and '.join(names[:2])}{', …' * (len(names) > 2)}: {advice}"


def _own_name(path: str, others: Iterable[str]) -> str:
    """The least of ``path`` that none of the others answers to."""
    parts = path.split("/")
    tails = ("/".join(parts[start:]) for start in reversed(range(len(parts))))
    names = (name for tail in tails for name in (os.path.splitext(tail)[0], tail))
    return next((name for name in names if not any(map(ImageNames({"": name}).find, others))), path)


def locate(names: Mapping[str, str], *folders: Path) -> dict[str, Path | str]:
    """Image id → the file under the folders that has the name given for it, or the reason why there is none.

    >>> locate({"7": "000000000007"}, Path("nowhere"))
    {'7': 'no folder nowhere'}
    """
    found, closed = find_images(names, *folders)
    there = [f"{folder.name}/" for folder in folders if os.path.isdir(folder)]
    reason = f"no file under {' or '.join(there)} has this name"
    reason += f", but {closed[0]} may not be opened" if closed else ""
    reason = reason if there else f"no folder {' or '.join(map(str, folders))}"
    return {image: found.get(image, reason) for image in names}


def find_images(names: Mapping[str, str], *folders: Path) -> tuple[dict[str, Path | str], list[str]]:
    """:func:`locate`'s answer for the images that files answer to, and the folders that may not be opened.

    >>> find_images({"a": "a"}, write_image(folder / "x/a.png").parent)[0]["a"].name
    'a.png'
    """
    wanted, found, closed = ImageNames(names), defaultdict(list), []
    for folder in folders:
        for path in walk(str(folder), closed):
            name = folder.name + path[len(str(folder)) :]
            if match := wanted.find(name):
                image, *rank = match
                problem = _problem(path)
                found[image].append(Candidate((problem is not None, *rank), name, path, problem))
        for image in names.keys() - found.keys():
            if candidates := _behind_links(folder, names[image]):
                found[image] = candidates
    return {image: _chosen(candidates) for image, candidates in found.items()}, closed


def walk(folder: str, closed: list[str]) -> Iterator[str]:
    """Every file and folder below ``folder``, each once, those behind links last; what may not be opened: ``closed``.

    Hidden ones are passed over, as are those that macOS adds to archives.

    >>> [Path(path).name for path in walk(str(write_image(folder / "a.png").parent), [])]
    ['a.png']
    """
    seen, folders, links = set(), deque([folder]), deque()
    while folders or links:
        here = (folders or links).popleft()
        if (real := os.path.realpath(here)) in seen or not os.path.isdir(real):
            continue
        seen.add(real)
        try:
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError:
            closed.append(here)
            continue
        for entry in (entry for entry in entries if not entry.name.startswith((".", "__MACOSX"))):
            yield entry.path
            if entry.is_symlink():
                links.append(entry.path)
            elif entry.is_dir():
                folders.append(entry.path)


def _behind_links(folder: Path, name: str) -> list[Candidate]:
    """Files that have this very path, in a folder that was walked under another name."""
    if "/" not in name or ".." in name.split("/"):
        return []
    paths = [str(folder / f"{name}{ending}") for ending in ("", *EXTENSIONS)]
    return [Candidate((), path, path) for path in paths if os.path.lexists(path) and not _problem(path)]


def _chosen(candidates: list[Candidate]) -> Path | str:
    first, *others = best = best_of(candidates)
    if first.problem:
        return f"{first.name} is there, but {first.problem}"
    path = first.content
    same = all(os.path.samefile(path, one.content) or filecmp.cmp(path, one.content, False) for one in others)
    return Path(path) if same else several(best)


def _problem(path: str) -> str | None:
    """Why the file cannot be used, as far as is seen without opening it."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return "is a link that leads nowhere"
    if not stat.S_ISREG(mode):
        return "is a folder" if stat.S_ISDIR(mode) else "is no file"
    if os.path.splitext(path)[1].lower() not in EXTENSIONS:
        return f"is {NOT_READ}"
    return None if os.access(path, os.R_OK) else f"may not be read by this user: chmod a+r {path}"


def _folded(name: str) -> str:
    return name.lower() if name.isascii() else normalize("NFC", normalize("NFC", name).casefold())
