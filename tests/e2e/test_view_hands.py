"""The page of ``world-models view``: who holds the wheel and with what, what stays when nothing changes, contrast."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.browser import browser, lift, prefer, prepare, resize, touch
from tests.viewing import STAND_INS, Page, Server, contrasts, opened, put_car_racing, viewing, wait

# Answers about the runs wait until the test says so; times of the next requests are counted.
SLOW_RUNS = """
window.gate = null;
window.answers = 0;
window.timers = 0;
const ask = window.fetch, later = window.setTimeout;
window.fetch = async (...what) => {
  await window.gate;
  const answer = await ask(...what);
  window.answers += 1;
  return answer;
};
window.setTimeout = (what, after, ...more) => {
  window.timers += after === 2000;
  return later(what, after, ...more);
};
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with viewing(put_car_racing(tmp_path_factory.mktemp("run")), "--viewers", "1") as running:
        yield running


@pytest.fixture(scope="module")
def page(server: Server) -> Iterator[Page]:
    with browser(width=1400) as chrome:
        prepare(chrome, STAND_INS)
        prepare(chrome, SLOW_RUNS)
        page = opened(chrome, server.url)
        page.until_more("steps")
        yield page
        assert chrome.get_log("browser") == []


@pytest.fixture(autouse=True)
def in_the_world(page: Page) -> Iterator[None]:
    """The World tab, with the controller at the wheel."""
    yield
    page.at("tab-world").click()
    if page.chrome.find_element(By.TAG_NAME, "body").get_attribute("data-holder") == "person":
        page.press("t")
    page.until("holder", "controller")


def take(page: Page) -> None:
    page.press("t")
    page.until("holder", "person")


def said(page: Page, what: str) -> list[dict[str, Any]]:
    """What the page has said of this kind since it was last forgotten."""
    return [each for each in page.chrome.execute_script("return said") if each["do"] == what]


def test_arrows_steer_after_the_tabs_were_used(page: Page) -> None:
    page.at("tab-runs").click()
    page.at("tab-world").click()
    assert page.chrome.switch_to.active_element.tag_name == "body"
    take(page)
    page.chrome.execute_script("arguments[0].focus()", page.at("tab-world"))  # as the keyboard does
    ActionChains(page.chrome).key_down(Keys.ARROW_LEFT).perform()
    wait(page.chrome, lambda _: page.axis(0) == -1)
    ActionChains(page.chrome).key_up(Keys.ARROW_LEFT).perform()
    assert page.at("world").is_displayed()
    page.press("t")
    page.until("holder", "controller")
    page.press(Keys.ARROW_LEFT)
    wait(page.chrome, lambda _: page.at("runs").is_displayed())


def test_wheel_that_is_taken_again_is_at_rest(page: Page) -> None:
    take(page)
    ActionChains(page.chrome).key_down(Keys.ARROW_LEFT).perform()
    wait(page.chrome, lambda _: page.axis(0) == -1)
    page.press("t")
    page.until("holder", "controller")
    ActionChains(page.chrome).key_up(Keys.ARROW_LEFT).perform()
    page.chrome.execute_script("said.length = 0")
    take(page)
    assert wait(page.chrome, lambda _: said(page, "steer"))[0]["action"] == [0, 0, 0]


def test_requests_for_the_wheel_do_not_wait_for_pictures(page: Page) -> None:
    page.chrome.execute_script("said.length = 0; window.held = new Promise((let_go) => { window.letGo = let_go; })")
    page.press("tttt")
    holders = [each["holder"] for each in said(page, "wheel")]
    assert holders == ["person", "controller", "person", "controller"]
    pads = [page.chrome.find_element(By.CSS_SELECTOR, f"[data-holds='{what}']") for what in ("0-", "1+")]
    page.chrome.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    touch(page.chrome, *pads)
    assert [each["holder"] for each in said(page, "wheel")] == [*holders, "person"]
    page.chrome.execute_script("window.held = null; window.letGo()")
    wait(page.chrome, lambda _: (page.axis(0), page.gas()) == (-1, 1))
    lift(page.chrome)
    wait(page.chrome, lambda _: (page.axis(0), page.gas()) == (0, 0))
    page.chrome.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})


