"""Looks at image files: can each be decoded, and which ones are the same picture?"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import faiss
import imagehash
import numpy as np
from PIL import Image

from cirlib.study.pictures import open_picture, to_rgb
from cirlib.study.progress import progress

# Two pictures are near duplicates when at most 4 of the 64 bits of their perceptual hashes (pHash) differ, and no
# cell of their 4 x 4 colour thumbnails differs by more than 12 of 255 levels. The hash sees no colour: alone it
# would call one garment in two colours a duplicate.
MAX_HASH_BITS = 4
MAX_COLOUR_LEVELS = 12
COLOUR_SIDE = 4


@dataclass(frozen=True, slots=True)
class ImageCheck:
    """One file; all but `problem` is empty where that is set."""

    problem: str | None  # why it cannot be used
    digest: bytes = b""  # SHA-256 of its content
    bits: bytes = b""  # 8 bytes, the perceptual hash
    colours: bytes = b""  # 48 levels, the 4 x 4 RGB thumbnail


def check_images(files: Mapping[str, Path]) -> dict[str, ImageCheck]:
    """Decodes every file completely and hashes it, with a progress bar. Never raises for a bad file.

    >>> check_images({"a": write_image(folder / "a.jpg")})["a"].problem is None
    True
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        checks = pool.map(_check_image, files.values())
        return dict(zip(files, progress(checks, "decode images", total=len(files)), strict=True))


def count_duplicates(gallery: Iterable[str], checks: Mapping[str, ImageCheck]) -> dict[str, int]:
    """How many usable images of a gallery are the same picture.

    Returns:
        exact_groups: sets of files with the same bytes; exact_images: the images in them; near_pairs: pairs of
        other files that look alike (of an exact group only the first is compared); near_images: the images in them.

    >>> one, two = (write_image(folder / name, seed=1) for name in ("a.png", "b.jpg"))
    >>> count_duplicates("ab", check_images({"a": one, "b": two}))
    {'exact_groups': 0, 'exact_images': 0, 'near_pairs': 1, 'near_images': 2}
    """
    groups: dict[bytes, list[ImageCheck]] = defaultdict(list)
    for image in gallery:
        if image in checks and checks[image].problem is None:
            groups[checks[image].digest].append(checks[image])
    repeated = [len(group) for group in groups.values() if len(group) > 1]
    near = _near_pairs([group[0] for group in groups.values()])
    return {
        "exact_groups": len(repeated),
        "exact_images": sum(repeated),
        "near_pairs": len(near),
        "near_images": len(np.unique(near)),
    }


def _check_image(path: Path) -> ImageCheck:
    try:
        digest = hashlib.sha256(path.read_bytes()).digest()
        with open_picture(path) as image:
            image.draft("RGB", (64, 64))  # JPEG: decodes at reduced size, but reads all of the data
            picture = to_rgb(image)
    except Exception as error:  # Pillow's decoders raise many types on damaged data
        return ImageCheck(f"cannot be decoded: {error}")
    bits = np.packbits(imagehash.phash(picture).hash).tobytes()
    colours = picture.resize((COLOUR_SIDE, COLOUR_SIDE), Image.Resampling.BOX).tobytes()
    return ImageCheck(None, digest, bits, colours)


def _near_pairs(checks: list[ImageCheck]) -> np.ndarray:
    """The rows (a, b), a < b, of pictures that look alike, (P, 2)."""
    bits = np.frombuffer(b"".join(c.bits for c in checks), np.uint8).reshape(-1, 8)
    colours = np.frombuffer(b"".join(c.colours for c in checks), np.uint8).reshape(-1, 48).astype(np.int16)
    index = faiss.IndexBinaryFlat(64)
    index.add(bits)
    ends, _, b = index.range_search(bits, MAX_HASH_BITS + 1)  # nearer than
    a = np.repeat(np.arange(len(bits)), np.diff(ends.astype(int)))
    a, b = a[a < b], b[a < b]
    close = np.abs(colours[a] - colours[b]).max(1, initial=0) <= MAX_COLOUR_LEVELS
    return np.stack([a[close], b[close]], axis=1)
