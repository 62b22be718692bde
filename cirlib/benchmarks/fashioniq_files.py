"""FashionIQ's published files: captions, splits, lists of image links. Each is known by its SHA-256."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
from tqdm.auto import tqdm

from cirlib.study.files import write_bytes

from .base import BenchmarkError
from .downloads import fetch_bytes

PUBLISHED = Path(__file__).with_name("fashioniq_files.json")
REPLACEMENTS = Path("image_url") / "broken_links"  # pictures that the data set ships for links that are dead


def fetch_annotations(root: Path, fetch: Callable[[str], bytes] = fetch_bytes) -> None:
    """Puts FashionIQ's files into ``root``; what is there is left as it is.

    Raises:
        BenchmarkError: a file cannot be had, or one that is fetched or there is not the published one.
    """
    wanted = [entry for entry in published() if not (root / entry[0]).exists()]
    for name, url, sha256 in tqdm(wanted, desc="fetching annotations", unit="file", disable=not wanted):
        try:
            content = fetch(url)
        except httpx.HTTPError as error:
            raise BenchmarkError(f"{error}. Put FashionIQ's {name} into {root} yourself, or try again.") from error
        found = hashlib.sha256(content).hexdigest()
        if found != sha256:
            raise BenchmarkError(f"{url} has the SHA-256 {found}, the published file has {sha256}: it has changed.")
        write_bytes(content, root / name)


def changed_files(root: Path) -> list[str]:
    """The names of the files in ``root`` that differ from the published ones of these names."""
    present = [(name, root / name, sha256) for name, _, sha256 in published() if (root / name).is_file()]
    return [name for name, path, sha256 in present if hashlib.sha256(path.read_bytes()).hexdigest() != sha256]


def published() -> Iterator[tuple[str, str, str]]:
    """Of every published file: its name under the benchmark's root, where it is, its SHA-256."""
    for source in json.loads(PUBLISHED.read_text()).values():
        for name, sha256 in source["files"].items():
            yield name, source["base"] + name, sha256


def read_links(root: Path) -> dict[str, list[str]]:
    """Image id → its links, from ``image_url/asin2url.*.txt`` (id, white space, link; one a line).

    Raises:
        BenchmarkError: there is no such file, or a line is no id and link.
    """
    files = sorted((root / "image_url").glob("asin2url.*.txt"))
    if not files:
        raise BenchmarkError(f"No file {root / 'image_url'}/asin2url.*.txt: expected FashionIQ's lists of image links.")
    links: dict[str, list[str]] = {}
    for file in files:
        for number, line in enumerate(file.read_text().splitlines(), start=1):
            if not line.strip():
                continue
            parts = line.split()
            if len(parts) != 2 or not parts[1].startswith(("http://", "https://")):
                raise BenchmarkError(f"{file}, line {number}: expected an image id and its link, found {line[:80]!r}.")
            known = links.setdefault(parts[0], [])
            if parts[1] not in known:
                known.append(parts[1])
    return links
