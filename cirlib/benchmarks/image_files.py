"""Image ids to files: an image's id is its file's name without extension."""

import os
from collections.abc import Iterable
from pathlib import Path

EXTENSIONS = (".jpg", ".png", ".jpeg", ".webp")


def scan_images(folder: Path) -> dict[str, Path]:
    """Every image under a folder, at any depth: file name without extension → file.

    Extensions count in any case. Of files of one name the least deep wins, then the extension that comes first in
    `EXTENSIONS`. Links that lead nowhere are left out.

    >>> scan_images(folder)
    {}
    """
    found: dict[str, tuple[tuple[int, int, str], Path]] = {}
    for where, _, files in os.walk(folder):
        for file in files:
            stem, extension = os.path.splitext(file)
            path = os.path.join(where, file)
            if (kind := extension.lower()) not in EXTENSIONS or (os.path.islink(path) and not os.path.exists(path)):
                continue
            rank = (where.count(os.sep), EXTENSIONS.index(kind), path)
            if stem not in found or rank < found[stem][0]:
                found[stem] = (rank, Path(path))
    return {stem: path for stem, (_, path) in found.items()}


def locate(gallery: Iterable[str], folder: Path) -> dict[str, Path | str]:
    """Each id of a gallery → its file under `folder`, or the reason why there is none.

    >>> locate(["a"], Path("nowhere"))
    {'a': 'no folder nowhere'}
    """
    reason = f"no file under {folder.name}/ has this name" if folder.is_dir() else f"no folder {folder}"
    files = scan_images(folder)
    return {image: files.get(image, reason) for image in gallery}
