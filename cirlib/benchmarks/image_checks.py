"""Looks at image files: can each be decoded, and which ones are the same picture?"""

from __future__ import annotations

import hashlib
import io
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from tqdm.auto import tqdm

from cirlib.study.pictures import to_rgb

# Two pictures are near duplicates when at most 8 of the 256 bits of their difference hashes (dHash: is a
# pixel brighter than its left neighbour?) differ, and no cell of their 4 x 4 colour thumbnails differs by
# more than 12 of 255 levels. The hash alone would call one garment in two colours a duplicate.
MAX_HASH_BITS = 8
MAX_COLOUR_LEVELS = 12
MIN_BRIGHTER = 2  # levels; compression noise on a plain background stays below
HASH_SIDE = 16
COLOUR_SIDE = 4
CHUNK = 64  # rows compared with the whole gallery at a time


@dataclass(frozen=True, slots=True)
class ImageCheck:
    """One file: why it cannot be used (None: it can), its content digest, its perceptual hash.

    `bits`: 4 x uint64. `colours`: 48 levels, the 4 x 4 RGB thumbnail. Both empty where `problem` is set.
    """

    problem: str | None
    digest: bytes = b""
    bits: bytes = b""
    colours: bytes = b""


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Repeated pictures of one gallery.

    `exact_groups`: sets of files with the same bytes; `exact_images`: the images in them.
    `near_pairs`, `near_images`: pairs of different files that look alike, and the images in such pairs
    (of each exact group only the first is compared).
    `examples`: some of the pairs, exact ones first.
    """

    exact_groups: int
    exact_images: int
    near_pairs: int
    near_images: int
    examples: tuple[tuple[str, str], ...]


def check_image(path: Path) -> ImageCheck:
    """Decodes a file completely and hashes it. Never raises for a bad file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        return ImageCheck(f"cannot be read: {error.strerror or error}")
    if not data:
        return ImageCheck("the file is empty")
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.draft("RGB", (64, 64))  # JPEG: decodes at reduced size, but reads all of the data
            picture = to_rgb(image)
    except UnidentifiedImageError:
        return ImageCheck("the content is not an image of a known format")
    except Exception as error:  # Pillow's decoders raise many types on damaged data
        return ImageCheck(f"cannot be decoded: {error}")
    return ImageCheck(None, hashlib.sha256(data).digest(), _difference_hash(picture), _thumbnail(picture))


def check_images(files: Mapping[str, Path], *, workers: int | None = None) -> dict[str, ImageCheck]:
    """`check_image` on every file, in threads (as many as cores unless given), with a progress bar."""
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        checks = pool.map(check_image, files.values())
        return dict(zip(files, tqdm(checks, total=len(files), desc="decode images"), strict=True))


def find_duplicates(gallery: Sequence[str], checks: Mapping[str, ImageCheck], *, max_examples: int = 20) -> Duplicates:
    """Exact and near duplicates among the usable images of a gallery. Memory O(64 x gallery)."""
    groups: dict[bytes, list[str]] = defaultdict(list)
    for image in gallery:
        if image in checks and checks[image].problem is None:
            groups[checks[image].digest].append(image)
    repeated = [group for group in groups.values() if len(group) > 1]
    firsts = [group[0] for group in groups.values()]
    near_pairs, near_images, near_examples = _near(firsts, checks, max_examples)
    exact_examples = [(group[0], other) for group in repeated for other in group[1:]]
    return Duplicates(
        exact_groups=len(repeated),
        exact_images=sum(map(len, repeated)),
        near_pairs=near_pairs,
        near_images=near_images,
        examples=tuple((exact_examples + near_examples)[:max_examples]),
    )


def _near(
    images: Sequence[str], checks: Mapping[str, ImageCheck], max_examples: int
) -> tuple[int, int, list[tuple[str, str]]]:
    """(pairs, images in a pair, example pairs), each pair counted once."""
    bits = np.array([np.frombuffer(checks[i].bits, np.uint64) for i in images]).reshape(-1, 4)
    colours = np.array([np.frombuffer(checks[i].colours, np.uint8) for i in images], np.int16)
    paired = np.zeros(len(images), bool)
    pairs = 0
    examples: list[tuple[str, str]] = []
    for start in range(0, len(images), CHUNK):
        a, b = _near_chunk(bits, colours, start)
        paired[a] = paired[b] = True
        pairs += len(a)
        room = max(0, max_examples - len(examples))
        examples += [(images[i], images[j]) for i, j in zip(a[:room], b[:room], strict=True)]
    return pairs, int(paired.sum()), examples


def _near_chunk(
    bits: NDArray[np.uint64], colours: NDArray[np.int16], start: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The near pairs (a, b), a < b, with a in the chunk that begins at `start`."""
    block = bits[start : start + CHUNK, :1]  # (chunk, 1): a quarter of the bits decides nearly all pairs
    a, b = np.nonzero(np.bitwise_count(block ^ bits[start:, 0]) <= MAX_HASH_BITS)
    a, b = a[a < b] + start, b[a < b] + start
    close = np.bitwise_count(bits[a] ^ bits[b]).sum(1) <= MAX_HASH_BITS
    a, b = a[close], b[close]
    same_colour = np.abs(colours[a] - colours[b]).max(1, initial=0) <= MAX_COLOUR_LEVELS
    return a[same_colour], b[same_colour]


def _difference_hash(picture: Image.Image) -> bytes:
    """256 bits, dealt so that each of the four words covers the whole picture."""
    size = (HASH_SIDE + 1, HASH_SIDE)
    grey = np.asarray(picture.convert("L").resize(size, Image.Resampling.BOX), np.int16)
    brighter = np.diff(grey, axis=1) > MIN_BRIGHTER  # (16, 16)
    return np.packbits(brighter.reshape(-1, 4).T).tobytes()


def _thumbnail(picture: Image.Image) -> bytes:
    return picture.resize((COLOUR_SIDE, COLOUR_SIDE), Image.Resampling.BOX).tobytes()
