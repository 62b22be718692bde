"""A headless Chromium, servers to look at, and what every page must have."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.remote.webdriver import WebDriver
from small_studies import ROOT

ARTIFACTS = ROOT / "test-artifacts"
PHONE, DESK = (390, 1400), (1280, 1400)


def require_chromium() -> None:
    """Skips the test where there is no browser."""
    lacking = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    if lacking:
        pytest.skip(f"no {' and no '.join(lacking)}: apt install chromium chromium-driver")


@contextmanager
def chromium(size: tuple[int, int] = DESK, dark: bool = False) -> Iterator[WebDriver]:
    """A browser window of ``size`` pixels; ``dark``: as a person who prefers dark pages has it."""
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
    except BaseException:
        screenshot(driver, "failed")
        raise
    finally:
        driver.quit()


def screenshot(driver: WebDriver, name: str) -> None:
    """Keeps what is seen as ``test-artifacts/<name>.png``."""
    ARTIFACTS.mkdir(exist_ok=True)
    driver.save_screenshot(str(ARTIFACTS / f"{name}.png"))


@contextmanager
def served(root: Path, *command: str) -> Iterator[int]:
    """A server started in ``root`` by ``python -m …`` with ``{port}`` filled in; the port it answers on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    line = [sys.executable, "-m", *(part.format(port=port) for part in command)]
    home = {"JUPYTER_CONFIG_DIR": str(root / ".jupyter"), "JUPYTER_DATA_DIR": str(root / ".jupyter-data")}
    with (root / "server.log").open("w") as log:
        server = subprocess.Popen(
            line, cwd=root, env=os.environ | home, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        _wait_for(server, port, root / "server.log")
        yield port
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _wait_for(server: subprocess.Popen, port: int, log: Path) -> None:
    for _ in range(240):
        if server.poll() is not None:
            raise RuntimeError(f"the server ended: {log.read_text()[-2000:]}")
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.5)
    raise RuntimeError(f"no server on port {port}: {log.read_text()[-2000:]}")