def test_gamepad_that_is_touched_takes_the_wheel(page: Page) -> None:
    move = """
        const [stick, done] = arguments;
        window.pad = { axes: [stick, 0], buttons: [] };
        requestAnimationFrame(() => requestAnimationFrame(done));
    """
    page.chrome.execute_async_script(move, 1)  # as it is found
    page.chrome.execute_async_script(move, 0.2)
    assert page.at("who").text == "The controller drives"
    page.chrome.execute_async_script(move, 1)
    page.until("holder", "person")
    wait(page.chrome, lambda _: page.axis(0) == 1)
    page.press("t")
    page.until("holder", "controller")  # though the stick is still held
    page.until_more("steps", 5)
    assert page.at("who").text == "The controller drives"
    page.chrome.execute_script("window.pad = null")


def test_picture_is_saved_by_its_key(page: Page) -> None:
    page.chrome.execute_script("films.length = 0")
    page.press("f")
    ((name, size, kind),) = wait(page.chrome, lambda chrome: chrome.execute_script("return films"))
    assert (kind, name.endswith(".png")) == ("image/png", True) and "-track-" in name and size > 1000


def test_speed_keeps_the_keyboard_and_lets_a_pointer_go(page: Page) -> None:
    page.chrome.execute_script("said.length = 0")
    speed = page.at("speed")
    page.chrome.execute_script("arguments[0].focus()", speed)
    page.press(Keys.ARROW_UP)
    page.press(Keys.ARROW_UP)
    assert [each["value"] for each in said(page, "speed")] == [0.5, 0.25]
    assert page.chrome.switch_to.active_element == speed
    page.chrome.execute_script(
        "const [at] = arguments; at.dispatchEvent(new Event('pointerdown')); at.value = '1';"
        "at.dispatchEvent(new Event('change'))",
        speed,
    )
    assert said(page, "speed")[-1]["value"] == 1 and page.chrome.switch_to.active_element.tag_name == "body"


def test_latents_that_were_not_moved_are_exact(page: Page) -> None:
    page.chrome.execute_script("said.length = 0")
    slider = page.chrome.find_element(By.CSS_SELECTOR, "#sliders input")
    page.chrome.execute_script("arguments[0].focus()", slider)
    page.press(Keys.HOME)
    (held,) = said(page, "hold")
    assert held["z"][0] == -4 and len(held["z"]) > 1
    assert any(abs(20 * each - round(20 * each)) > 1e-4 for each in held["z"][1:])
    page.at("release").click()


def test_runs_that_do_not_change_stay_and_one_request_follows_another(page: Page) -> None:
    chrome = page.chrome
    chrome.execute_script("window.gate = new Promise((let_go) => { window.letGo = let_go; })")
    for _ in range(3):
        page.at("tab-runs").click()
        page.at("tab-world").click()
    page.at("tab-runs").click()
    chrome.execute_script("window.timers = window.answers = 0; window.gate = null; window.letGo()")
    wait(chrome, lambda _: chrome.execute_script("return answers === 4 && timers > 0"))
    assert chrome.execute_script("return timers") == 1
    first = chrome.find_element(By.CSS_SELECTOR, "#cards .card")
    wait(chrome, lambda _: chrome.execute_script("return timers") == 3)
    assert first.is_displayed()  # a card that was replaced is stale


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_texts_can_be_read_and_fit_on_a_phone(page: Page, colours: str) -> None:
    chrome = page.chrome
    page.at("tab-runs").click()
    wait(chrome, lambda _: chrome.find_elements(By.CSS_SELECTOR, "#cards .stages"))
    prefer(chrome, colours)
    for width in (1400, 400):
        resize(chrome, width)
        for tab in ("runs", "world"):
            page.at(f"tab-{tab}").click()
            found = contrasts(chrome)
            assert len(found) > 15 and [(text, each) for text, each in found if each < 4.5] == []
            assert chrome.execute_script("return document.documentElement.scrollWidth") <= width, (tab, width)
    resize(chrome, 1400)
