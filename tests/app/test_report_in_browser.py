"""The report of a study, in a real browser: on a phone and on a desk, light and dark."""

import base64
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
        ask("return Promise.all([...document.images].map(image => image.decode()))")
        images = ask("return [...document.images].map(i => [i.naturalWidth, i.alt.length, i.src.slice(0, 5)])")
        assert len(images) > 15
        assert ask("return document.querySelectorAll('header .found li').length") == 3
        main = "const table = document.querySelector('#results .wide'); "
        assert ask(main + "return table.scrollWidth <= table.clientWidth")  # nor in the main table
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


@pytest.mark.slow
def test_printed_every_table_is_whole_and_the_page_is_light(report):
    with chromium("report-printed", (718, 1000), dark=True) as driver:  # the width of A4 between the margins
        driver.get(report.as_uri())
        pdf = base64.b64decode(driver.print_page())
        assert pdf.startswith(b"%PDF") and pdf.count(b"/Type /Page\n") > 5
        scheme = {"name": "prefers-color-scheme", "value": "dark"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": [scheme]})
        cut = "return [...document.querySelectorAll('.wide')].filter(t => t.scrollWidth > t.clientWidth).length"
        assert driver.execute_script(cut) == 0
        assert driver.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
