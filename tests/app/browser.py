"""A headless Chromium, and servers to look at."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.remote.webdriver import WebDriver
from small_studies import ROOT

PHONE, DESK = (390, 1400), (1280, 1400)


def require_chromium() -> None:
    """Skips the test where there is no browser."""
    if lacking := [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]:
        pytest.skip(f"no {' and no '.join(lacking)}: apt install chromium chromium-driver")


@contextmanager
def chromium(name: str, size: tuple[int, int] = DESK, dark: bool = False) -> Iterator[WebDriver]:
    """A window of ``size`` pixels, as a person sees it who prefers ``dark`` pages; ends as test-artifacts/<name>.png"""
    require_chromium()
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
    try:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size[0] < 500}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        driver.set_page_load_timeout(120)
        yield driver
    finally:
        (ROOT / "test-artifacts").mkdir(exist_ok=True)
        driver.save_screenshot(str(ROOT / "test-artifacts" / f"{name}.png"))
        driver.quit()


@contextmanager
def served(root: Path, *command: str) -> Iterator[int]:
    """A server started in ``root`` by ``python -m …`` with ``{port}`` filled in; the port it answers on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    line = [sys.executable, "-m", *(part.format(port=port) for part in command)]
    with tempfile.TemporaryDirectory() as home, (Path(home) / "server.log").open("w+") as log:
        homes = {"JUPYTER_CONFIG_DIR": f"{home}/config", "JUPYTER_DATA_DIR": f"{home}/data"}
        server = subprocess.Popen(
            line, cwd=root, env=os.environ | homes, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            for _ in range(240):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert server.poll() is None, Path(log.name).read_text()[-2000:]
                time.sleep(0.5)
            yield port
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
