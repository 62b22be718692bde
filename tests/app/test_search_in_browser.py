"""The search page in a real browser: from `make search`, and from 06_search in JupyterLab."""

from pathlib import Path

import pytest
from browser import DESK, PHONE, chromium, require_chromium, served
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.ui import WebDriverWait

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def site(small_project) -> str:
    require_chromium()
    with served(small_project, "cirlib.app.search_server", "--port={port}") as port:
        yield f"http://localhost:{port}/"


def hints(driver: WebDriver) -> list[str]:
    """Of every result, left and right: its rank and image."""
    return driver.execute_script("return [...document.querySelectorAll('.found a')].map(tile => tile.title)")


def wait_for(driver: WebDriver, script: str) -> None:
    WebDriverWait(driver, 240).until(lambda d: d.execute_script(f"return {script}"))


def type_edit(driver: WebDriver, text: str) -> list[str]:
    """Types an edit into the field that has the focus, and waits for its results; what they are."""
    driver.switch_to.active_element.send_keys(text, Keys.ENTER)
    wait_for(driver, f"document.querySelector('[name=text][value=\"{text}\"]') && document.readyState == 'complete'")
    return hints(driver)


def test_a_result_that_is_clicked_leaves_the_results_and_awaits_an_edit_and_back_goes_back(site):
    with chromium("search", DESK) as driver:
        driver.get(site)
        found = hints(driver)
        assert len(found) == 20 and "the target that the study knows" in driver.page_source
        driver.find_elements(By.CSS_SELECTOR, ".found a")[1].click()
        assert hints(driver) == found
        assert driver.switch_to.active_element.get_attribute("id") == "edit"
        image = found[1].split(", ")[1].split(":")[0]
        assert image in driver.find_element(By.ID, "shown").text
        again = type_edit(driver, "is blue and sleeveless")
        assert len(again) == 20 and again != found
        driver.back()
        assert hints(driver) == found
        assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_it_fits_a_dark_phone_and_says_why_by_keyboard_the_picture_first(site):
    with chromium("search-phone", PHONE, dark=True) as driver:
        driver.get(site)
        why = driver.find_elements(By.CSS_SELECTOR, "summary")[1]
        driver.execute_script("arguments[0].focus()", why)
        driver.switch_to.active_element.send_keys(Keys.ENTER)
        wait_for(driver, "document.querySelectorAll('details')[1].querySelector('img').naturalWidth > 0")
        shown = driver.find_elements(By.CSS_SELECTOR, "details")[1]
        assert [part.tag_name for part in shown.find_elements(By.CSS_SELECTOR, "img, li")][:3] == ["img", "img", "li"]
        assert "with the words alone" in shown.text
        assert driver.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
        paper = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert sum(map(int, paper[4:-1].split(","))) < 150


def test_an_upload_is_shrunk_before_it_is_sent_and_what_is_no_picture_is_refused_at_once(site, tmp_path):
    large, broken = tmp_path / "large.png", tmp_path / "broken.png"
    Image.effect_noise((3000, 3000), 90).save(large)
    broken.write_bytes(b"no picture")
    assert large.stat().st_size > 8 * 2**20
    with chromium("search-upload", DESK) as driver:
        driver.get(site)

        def drop(path: Path) -> None:
            driver.find_element(By.ID, "file").send_keys(str(path))

        drop(broken)
        wait_for(driver, "document.getElementById('said').textContent.startsWith('broken.png is not a picture')")
        drop(large)
        wait_for(driver, "document.body.textContent.includes('your picture')")
        assert len(hints(driver)) == 20
        assert driver.execute_script("return document.querySelector('#shown img').naturalWidth") > 0


def test_jupyterlab_runs_the_notebook_and_shows_the_page(small_project):
    options = ("--no-browser", "--port={port}", "--ServerApp.ip=127.0.0.1", "--allow-root", "--IdentityProvider.token=")
    with chromium("search-jupyterlab", DESK) as driver, served(small_project, "jupyterlab", *options) as port:
        driver.get(f"http://127.0.0.1:{port}/lab/tree/notebooks/06_search.ipynb")
        wait_for(driver, "document.querySelectorAll('.jp-Notebook .jp-CodeCell').length >= 4")
        WebDriverWait(driver, 120).until(lambda d: "| Idle" in d.find_element(By.ID, "jp-main-statusbar").text)
        driver.find_element(By.XPATH, "//*[contains(@class,'lm-MenuBar-itemLabel')][text()='Run']").click()
        driver.find_element(By.XPATH, "//*[contains(@class,'lm-Menu-itemLabel')][text()='Run All Cells']").click()
        wait_for(driver, "document.querySelector('.jp-OutputArea iframe')")
        driver.switch_to.frame(driver.find_element(By.CSS_SELECTOR, ".jp-OutputArea iframe"))
        wait_for(driver, "document.querySelectorAll('.found a').length == 20")
