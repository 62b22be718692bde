"""06_search in a real browser: in JupyterLab, and as a plain page served by Voilà."""

import pytest
from browser import DESK, PHONE, chromium, require_chromium, served
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.ui import WebDriverWait

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

EDIT, TILES = ".cir-page input[type=text]", ".cir-side .cir-tile"


@pytest.fixture(scope="module")
def voila(small_project) -> str:
    require_chromium()
    options = ("--no-browser", "--port={port}", "--Voila.ip=127.0.0.1")
    with served(small_project, "voila", "notebooks/06_search.ipynb", *options) as port:
        yield f"http://127.0.0.1:{port}/"


def wait_for(driver: WebDriver, selector: str, count: int) -> None:
    WebDriverWait(driver, 240).until(lambda d: len(d.find_elements(By.CSS_SELECTOR, selector)) >= count)


def tooltips(driver: WebDriver) -> list[str]:
    return driver.execute_script(f"return [...document.querySelectorAll('{TILES}')].map(tile => tile.title)")


def type_edit(driver: WebDriver, text: str) -> list[str]:
    """Types an edit and waits until other results stand there; what they are."""
    before = tooltips(driver)
    field = driver.find_element(By.CSS_SELECTOR, EDIT)
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", field)
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys(text, Keys.ENTER)
    WebDriverWait(driver, 60).until(lambda d: len(tooltips(d)) == 20 and tooltips(d) != before)
    return tooltips(driver)


def test_jupyterlab_runs_the_notebook_and_an_edit_brings_results(small_project):
    options = ("--no-browser", "--port={port}", "--ServerApp.ip=127.0.0.1", "--allow-root", "--IdentityProvider.token=")
    with chromium("search-jupyterlab", DESK) as driver, served(small_project, "jupyterlab", *options) as port:
        driver.get(f"http://127.0.0.1:{port}/lab/tree/notebooks/06_search.ipynb")
        wait_for(driver, ".jp-Notebook .jp-CodeCell", 3)
        WebDriverWait(driver, 120).until(lambda d: "| Idle" in d.find_element(By.ID, "jp-main-statusbar").text)
        driver.find_element(By.XPATH, "//*[contains(@class,'lm-MenuBar-itemLabel')][text()='Run']").click()
        driver.find_element(By.XPATH, "//*[contains(@class,'lm-Menu-itemLabel')][text()='Run All Cells']").click()
        wait_for(driver, TILES, 20)
        found = type_edit(driver, "is red with long sleeves")
        assert len(found) == 20 and all(": go on from this one" in hint for hint in found)


def test_the_plain_page_answers_an_edit_and_goes_on_from_a_result(voila):
    with chromium("search-voila", DESK) as driver:
        driver.get(voila)
        wait_for(driver, TILES, 20)
        found = type_edit(driver, "is blue and sleeveless")
        driver.find_elements(By.CSS_SELECTOR, TILES)[1].click()
        WebDriverWait(driver, 60).until(lambda d: d.find_element(By.CSS_SELECTOR, EDIT).get_attribute("value") == "")
        image = found[1].split(", ")[1].split(":")[0]
        assert image in driver.find_element(By.CSS_SELECTOR, ".cir-page figure").text
        type_edit(driver, "is longer")
        assert "pycell" not in driver.page_source and "Traceback" not in driver.page_source


def test_it_fits_a_dark_phone_and_shows_why(voila):
    with chromium("search-phone", PHONE, dark=True) as driver:
        driver.get(voila + "?theme=dark")
        wait_for(driver, TILES, 20)
        for title in driver.find_elements(By.CSS_SELECTOR, ".cir-side .jupyter-widget-Collapse-header"):
            driver.execute_script("arguments[0].click()", title)
        wait_for(driver, ".cir-side table", 2)
        assert driver.execute_script("return document.documentElement.scrollWidth <= window.innerWidth + 1")
