"""Images from the web, against a real local server that misbehaves in every way servers of old links do."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest
from misbehaving_server import picture

from cirlib.benchmarks.downloads import DeadLinks, Politeness, fetch_bytes, fetch_images

QUICK = Politeness(connections=8, per_host=4, tries=3, pause=0.02, timeout=0.5, deadline=1.5, max_bytes=100_000)


def fetch(server, folder: Path, *paths: str):
    links = {path.replace("/", "-"): [f"{server.url}/{path}"] for path in paths}
    return fetch_images(links, folder / "images", DeadLinks(folder / "dead_links.csv"), QUICK)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "images").iterdir())


def test_what_is_a_picture_is_kept_whole_under_its_own_extension(server, tmp_path):
    outcomes = fetch(server, tmp_path, "good", "png", "moved")
    assert {outcome.kind for outcome in outcomes.values()} == {"there"}
    assert names(tmp_path) == ["good.jpg", "moved.jpg", "png.png"]
    assert (tmp_path / "images" / "good.jpg").read_bytes() == picture()


@pytest.mark.parametrize(
    ("path", "kind", "reason", "asked"),
    [
        ("gone", "dead", "404", 1),
        ("circle", "dead", "circles", 1),
        ("failing", "unreachable", "500", 3),
        ("stalling", "unreachable", "no answer in time", 3),
        ("dripping", "unreachable", "not whole after 1.5 s", 3),
        ("truncated", "unreachable", "", 3),
        ("html", "broken", "not an image", 1),
        ("half", "broken", "cannot be decoded", 1),
        ("gif", "broken", "is GIF", 1),
        ("pixel", "broken", "placeholder of 1 x 1", 1),
        ("huge", "broken", "larger than 0.1 MB", 1),
    ],
)
def test_every_misbehaviour_has_its_outcome_and_leaves_no_file(server, tmp_path, path, kind, reason, asked):
    (outcome,) = fetch(server, tmp_path, path).values()
    assert (outcome.kind, reason in outcome.reason) == (kind, True), outcome
    assert server.asked[f"/{path}"] == asked
    assert names(tmp_path) == []


def test_a_server_that_recovers_is_asked_again(server, tmp_path):
    assert fetch(server, tmp_path, "recovering")["recovering"].kind == "there"
    assert server.asked["/recovering"] == 3


def test_links_are_tried_in_order_until_one_gives_a_picture(server, tmp_path):
    links = {"a": [f"{server.url}/{path}" for path in ("gone", "html", "good", "png")], "b": []}
    outcomes = fetch_images(links, tmp_path, DeadLinks(tmp_path / "dead.csv"), QUICK)
    assert outcomes["a"].kind == "there" and server.asked["/png"] == 0
    assert (outcomes["b"].kind, outcomes["b"].reason) == ("dead", "no link is known")


def test_of_several_bad_links_the_one_worth_asking_again_decides(server, tmp_path):
    links = {"a": [f"{server.url}/failing", f"{server.url}/gone"]}
    dead = DeadLinks(tmp_path / "dead.csv")
    assert fetch_images(links, tmp_path, dead, QUICK)["a"].kind == "unreachable"
    assert "a" not in dead.reasons


def test_dead_links_are_not_asked_again_but_unreachable_ones_are(server, tmp_path):
    first = fetch(server, tmp_path, "gone", "html", "failing")
    assert fetch(server, tmp_path, "gone", "html", "failing") == first
    assert (server.asked["/gone"], server.asked["/html"], server.asked["/failing"]) == (1, 1, 6)
    (tmp_path / "dead_links.csv").unlink()
    fetch(server, tmp_path, "gone")
    assert server.asked["/gone"] == 2


def test_a_line_of_dead_links_cut_off_by_a_kill_is_passed_over(tmp_path):
    path = tmp_path / "dead.csv"
    path.write_text("image,kind,reason\na,dead,404\nb,bro")
    assert list(DeadLinks(path).reasons) == ["a"]


def test_a_host_never_sees_more_than_its_share_of_connections(server, tmp_path):
    fetch(server, tmp_path, *(f"good/{i}" for i in range(40)))
    assert 1 < server.most_at_once <= QUICK.per_host


def test_a_host_that_is_not_there_is_unreachable(tmp_path):
    outcomes = fetch_images({"a": ["http://127.0.0.1:9/x.jpg"]}, tmp_path, DeadLinks(tmp_path / "d.csv"), QUICK)
    assert outcomes["a"].kind == "unreachable"


@pytest.mark.parametrize("link", ["ftp://127.0.0.1/x.jpg", "http://[::1/x.jpg", "not a link"])
def test_a_link_that_is_none_is_dead(tmp_path, link):
    outcomes = fetch_images({"a": [link]}, tmp_path, DeadLinks(tmp_path / "d.csv"), QUICK)
    assert outcomes["a"].kind == "dead"


def test_a_killed_fetch_goes_on_with_what_is_still_missing(server, tmp_path):
    script = f"""
import sys
from pathlib import Path
from cirlib.benchmarks.downloads import DeadLinks, Politeness, fetch_images
folder = Path({str(tmp_path)!r})
there = {{path.stem for path in (folder / "images").glob("*.jpg")}}
links = {{f"i{{n}}": [f"{server.url}/good/{{n}}"] for n in range(200) if f"i{{n}}" not in there}}
links["gone"] = ["{server.url}/gone"]
fetch_images(links, folder / "images", DeadLinks(folder / "dead.csv"), Politeness(connections=2, per_host=2))
"""
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    while len(list((tmp_path / "images").glob("*.jpg"))) < 20:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {path.name for path in (tmp_path / "images").glob("*.jpg")}
    assert 20 <= len(before) < 200
    asked = Counter(server.asked)
    assert subprocess.run([sys.executable, "-c", script], stderr=subprocess.DEVNULL).returncode == 0
    assert len(list((tmp_path / "images").glob("*.jpg"))) == 200
    again = [path for path in asked if server.asked[path] > asked[path] and f"i{path.split('/')[-1]}.jpg" in before]
    assert again == []


def test_bytes_are_fetched_or_refused_with_the_address(server):
    assert fetch_bytes(f"{server.url}/good", QUICK) == picture()
    with pytest.raises(httpx.HTTPError, match=r"/gone could not be fetched: the server answers 404"):
        fetch_bytes(f"{server.url}/gone", QUICK)
    with pytest.raises(httpx.HTTPError, match="500"):
        fetch_bytes(f"{server.url}/failing", QUICK)
    assert server.asked["/failing"] == 3
