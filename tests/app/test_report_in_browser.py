"""The report of a study, in a real browser: on a phone and on a desk, light and dark."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from browser import DESK, PHONE, chromium


@pytest.fixture(scope="module")
def report(small_project) -> Path:
    """The small study's report."""
    home = small_project / "results" / "garments"
    command = [sys.executable, "-m", "cirlib.app.report_page"]
    done = subprocess.run(command, cwd=small_project, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "Open  results/garments/report.html"
    return home / "report.html"


@pytest.mark.slow
@pytest.mark.parametrize(("size", "dark"), [(PHONE, False), (DESK, True)], ids=["phone", "desk"])
def test_the_report_is_whole_and_readable(report, size, dark):
    with chromium(f"report-{size[0]}", size, dark) as driver:
        driver.get(report.as_uri())
        ask = driver.execute_script
        assert ask("return document.documentElement.scrollWidth <= window.innerWidth")  # nothing to scroll sideways
        ask("document.querySelectorAll('img').forEach(image => image.loading = 'eager')")
        ask("return Promise.all([...document.images].map(image => image.decode()))")
        images = ask("return [...document.images].map(i => [i.naturalWidth, i.alt.length, i.src.slice(0, 5)])")
        assert len(images) > 15
        assert all(width > 100 and alt > 20 and source == "data:" for width, alt, source in images)
        requests = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
        asked = [r["params"]["request"]["url"] for r in requests if r["method"] == "Network.requestWillBeSent"]
        assert {address.split(":")[0] for address in asked} <= {"file", "data"}
        assert driver.get_log("browser") == []
        links = ask("return [...document.querySelectorAll('a[href^=html]')].map(a => a.getAttribute('href'))")
        assert links == [f"html/{path.stem}.html" for path in sorted((report.parent / "notebooks").iterdir())]
        assert all((report.parent / link).is_file() for link in links)
        colours = ask("const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]")
        paper, ink = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in colours)
        assert abs(paper - ink) > 500 and (paper < ink) == dark
