"""The page of results in a real Chromium: it sorts, filters, draws, and nothing else happens.

Needs `pip install -e .[browser]` and Debian's chromium and chromium-driver; skips without them.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from analysis.report.__main__ import main
from tests.analysis.test_analysis import points
from tests.analysis.test_report import EVIL, hostile
from tests.analysis.test_table1 import edit, write_suite

pytestmark = pytest.mark.slow
webdriver = pytest.importorskip("selenium.webdriver")
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
DRIVER = shutil.which("chromedriver")
WIDE, PHONE = (1280, 900), (390, 844)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    if BROWSER is None or DRIVER is None:
        pytest.skip("no chromium with its chromedriver on the path")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for word in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{word}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


class Page:
    """A page in the browser, and what tests ask of it."""

    def __init__(self, driver: Any, path: Path, size: tuple[int, int], scheme: str) -> None:
        self.driver = driver
        width, height = size
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        driver.get("about:blank")
        driver.get_log("browser")  # what an earlier page has said
        driver.get(path.as_uri())

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def wait(self, script: str, *arguments: Any) -> Any:
        """Ask until the answer is yes."""
        return self.until(lambda: self.run(script, *arguments))

    def until(self, answer: Callable[[], Any]) -> Any:
        from selenium.webdriver.support.wait import WebDriverWait

        return WebDriverWait(self.driver, 20).until(lambda _: answer())

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    def click(self, selector: str) -> None:
        element = self.all(selector)[0]
        self.run("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def column(self, table: str, number: int) -> list[str]:
        cells = f"{table} > tbody > tr > td:nth-child({number})"
        return [cell.get_attribute("textContent").strip() for cell in self.all(cells)]

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_suite(tmp_path_factory.mktemp("results") / "table1")
    for path in folder.rglob("result.json"):
        timed = [point | {"seconds": point["step"] / 4} for point in points(40, 80)]
        edit(path, metrics=timed)
    assert main([str(folder)]) == 0
    return folder / "report.html"


@pytest.fixture
def page(chromium: Any, results: Path) -> Page:
    return Page(chromium, results, WIDE, "light")


def test_it_opens_without_an_error_and_asks_for_nothing(page: Page) -> None:
    page.wait("return document.querySelectorAll('.dt-container').length > 0")
    for section in page.all("section"):
        page.run("arguments[0].scrollIntoView()", section)
    page.wait("return document.querySelectorAll('.plot .scatterlayer .trace').length > 0")
    assert page.errors() == []
    assert page.run("return performance.getEntriesByType('resource').length") == 0


def test_tables_sort_by_number(page: Page) -> None:
    table = "#part-1 h3:first-of-type + .wide .sorted"
    assert page.column(table, 1) == ["sst2", "copa"]
    header = f"{table} th:nth-child(3) .dt-column-order"
    page.click(header)
    page.until(lambda: page.column(table, 3) == ["61.0 ± 1.0", "91.0 ± 1.0"])
    assert page.column(table, 1) == ["copa", "sst2"]
    page.click(header)
    page.until(lambda: page.column(table, 1) == ["sst2", "copa"])
    foot = page.all(f"{table} tfoot td")
    assert foot[0].text == "mean"


def test_tables_filter(page: Page) -> None:
    box = page.all("#runs .dt-search input")[0]
    box.send_keys("copa mezo")
    page.wait("return document.querySelectorAll('#runs tbody tr').length == 4")
    assert set(page.column("#runs .sorted", 2)) == {"copa"}
    assert all(name.startswith("MeZO") for name in page.column("#runs .sorted", 1))
    box.clear()
    box.send_keys(" ")
    page.click("#runs th:nth-child(2) button.dtcc-button")
    page.all(".dtcc-dropdown input")[0].send_keys("sst2")
    page.wait("return document.querySelector('#runs .dt-info').textContent.includes('filtered')")
    assert set(page.column("#runs .sorted", 2)) == {"sst2"}


def test_a_run_opens_with_its_curve(page: Page) -> None:
    page.click("#runs button.open")
    page.wait(
        "return document.querySelectorAll('.run:popover-open .scatterlayer .trace').length == 2"
    )
    opened = page.all(".run:popover-open")
    assert len(opened) == 1
    assert "AGZO (lr0.001) on copa, pocket, seed 0" in opened[0].text
    assert "0123456789abcdef" in opened[0].text
    titles = "return document.querySelector('.run:popover-open .xtitle').textContent"
    assert page.run(titles) == "forward passes of a training batch"
    page.click(".run:popover-open input[value=seconds] + span")
    page.wait(f"{titles} == 'seconds of training'")
    page.click(".run:popover-open summary")
    assert "train.batch_size=16" in page.all(".run:popover-open pre")[0].text
    page.click(".run:popover-open .close")
    assert page.all(".run:popover-open") == []
    assert page.errors() == []


def test_curves_answer_to_the_pointer_and_to_choices(page: Page) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    page.run("document.querySelector('.chart').scrollIntoView({block: 'center'})")
    page.wait("return document.querySelectorAll('#part-1 .scatterlayer .trace').length >= 6")
    point = page.all("#part-1 .scatterlayer .points path")[0]
    ActionChains(page.driver).move_to_element(point).perform()
    page.wait("return document.querySelector('#part-1 .hoverlayer .hovertext') !== null")
    label = page.all("#part-1 .hoverlayer .hovertext")[0].text
    assert "seed" in label
    assert "loss on dev" in label
    assert "40 forwards" in label
    names = "return [...document.querySelectorAll('#part-1 .legendtext')].map(e => e.textContent)"
    assert page.run(names) == ["first order", "AGZO", "MeZO", "LOZO", "zero-shot", "in-context"]
    title = "return document.querySelector('#part-1 .ytitle').textContent"
    page.click("#part-1 input[value=dev_score] + span")
    page.wait(f"{title} == 'score on dev, %'")
    page.run(
        "const menu = document.querySelector('#part-1 select'); menu.value = 'copa';"
        "menu.dispatchEvent(new Event('change', {bubbles: true}))"
    )
    page.wait(f"{title} == 'score on dev, %'")
    buttons = [one.get_attribute("data-title") for one in page.all("#part-1 .modebar-btn")]
    assert len(buttons) == 4
    assert not any("share" in str(name).lower() for name in buttons)
    assert page.errors() == []


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_the_screen_and_follows_the_scheme(
    chromium: Any, results: Path, size: tuple[int, int], scheme: str
) -> None:
    page = Page(chromium, results, size, scheme)
    page.run("document.querySelector('.chart').scrollIntoView()")
    page.wait("return document.querySelectorAll('.plot .scatterlayer .trace').length > 0")
    assert page.run("return document.documentElement.scrollWidth") <= size[0]
    assert page.run("return document.querySelector('.plot svg').clientWidth") <= size[0]
    paper, ink = page.run(
        "const of = (element, name) => getComputedStyle(element)[name].match(/\\d+/g).map(Number);"
        "return [of(document.body, 'backgroundColor'),"
        " of(document.querySelector('.plot .xtick text'), 'fill')]"
        ".map(colour => Math.max(...colour.slice(0, 3)))"
    )
    assert (paper > 200, ink < 100) if scheme == "light" else (paper < 60, ink > 180)
    assert (paper > ink) == (scheme == "light")
    assert page.run("return document.documentElement.classList.contains('dark')") == (
        scheme == "dark"
    )
    assert page.errors() == []


def test_hostile_strings_do_nothing(chromium: Any, tmp_path: Path) -> None:
    folder = hostile(tmp_path / "evil")
    assert main([str(folder)]) == 0
    page = Page(chromium, folder / "report.html", WIDE, "light")
    for chart in page.all("main .chart"):
        page.run("arguments[0].scrollIntoView()", chart)
        page.wait("return arguments[0].querySelector('.main-svg') !== null", chart)
    shown = page.run("return [...document.querySelectorAll('.legendtext')].map(e => e.textContent)")
    assert any(EVIL[0] in name for name in shown)  # as text, to the letter
    assert any("%{x}" in name for name in shown)
    for plot in page.all("main .chart .plot"):
        label = page.run(
            "Plotly.Fx.hover(arguments[0], [{curveNumber: 0, pointNumber: 0}]);"
            "return arguments[0].querySelector('.hovertext').textContent",
            plot,
        )
        assert any(evil in label for evil in (*EVIL, "first order")), label
    page.all("#runs .dt-search input")[0].send_keys("task")
    for button in page.all("#runs button.open")[:3]:
        page.run("arguments[0].click()", button)
        page.wait("return document.querySelector('.run:popover-open .main-svg') !== null")
        page.run("document.querySelector('.run:popover-open').hidePopover()")
    assert page.run("return window.hacked") is None
    assert page.errors() == []
    assert page.run("return performance.getEntriesByType('resource').length") == 0
    assert page.run("return [...document.querySelectorAll('a')].every(a => a.hash)")


def test_a_script_that_got_in_would_not_run(page: Page) -> None:
    page.run(
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hacked=1\">');"
        "const script = document.createElement('script'); script.textContent = 'window.hacked=2';"
        "document.body.append(script);"
        "fetch('https://example.org/').catch(() => window.refused = 1)"
    )
    page.wait("return window.refused == 1")
    assert page.run("return window.hacked") is None
    assert any("Content Security Policy" in message for message in page.errors())
