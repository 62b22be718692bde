"""Images from the web: many connections, few to one host, retried, checked, and never asked for twice.

Links of old data sets are dead, moved or answer with something else. Every image ends as one of: there, dead (the
server has none), broken (what it sends is no picture), unreachable (worth asking again).
"""

import csv
import io
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from threading import BoundedSemaphore
from typing import NamedTuple

import httpx
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from cirlib.study.files import write_bytes
from cirlib.study.pictures import FORMATS, open_picture
from cirlib.study.progress import progress

MIN_SIDE = 8  # pixels; shops answer with a picture of one pixel where they have none
TRANSIENT = {408, 425, 429, 500, 502, 503, 504}  # statuses that may pass
USER_AGENT = "cirlib (a study of composed image retrieval)"
WORTH = ("dead", "broken", "unreachable")  # asking again, least first


class DownloadOutcome(NamedTuple):
    """What became of one image: ``there``, or why not."""

    kind: str  # "there" or one of WORTH
    reason: str = ""


@dataclass(frozen=True)
class RequestLimits:
    """How the servers are asked."""

    connections: int = 32  # at a time in all
    per_host: int = 8  # at a time to one host
    tries: int = 4  # requests for one link before it is given up
    pause: float = 1.0  # seconds before the second request, doubled each time
    timeout: float = 20.0  # seconds without a byte
    deadline: float = 120.0  # seconds for one whole image
    max_bytes: int = 20_000_000  # a larger answer is cut off and refused


def fetch_images(
    links: Mapping[str, Sequence[str]], folder: Path, dead_links: Path, limits: RequestLimits | None = None
) -> dict[str, DownloadOutcome]:
    """Fetches ``folder/<id>.jpg`` (``.png`` …) for every id that ``dead_links`` does not list.

    A file appears whole or not at all. An interrupted call is repeated for what is still missing.

    ``links``: image id → its links, tried in order. ``dead_links``: a CSV (image, kind, reason) of the images that have
    no picture behind any link, to which new ones are added. They are not asked for again until the file is deleted.

    >>> fetch_images({"a": []}, folder / "images", folder / "dead_links.csv")["a"].reason
    'no link is known'
    """
    limits = limits or RequestLimits()
    folder.mkdir(parents=True, exist_ok=True)
    client = httpx.Client(
        timeout=limits.timeout,
        limits=httpx.Limits(max_connections=limits.connections),
        follow_redirects=True,
        max_redirects=5,
        headers={"User-Agent": USER_AGENT},
    )
    with (
        client,
        dead_links.open("a+", newline="", buffering=1) as listed,
        ThreadPoolExecutor(limits.connections) as pool,
    ):
        listed.seek(0)
        rows = [row for row in csv.reader(listed) if len(row) == 3]  # a line cut off by a kill is left out
        outcomes = {image: DownloadOutcome(kind, reason) for image, kind, reason in rows[1:] if image in links}
        wanted = [image for image in links if image not in outcomes]
        hosts = {_host(url): BoundedSemaphore(limits.per_host) for image in wanted for url in links[image]}
        writer = csv.writer(listed, lineterminator="\n")
        writer.writerows([] if rows else [("image", "kind", "reason")])
        jobs = {pool.submit(_fetch_image, client, hosts, limits, links[i], folder / i): i for i in wanted}
        try:
            for job in progress(as_completed(jobs), "fetching images", total=len(jobs), unit="image"):
                image = jobs[job]
                outcomes[image] = job.result()
                if outcomes[image].kind in ("dead", "broken"):
                    writer.writerow((image, *outcomes[image]))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return outcomes


def save_picture(content: bytes, stem: Path, max_bytes: float = math.inf) -> DownloadOutcome:
    """Writes ``content`` to ``stem`` with the extension of what it is, if it is a whole picture.

    >>> save_picture(b"<html>", folder / "a")
    DownloadOutcome(kind='broken', reason='...not of a format that is read (JPEG, ...): convert it, ...')
    """
    outcome, ending = check_picture(content, max_bytes)
    if outcome.kind == "there":
        write_bytes(content, stem.with_name(stem.name + ending))
    return outcome


def check_picture(content: bytes, max_bytes: float = math.inf) -> tuple[DownloadOutcome, str]:
    """Whether ``content`` is a whole picture, and the ending of a file with it.

    >>> check_picture(b"<html>")[0].kind
    'broken'
    """
    if len(content) > max_bytes:
        return DownloadOutcome("broken", f"larger than {max_bytes / 1e6:g} MB"), ""
    try:
        with open_picture(io.BytesIO(content)) as image:
            if min(image.size) < MIN_SIDE:
                return DownloadOutcome("broken", f"a placeholder of {image.width} x {image.height} pixels"), ""
            image.load()
            return DownloadOutcome("there"), FORMATS.get(image.format or "", FORMATS["JPEG"])[0]
    except Exception as error:  # Pillow's decoders raise many types on damaged data
        return DownloadOutcome("broken", f"cannot be decoded: {error}"), ""


def _host(url: str) -> str:
    return url.partition("://")[2].partition("/")[0].lower()


def _fetch_image(
    client: httpx.Client, hosts: Mapping[str, BoundedSemaphore], limits: RequestLimits, urls: Sequence[str], stem: Path
) -> DownloadOutcome:
    """The first link that gives a picture; else the outcome that is most worth another run."""
    stop, wait = stop_after_attempt(limits.tries), wait_exponential(multiplier=limits.pause)
    retrying = Retrying(stop=stop, wait=wait, retry=retry_if_exception(_is_transient), reraise=True)
    outcomes = []
    for url in urls:
        try:
            content = retrying(_download, client, hosts[_host(url)], limits, url)
            outcomes.append(save_picture(content, stem, limits.max_bytes))
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            outcomes.append(DownloadOutcome("unreachable" if _is_transient(error) else "dead", reason))
        if outcomes[-1].kind == "there":
            return outcomes[-1]
    outcomes = outcomes or [DownloadOutcome("dead", "no link is known")]
    return max(outcomes, key=lambda outcome: WORTH.index(outcome.kind))


def _download(client: httpx.Client, host: BoundedSemaphore, limits: RequestLimits, url: str) -> bytes:
    """What a link answers; of an answer too large only the beginning."""
    with host, client.stream("GET", url) as response:
        end, content = time.monotonic() + limits.deadline, b""
        response.raise_for_status()
        for chunk in response.iter_bytes():
            content += chunk
            if time.monotonic() > end:
                raise httpx.ReadTimeout(f"not whole after {limits.deadline:g} s")
            if len(content) > limits.max_bytes:
                break
    return content


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code in TRANSIENT
    lasting = httpx.TooManyRedirects | httpx.UnsupportedProtocol
    return isinstance(error, httpx.HTTPError) and not isinstance(error, lasting)
