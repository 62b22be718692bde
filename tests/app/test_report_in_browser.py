"""The report of a study, in a real browser: on a phone and on a desk, light and dark."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from browser import DESK, PHONE, chromium, screenshot

pytestmark = [pytest.mark.slow]


@pytest.fixture(scope="module")
def report(small_project) -> Path:
    """The small study's report; the notebooks stand where the pipeline puts them."""
    shutil.copytree(
        small_project / "executed", small_project / "results" / "garments" / "notebooks", dirs_exist_ok=True
    )
    done = subprocess.run(
        [sys.executable, "-m", "cirlib.app.report_page"], cwd=small_project, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "Open  results/garments/report.html"
    return small_project / "results" / "garments" / "report.html"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_the_report_is_whole_and_readable(report, size, dark):
    name = f"report-{'phone' if size == PHONE else 'desk'}-{'dark' if dark else 'light'}"
    with chromium(size, dark) as driver:
        driver.get(report.as_uri())
        screenshot(driver, name)
        ask = driver.execute_script
        assert ask("return document.documentElement.scrollWidth <= window.innerWidth")  # nothing to scroll sideways
        ask("document.querySelectorAll('img').forEach(image => image.loading = 'eager')")
        ask("return Promise.all([...document.images].map(image => image.decode()))")
        images = ask(
            "return [...document.images].map(image => [image.naturalWidth, image.alt.length, image.src.slice(0, 5)])"
        )
        assert len(images) > 15
        assert [image for image in images if not (image[0] > 100 and image[1] > 20 and image[2] == "data:")] == []
        requests = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
        asked = [r["params"]["request"]["url"] for r in requests if r["method"] == "Network.requestWillBeSent"]
        assert {address.split(":")[0] for address in asked} <= {"file", "data"}
        assert driver.get_log("browser") == []
        paper, ink = ask("const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]")
        assert contrast(paper, ink) > 7 and (luminance(paper) < 0.1) == dark


def test_the_report_links_to_the_executed_notebooks(report):
    pages = sorted(path.name for path in (report.parent / "html").iterdir())
    assert pages == [f"{path.stem}.html" for path in sorted((report.parent / "notebooks").glob("*.ipynb"))]
    text = report.read_text()
    assert all(f'href="html/{page}"' in text for page in pages)


def luminance(colour: str) -> float:
    """Relative luminance of ``rgb(r, g, b)``, as WCAG 2 has it."""
    parts = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
