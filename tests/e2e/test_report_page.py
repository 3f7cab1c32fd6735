"""The report's page in a real browser: on a phone's screen, by keyboard, with and without motion."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import ActionChains, Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from pipeline.execution.in_process import InProcessExecutor
from pipeline.reporting.published import PUBLISHED
from pipeline.stages import report
from pipeline.storage.local import LocalStore
from tests.browser import browser, resize
from tests.made_run import make_config, put_data, put_evaluation, put_metrics

LIMIT_S = 120  # reached only if the browser hangs
NARROW = 400


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a report."""
    folder = tmp_path_factory.mktemp("run")
    store, config = LocalStore(folder), make_config()
    put_data(store, config)
    put_metrics(store)
    put_evaluation(store, 6, {"mean": [100.5, 250.25, 300.0], "best": [120.0, 270.5, 310.0]})
    report.run(config, store, InProcessExecutor())
    return folder


def opened(chrome: Chrome, run_dir: Path) -> Chrome:
    chrome.get((run_dir / "report/index.html").as_uri())
    return chrome


def wait(chrome: Chrome, condition: Callable[[Chrome], Any]) -> Any:
    return WebDriverWait(chrome, LIMIT_S, poll_frequency=0.05).until(condition)


def wait_until_it_plays(chrome: Chrome, film: WebElement) -> None:
    wait(chrome, lambda _: float(film.get_property("currentTime")) > 0)


def wait_for_a_picture(chrome: Chrome, film: WebElement) -> None:
    wait(chrome, lambda _: int(film.get_property("readyState")) >= 2)


def test_page_fits_a_narrow_screen_and_shows_every_score(run_dir: Path) -> None:
    with browser(width=NARROW) as chrome:
        for width in (320, 641, 768, 833, NARROW):
            resize(chrome, width)
            opened(chrome, run_dir)
            assert chrome.execute_script("return document.documentElement.scrollWidth") <= width, width
        rows = chrome.find_elements(By.CSS_SELECTOR, ".scores tbody tr")
        assert len(rows) == 2 + 1 + len(
            PUBLISHED["CarRacing-v3"].scores
        )  # two controllers, the random policy, the published ones
        for row in rows:
            for cell in row.find_elements(By.CSS_SELECTOR, "th, .score, .small"):
                assert cell.is_displayed() and cell.text
                assert cell.rect["x"] >= 0 and cell.rect["x"] + cell.rect["width"] <= NARROW
        assert "233.5 ± 100.3 120.2 to 309.8 3" in rows[0].text
        label = "return getComputedStyle(arguments[0], '::before').content"  # the column's heading on wide screens
        labels = [chrome.execute_script(label, cell) for cell in rows[0].find_elements(By.CSS_SELECTOR, "[data-label]")]
        assert labels == ['"95 % interval: "', '"episodes: "']
        assert chrome.get_log("browser") == []


def test_scrolling_boxes_are_labelled_and_accept_the_keyboard(run_dir: Path) -> None:
    with browser(width=NARROW) as chrome:
        opened(chrome, run_dir)
        boxes = [box for box in chrome.find_elements(By.CLASS_NAME, "scroll") if box.is_displayed()]
        wide = [box for box in boxes if int(box.get_property("scrollWidth")) > int(box.get_property("clientWidth")) + 1]
        assert len(wide) >= 4
        for box in boxes:
            hint = box.find_element(By.XPATH, "following-sibling::*[1]")
            assert hint.is_displayed() == (box in wide)
            assert box.get_attribute("role") == "group" and box.accessible_name
            assert (box.get_attribute("tabindex") is not None) == (box in wide)
        box = next(box for box in wide if box.accessible_name == "Table of stages")
        reached = set()
        while box.id not in reached:  # by the tab key alone
            ActionChains(chrome).send_keys(Keys.TAB).perform()
            focused = chrome.switch_to.active_element
            assert focused.tag_name != "body", "the last stop was passed, and the box was none of them"
            reached.add(focused.id)
        ActionChains(chrome).send_keys(Keys.ARROW_RIGHT).perform()
        wait(chrome, lambda _: int(box.get_property("scrollLeft")) > 0)


