"""Images from the web, against a real local server that misbehaves in every way servers of old links do."""

import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from made_pictures import picture
from werkzeug import Request, Response

from cirlib.benchmarks.downloads import DownloadOutcome, RequestLimits, fetch_images
from cirlib.study.errors import WriteError

QUICK = RequestLimits(connections=8, per_host=4, tries=3, pause=0.02, timeout=0.5, deadline=1.5, max_bytes=100_000)


def cut_off(request: Request) -> Response:
    """A whole answer by its length, but the connection ends before."""
    response = Response(iter([picture()[:100]]), content_type="image/jpeg")
    response.headers["Content-Length"] = str(len(picture()))
    return response


def stalling(request: Request) -> Response:
    def parts():
        yield picture()[:50]
        time.sleep(2)

    return Response(parts())


def dripping(request: Request) -> Response:
    return Response(time.sleep(0.1) or b"x" for _ in range(40))


def redirect(place: str) -> Callable[[Request], Response]:
    return lambda request: Response(status=302, headers={"Location": place})


ANSWERS: dict[str, bytes | int | Callable[[Request], Response]] = {
    "good": picture(),
    "png": picture("PNG"),
    "moved": redirect("/good"),
    "gone": 404,
    "circle": redirect("/circle"),
    "failing": 500,
    "stalling": stalling,
    "dripping": dripping,
    "truncated": cut_off,
    "html": b"<html><body>Not found</body></html>",
    "half": picture()[:200],  # whole as an answer, half as a picture
    "ppm": picture("PPM"),
    "pixel": picture("JPEG", (1, 1)),
    "huge": b"x" * 300_000,
}


@pytest.fixture
def server(httpserver):
    """A server that behaves as the path says."""
    for path, answer in ANSWERS.items():
        handler = httpserver.expect_request(f"/{path}")
        if callable(answer):
            handler.respond_with_handler(answer)
        elif isinstance(answer, int):
            handler.respond_with_data(b"", status=answer)
        else:
            handler.respond_with_data(answer, content_type="image/jpeg")
    return httpserver


def asked(server) -> Counter[str]:
    return Counter(request.path for request, _ in server.log)


def fetch(server, folder: Path, *paths: str) -> dict[str, DownloadOutcome]:
    links = {path.replace("/", "-"): [server.url_for(f"/{path}")] for path in paths}
    return fetch_images(links, folder / "images", folder / "dead_links.csv", QUICK)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "images").iterdir())


def test_what_is_a_picture_is_kept_whole_under_its_own_extension(server, tmp_path):
    outcomes = fetch(server, tmp_path, "good", "png", "moved")
    assert {outcome.kind for outcome in outcomes.values()} == {"there"}
    assert names(tmp_path) == ["good.jpg", "moved.jpg", "png.png"]
    assert (tmp_path / "images" / "good.jpg").read_bytes() == picture()


@pytest.mark.parametrize(
    ("path", "kind", "reason", "times"),
    [
        ("gone", "dead", "404", 1),
        ("circle", "dead", "redirects", 6),
        ("failing", "unreachable", "500", 3),
        ("stalling", "unreachable", "timed out", 3),
        ("dripping", "unreachable", "not whole after 1.5 s", 3),
        ("truncated", "unreachable", "", 3),
        ("html", "broken", "not of a format", 1),
        ("half", "broken", "cannot be decoded", 1),
        ("ppm", "broken", "not of a format that is read (JPEG", 1),
        ("pixel", "broken", "placeholder of 1 x 1", 1),
        ("huge", "broken", "larger than 0.1 MB", 1),
    ],
)
def test_every_misbehaviour_has_its_outcome_and_leaves_no_file(server, tmp_path, path, kind, reason, times):
    (outcome,) = fetch(server, tmp_path, path).values()
    assert (outcome.kind, reason in outcome.reason) == (kind, True), outcome
    assert asked(server)[f"/{path}"] == times
    assert names(tmp_path) == []


def test_a_server_that_recovers_is_asked_again(httpserver, tmp_path):
    for answer in ({"status": 503}, {"status": 429}, {"response_data": picture()}):
        httpserver.expect_ordered_request("/recovering").respond_with_data(**answer)
    assert fetch(httpserver, tmp_path, "recovering")["recovering"].kind == "there"


