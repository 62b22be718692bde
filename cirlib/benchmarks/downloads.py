"""Images from the web: many connections, few to one host, retried, checked, and never asked for twice.

Links of old data sets are dead, moved or answer with something else. Every image ends as one of: there, dead (the
server has none), broken (what it sends is no picture), unreachable (worth asking again).
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from threading import BoundedSemaphore, Lock
from typing import Literal

import httpx
from PIL import Image, UnidentifiedImageError
from tqdm.auto import tqdm

from cirlib.study.files import write_bytes

EXTENSION_OF = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}
MIN_SIDE = 8  # pixels; shops answer with a picture of one pixel where they have none
ASK_AGAIN = {408, 425, 429, 500, 502, 503, 504}  # statuses that may pass
USER_AGENT = "cirlib (a study of composed image retrieval)"

Kind = Literal["there", "dead", "broken", "unreachable"]
WORTH: tuple[Kind, ...] = ("dead", "broken", "unreachable")  # asking again, least first


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one image: ``there``, or why not."""

    kind: Kind
    reason: str = ""


@dataclass(frozen=True)
class Politeness:
    """How the servers are asked.

    Attributes:
        connections: at a time in all; per_host: at a time to one host.
        tries: requests for one link before it is given up; pause: seconds before the second, doubled each time.
        timeout: seconds without a byte; deadline: seconds for one whole image.
        max_bytes: a larger answer is cut off and refused.
    """

    connections: int = 32
    per_host: int = 8
    tries: int = 4
    pause: float = 1.0
    timeout: float = 20.0
    deadline: float = 120.0
    max_bytes: int = 20_000_000


class DeadLinks:
    """The images that are known to have no picture behind any of their links, in a CSV beside the images.

    They are not asked for again; deleting the file makes the next run ask.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._lock = path, Lock()
        self.reasons: dict[str, Outcome] = {}
        if path.is_file():
            with path.open(newline="") as stream:
                rows = [row for row in csv.reader(stream) if len(row) == 3][1:]  # a line cut off by a kill is left out
            self.reasons = {image: Outcome(kind, reason) for image, kind, reason in rows}  # type: ignore[arg-type]

    def add(self, image: str, outcome: Outcome) -> None:
        with self._lock:
            new = not self.path.is_file()
            with self.path.open("a", newline="") as stream:
                writer = csv.writer(stream, lineterminator="\n")
                if new:
                    writer.writerow(["image", "kind", "reason"])
                writer.writerow([image, outcome.kind, outcome.reason])
            self.reasons[image] = outcome


def fetch_images(
    links: Mapping[str, Sequence[str]], folder: Path, dead: DeadLinks, politeness: Politeness | None = None
) -> dict[str, Outcome]:
    """Fetches ``folder/<id>.jpg`` (``.png``, ``.webp``) for every id that ``dead`` does not list.

    A file appears whole or not at all. An interrupted call is repeated for what is still missing.

    Args:
        links: image id → its links, tried in order.

    Returns:
        What became of each.
    """
    politeness = politeness or Politeness()
    folder.mkdir(parents=True, exist_ok=True)
    outcomes = {image: dead.reasons[image] for image in links if image in dead.reasons}
    wanted = [image for image in links if image not in outcomes]
    names = {_host(url) for image in wanted for url in links[image]}
    hosts = {name: BoundedSemaphore(politeness.per_host) for name in names}
    with _client(politeness) as client, ThreadPoolExecutor(politeness.connections) as pool:
        jobs = {pool.submit(_fetch_one, client, hosts, links[image], folder / image, politeness): image
                for image in wanted}  # fmt: skip
        try:
            for job in tqdm(as_completed(jobs), total=len(jobs), desc="fetching images", unit="image"):
                image, outcome = jobs[job], job.result()
                outcomes[image] = outcome
                if outcome.kind in ("dead", "broken"):
                    dead.add(image, outcome)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return outcomes


def fetch_bytes(url: str, politeness: Politeness | None = None) -> bytes:
    """What ``url`` answers, asked politely.

    Raises:
        httpx.HTTPError: it could not be had; the sentence says why.
    """
    politeness = politeness or Politeness()
    with _client(politeness) as client:
        for last in _tries(politeness):
            try:
                return _download(client, url, politeness)
            except httpx.HTTPError as error:
                if last or not _may_pass(error):
                    raise httpx.HTTPError(f"{url} could not be fetched: {_reason(error)}") from error
    raise AssertionError("unreachable")


def _client(politeness: Politeness) -> httpx.Client:
    return httpx.Client(
        timeout=httpx.Timeout(politeness.timeout),
        limits=httpx.Limits(max_connections=politeness.connections),
        follow_redirects=True,
        max_redirects=5,
        headers={"User-Agent": USER_AGENT},
    )


def _fetch_one(
    client: httpx.Client, hosts: Mapping[str, BoundedSemaphore], urls: Sequence[str], stem: Path, politeness: Politeness
) -> Outcome:
    """The first link that gives a picture; else the outcome that is most worth another run."""
    outcomes: list[Outcome] = []
    for url in urls:
        outcomes.append(_follow(client, hosts, url, stem, politeness))
        if outcomes[-1].kind == "there":
            return outcomes[-1]
    return max(outcomes, key=lambda outcome: WORTH.index(outcome.kind), default=Outcome("dead", "no link is known"))


def _host(url: str) -> str:
    return url.partition("://")[2].partition("/")[0].lower()


def _follow(client, hosts, url: str, stem: Path, politeness: Politeness) -> Outcome:
    """One link, as often as politeness allows."""
    outcome = Outcome("unreachable")
    for _ in _tries(politeness):
        try:
            with hosts[_host(url)]:
                content = _download(client, url, politeness)
        except (httpx.TooManyRedirects, httpx.InvalidURL, httpx.UnsupportedProtocol, _TooLarge) as error:
            return Outcome("broken" if isinstance(error, _TooLarge) else "dead", _reason(error))
        except httpx.HTTPError as error:
            if not _may_pass(error):
                return Outcome("dead", _reason(error))
            outcome = Outcome("unreachable", _reason(error))
            continue
        return save_picture(content, stem)
    return outcome


def save_picture(content: bytes, stem: Path) -> Outcome:
    """Writes ``content`` to ``stem`` with the extension of what it is, if it is a whole picture."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.format not in EXTENSION_OF:
                return Outcome("broken", f"is {image.format}, not one of {', '.join(EXTENSION_OF)}")
            if min(image.size) < MIN_SIDE:
                return Outcome("broken", f"a placeholder of {image.width} x {image.height} pixels")
            extension = EXTENSION_OF[image.format]
            image.load()
    except UnidentifiedImageError:
        return Outcome("broken", "the answer is not an image")
    except Exception as error:  # Pillow's decoders raise many types on damaged data
        return Outcome("broken", f"cannot be decoded: {error}")
    write_bytes(content, stem.with_name(stem.name + extension))
    return Outcome("there")


