"""Image ids to files: an image's id is its file's name without extension."""

import os
from collections.abc import Mapping
from pathlib import Path

EXTENSIONS = (".jpg", ".png", ".jpeg", ".webp")


def scan_images(*folders: Path) -> dict[str, Path]:
    """Every image under the folders, at any depth: file name without extension → file.

    Extensions count in any case. Of files of one name the least deep wins, then the extension that comes first in
    `EXTENSIONS`. Links that lead nowhere are left out.

    >>> scan_images(folder)
    {}
    """
    return {stem: Path(file) for stem, file in _by_stem(*folders).items()}


def _by_stem(*folders: Path) -> dict[str, str]:
    ranked = []
    for folder in folders:
        for where, _, names in os.walk(folder):
            depth = where.count(os.sep)
            for stem, kind in map(os.path.splitext, names):
                if kind.lower() in EXTENSIONS and os.path.exists(file := os.path.join(where, stem + kind)):
                    ranked.append((depth, EXTENSIONS.index(kind.lower()), file, stem))
    return {stem: file for *_, file, stem in sorted(ranked, reverse=True)}  # the last of a name stays


def locate(stems: Mapping[str, str], *folders: Path) -> dict[str, Path | str]:
    """Image id → the file under the folders that has the name given for it, or the reason why there is none.

    >>> locate({"7": "000000000007"}, Path("nowhere"))
    {'7': 'no folder nowhere'}
    """
    there = [f"{folder.name}/" for folder in folders if folder.is_dir()]
    reason = f"no file under {' or '.join(there)} has this name"
    reason = reason if there else f"no folder {' or '.join(map(str, folders))}"
    files = _by_stem(*folders)
    return {image: Path(files[stem]) if stem in files else reason for image, stem in stems.items()}