def test_links_are_tried_in_order_and_of_bad_ones_that_worth_asking_again_decides(server, tmp_path):
    paths = {"a": ("gone", "html", "good", "png"), "b": (), "c": ("failing", "gone")}
    links = {image: [server.url_for(f"/{path}") for path in of_image] for image, of_image in paths.items()}
    outcomes = fetch_images(links, tmp_path, tmp_path / "dead.csv", QUICK)
    assert outcomes["a"].kind == "there" and asked(server)["/png"] == 0
    assert (outcomes["b"], outcomes["c"].kind) == (("dead", "no link is known"), "unreachable")
    assert (tmp_path / "dead.csv").read_text() == "image,kind,reason\nb,dead,no link is known\n"


def test_dead_links_are_not_asked_again_but_unreachable_ones_are(server, tmp_path):
    first = fetch(server, tmp_path, "gone", "html", "failing")
    assert fetch(server, tmp_path, "gone", "html", "failing") == first
    assert asked(server) == {"/gone": 1, "/html": 1, "/failing": 6}
    (tmp_path / "dead_links.csv").unlink()
    fetch(server, tmp_path, "gone")
    assert asked(server)["/gone"] == 2


def test_a_line_of_dead_links_cut_off_by_a_kill_is_passed_over(server, tmp_path):
    (tmp_path / "dead_links.csv").write_text("image,kind,reason\ngone,dead,404\ngood,bro")
    outcomes = fetch(server, tmp_path, "gone", "good")
    assert outcomes == {"gone": ("dead", "404"), "good": ("there", "")}
    assert asked(server) == {"/good": 1}


def test_a_host_never_sees_more_than_its_share_of_connections(httpserver, tmp_path):
    working, most = [], []

    def answer(request: Request) -> Response:
        working.append(request)
        most.append(len(working))
        time.sleep(0.02)
        working.pop()
        return Response(picture())

    httpserver.expect_request(re.compile("/good/.*")).respond_with_handler(answer)
    fetch(httpserver, tmp_path, *(f"good/{i}" for i in range(40)))
    assert len(most) == 40 and 1 < max(most) <= QUICK.per_host


@pytest.mark.parametrize(
    ("link", "kind"),
    [
        ("http://127.0.0.1:9/x.jpg", "unreachable"),  # nobody listens
        ("ftp://127.0.0.1/x.jpg", "dead"),
        ("http://[::1/x.jpg", "dead"),
        ("not a link", "dead"),
    ],
)
def test_a_link_that_leads_nowhere_is_unreachable_and_one_that_is_none_is_dead(tmp_path, link, kind):
    assert fetch_images({"a": [link]}, tmp_path, tmp_path / "dead.csv", QUICK)["a"].kind == kind


def test_a_disk_that_takes_no_image_ends_the_fetch(server, tmp_path, monkeypatch):
    def full(content: bytes, path: Path) -> None:
        raise WriteError(f"{path} could not be written")

    monkeypatch.setattr("cirlib.benchmarks.downloads.write_bytes", full)
    with pytest.raises(WriteError):
        fetch(server, tmp_path, "good", "png")


def test_a_killed_fetch_goes_on_with_what_is_still_missing(httpserver, tmp_path):
    httpserver.expect_request(re.compile("/good/.*")).respond_with_handler(
        lambda request: time.sleep(0.02) or Response(picture())
    )
    script = f"""
import sys
from pathlib import Path
from cirlib.benchmarks.downloads import RequestLimits, fetch_images
folder = Path({str(tmp_path)!r})
there = {{path.stem for path in (folder / "images").glob("*.jpg")}}
links = {{f"i{{n}}": ["{httpserver.url_for("/good")}/" + str(n)] for n in range(200) if f"i{{n}}" not in there}}
fetch_images(links, folder / "images", folder / "dead.csv", RequestLimits(connections=2, per_host=2))
"""
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    while len(list((tmp_path / "images").glob("*.jpg"))) < 20:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {path.stem for path in (tmp_path / "images").glob("*.jpg")}
    assert 20 <= len(before) < 200
    httpserver.clear_log()
    assert subprocess.run([sys.executable, "-c", script], stderr=subprocess.DEVNULL).returncode == 0
    assert len(list((tmp_path / "images").glob("*.jpg"))) == 200
    assert not {"i" + path.split("/")[-1] for path in asked(httpserver)} & before