def test_nothing_scrolls_on_a_wide_screen(run_dir: Path) -> None:
    with browser(width=1200) as chrome:
        opened(chrome, run_dir)
        hints = chrome.find_elements(By.CLASS_NAME, "hint")
        shown = [hint.find_element(By.XPATH, "preceding-sibling::*[1]").accessible_name for hint in hints]
        assert [name for name, hint in zip(shown, hints, strict=True) if hint.is_displayed()] == []


def test_films_play_and_pause_by_keyboard(run_dir: Path) -> None:
    with browser(width=1200) as chrome:
        opened(chrome, run_dir)
        films = chrome.find_elements(By.TAG_NAME, "video")
        assert len(films) == 2  # the drive and the dream
        for film in films:
            wait_until_it_plays(chrome, film)
            assert film.get_property("error") is None and film.accessible_name
        drive = films[0]
        assert (drive.get_property("videoWidth"), drive.get_property("videoHeight")) == (480, 240)
        assert float(drive.get_property("duration")) == pytest.approx(2, abs=0.1)
        chrome.execute_script("arguments[0].focus()", drive)
        ActionChains(chrome).send_keys(Keys.SPACE).perform()
        wait(chrome, lambda _: drive.get_property("paused"))
        ActionChains(chrome).send_keys(Keys.SPACE).perform()
        wait(chrome, lambda _: not drive.get_property("paused"))


def test_films_do_not_play_with_reduced_motion(run_dir: Path) -> None:
    with browser("--force-prefers-reduced-motion", width=1200) as chrome:
        opened(chrome, run_dir)
        films = chrome.find_elements(By.TAG_NAME, "video")
        for film in films:
            wait_for_a_picture(chrome, film)
            assert film.get_property("paused") and float(film.get_property("currentTime")) == 0
            assert film.get_attribute("autoplay") is None and film.get_attribute("controls")
        chrome.execute_script("arguments[0].focus()", films[0])  # the films can still be played on request
        ActionChains(chrome).send_keys(Keys.SPACE).perform()
        wait_until_it_plays(chrome, films[0])


def test_tables_have_captions_and_scopes_and_pictures_have_texts(run_dir: Path) -> None:
    with browser(width=NARROW) as chrome:
        opened(chrome, run_dir)
        for details in chrome.find_elements(By.TAG_NAME, "summary"):
            details.click()
        tables = chrome.find_elements(By.TAG_NAME, "table")
        assert len(tables) == 5
        for table in tables:
            assert table.find_element(By.TAG_NAME, "caption").text
            assert table.aria_role == "table", "it is one for a screen reader however it is laid out"
            for header in table.find_elements(By.TAG_NAME, "th"):
                assert header.get_attribute("scope") in ("row", "col")
            columns = len(table.find_elements(By.CSS_SELECTOR, "thead th"))
            for row in table.find_elements(By.CSS_SELECTOR, "tbody tr"):
                assert len(row.find_elements(By.CSS_SELECTOR, "th[scope=row]")) == 1
                cells = row.find_elements(By.CSS_SELECTOR, "th, td")
                assert len(cells) == columns or not columns
                assert "none" not in {cell.value_of_css_property("display") for cell in cells}, (
                    "screen readers count cells"
                )
        pictures = chrome.find_elements(By.CSS_SELECTOR, "svg[role=img], img, video")
        assert len(pictures) > 10
        assert all(picture.accessible_name for picture in pictures)


def test_every_file_link_leads_to_a_file(run_dir: Path) -> None:
    with browser(width=1200) as chrome:
        for page in (run_dir / "report/index.html", *(run_dir / "report/data").glob("index-*.html")):
            chrome.get(page.as_uri())
            links = [link.get_property("href") for link in chrome.find_elements(By.TAG_NAME, "a")]
            files = [link for link in links if str(link).startswith("file:")]
            assert len(files) >= 6
            for link in files:
                name = str(link).removeprefix("file://")
                assert Path(name).is_file() or name == f"{run_dir}/config.yaml", name  # a made run has no config
            assert {str(link).split("/")[2] for link in links if link not in files} == {
                "arxiv.org",
                "ctallec.github.io",
                "github.com",
            }