class _TooLarge(httpx.HTTPError):
    pass


def _download(client: httpx.Client, url: str, politeness: Politeness) -> bytes:
    """The body of one answer.

    Raises:
        httpx.HTTPError: no answer, an error status, a body cut off, too large or too slow.
    """
    end = time.monotonic() + politeness.deadline
    content = bytearray()
    with client.stream("GET", url) as response:
        response.raise_for_status()
        for chunk in response.iter_bytes():
            content += chunk
            if len(content) > politeness.max_bytes:
                raise _TooLarge(f"larger than {politeness.max_bytes / 1e6:g} MB")
            if time.monotonic() > end:
                raise httpx.ReadTimeout(f"not whole after {politeness.deadline:g} s")
    return bytes(content)


def _tries(politeness: Politeness) -> Iterator[bool]:
    """As many turns as allowed, with growing pauses between; says of each whether it is the last."""
    for number in range(1, politeness.tries + 1):
        if number > 1:
            time.sleep(politeness.pause * 2 ** (number - 2))
        yield number == politeness.tries


def _may_pass(error: httpx.HTTPError) -> bool:
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code in ASK_AGAIN
    return not isinstance(error, httpx.TooManyRedirects | httpx.UnsupportedProtocol | _TooLarge)


def _reason(error: Exception) -> str:
    if isinstance(error, httpx.HTTPStatusError):
        return f"the server answers {error.response.status_code} {error.response.reason_phrase}".rstrip()
    if isinstance(error, httpx.TooManyRedirects):
        return "redirected in circles"
    if isinstance(error, httpx.TimeoutException) and not str(error).startswith("not whole"):
        return "no answer in time"
    return str(error) or type(error).__name__
