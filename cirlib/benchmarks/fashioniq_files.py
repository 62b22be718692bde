"""FashionIQ's published files: captions, splits, lists of image links. Each is known by its SHA-256."""

import json
from pathlib import Path

import pooch

from cirlib.study.files import write_bytes
from cirlib.study.progress import progress

from .base import BenchmarkError

PUBLISHED = Path(__file__).with_name("fashioniq_files.json")  # source → its address, and file → SHA-256
REPLACEMENTS = Path("image_url") / "broken_links"  # pictures that the data set ships for links that are dead


def fetch_annotations(root: Path) -> None:
    """Puts FashionIQ's files into ``root``; what is there is left as it is.

    Raises `BenchmarkError` where a file cannot be had, or what is fetched is not the published one.

    >>> fetch_annotations(Path("data/fashioniq/raw"))  # doctest: +SKIP
    """
    store = published_files(root)
    wanted = [name for name in store.registry if not (root / name).exists()]
    for name in progress(wanted, "fetching annotations", unit="file", disable=not wanted):
        try:
            fetched = store.fetch(name, downloader=pooch.HTTPDownloader(timeout=20))
            write_bytes(Path(fetched).read_bytes(), root / name)  # pooch's own is for its owner alone
        except (OSError, ValueError) as error:  # those of requests are OSErrors; ValueError: another checksum
            raise BenchmarkError(
                f"{store.get_url(name)} could not be fetched: {str(error).splitlines()[0]} "
                f"Put FashionIQ's {name} into {root} yourself, or try again."
            ) from error


def published_files(root: Path) -> pooch.Pooch:
    """Every published file (its name under the benchmark's root, its SHA-256, its address), kept in ``root``.

    >>> len(published_files(folder).registry)
    34
    """
    pooch.get_logger().setLevel("WARNING")
    sources = json.loads(PUBLISHED.read_text()).values()
    registry = {name: sha256 for source in sources for name, sha256 in source["files"].items()}
    urls = {name: source["base"] + name for source in sources for name in source["files"]}
    return pooch.create(path=root, base_url="", registry=registry, urls=urls, retry_if_failed=2)


def read_links(root: Path) -> dict[str, list[str]]:
    """Image id → its links, from ``image_url/asin2url.*.txt`` (id, white space, link; one a line).

    >>> (folder / "image_url").mkdir(); _ = (folder / "image_url/asin2url.hat.txt").write_text("a  http://x/1.jpg")
    >>> read_links(folder)
    {'a': ['http://x/1.jpg']}
    """
    files = sorted((root / "image_url").glob("asin2url.*.txt"))
    if not files:
        raise BenchmarkError(f"No file {root / 'image_url'}/asin2url.*.txt: expected FashionIQ's lists of image links.")
    links: dict[str, dict[str, None]] = {}
    for file in files:
        for line in filter(str.strip, file.read_text(encoding="utf-8-sig").splitlines()):
            image, *link = line.split()
            if len(link) != 1 or not link[0].startswith(("http://", "https://")):
                raise BenchmarkError(f"{file}: expected an image id and its link a line, found {line[:80]!r}.")
            links.setdefault(image, {})[link[0]] = None
    return {image: list(found) for image, found in links.items()}
