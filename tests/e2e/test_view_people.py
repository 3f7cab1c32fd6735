"""The page of ``world-models view``: several people, touch, a gamepad, dark colours, choices, films, failures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import ActionChains, Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from pipeline.config.study import dump_study, load_study
from pipeline.storage.local import LocalStore
from pipeline.studies.plan import STUDY
from tests.browser import browser, lift, prefer, prepare, resize, touch
from tests.made_run import make_config, put_trained, random_agent
from tests.viewing import STAND_INS, Page, Server, contrasts, opened, put_car_racing, viewing, wait

PHONE = 400


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with viewing(put_car_racing(tmp_path_factory.mktemp("run")), "--viewers", "2") as running:
        yield running


def test_each_viewer_has_a_world_and_one_who_leaves_takes_only_that(server: Server) -> None:
    with browser(width=1000) as chrome:
        first = opened(chrome, server.url)
        window = chrome.current_window_handle
        chrome.switch_to.new_window("window")
        second = opened(chrome, server.url)
        assert len(server.worlds()) == 2
        second.at("track").clear()
        second.at("track").send_keys("21", Keys.ENTER)
        wait(chrome, lambda _: second.text("track-shown") == "21")
        second.press("t")
        second.until("holder", "person")
        chrome.get("about:blank")
        wait(chrome, lambda _: len(server.worlds()) == 1)
        chrome.switch_to.window(window)
        first.until_more("steps")
        assert first.text("track-shown") != "21" and first.at("who").text == "The controller drives"


def test_the_page_by_gamepad_by_touch_in_the_dark_and_on_film(server: Server) -> None:
    with browser(width=1400) as chrome:
        prepare(chrome, STAND_INS)
        prefer(chrome, "dark")
        page = opened(chrome, server.url)
        look_in_the_dark(page)
        steer_by_gamepad(page)
        measure(page)
        record(page)
        touch_a_phone(page)
        assert chrome.get_log("browser") == []


def look_in_the_dark(page: Page) -> None:
    page.until_more("steps")
    assert page.chrome.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(16, 19, 24)"
    found = contrasts(page.chrome)
    assert len(found) > 20
    assert [(text, contrast) for text, contrast in found if contrast < 4.5] == []


def steer_by_gamepad(page: Page) -> None:
    move = """
        const [stick, trigger] = arguments;
        const buttons = Array.from({ length: 8 }, (_, at) => ({ value: at === 7 ? trigger : 0 }));
        window.pad = { axes: [stick, 0], buttons };
    """
    page.press("t")
    page.until("holder", "person")
    page.chrome.execute_script(move, -0.5, 0.75)
    wait(page.chrome, lambda _: (page.axis(0), page.gas()) == (-0.5, 0.75))
    page.chrome.execute_script(move, 0.1, 0)  # the stick lies in its dead zone
    wait(page.chrome, lambda _: (page.axis(0), page.gas()) == (0, 0))
    page.chrome.execute_script("window.pad = null")


def measure(page: Page) -> None:
    """Print the rates that the page shows; they are no matter of this test."""
    for place in ("game", "dream"):
        for _ in range(4):
            ActionChains(page.chrome).key_down(Keys.ARROW_UP).perform()
            wait(page.chrome, lambda _: page.gas() == 1)
            ActionChains(page.chrome).key_up(Keys.ARROW_UP).perform()
            wait(page.chrome, lambda _: page.gas() == 0)
        print(f"{place}: {page.text('rate')}")
        page.press("m")
        page.until("asleep", "yes" if place == "game" else "no")


def record(page: Page) -> None:
    page.press("r")
    wait(page.chrome, lambda _: page.at("record").get_attribute("aria-pressed") == "true")
    page.until_more("steps", 10)
    page.press("r")
    ((name, size, kind),) = wait(page.chrome, lambda chrome: chrome.execute_script("return films"))
    assert kind in ("video/mp4", "video/webm") and name.endswith(kind.split("/")[1]) and size > 1000
    page.chrome.execute_script("MediaRecorder.isTypeSupported = () => false")
    page.press("r")
    wait(page.chrome, lambda _: "This browser cannot record films" in page.text("film-says"))
    assert page.at("record").get_attribute("aria-pressed") == "false"


def touch_a_phone(page: Page) -> None:
    page.press("t")
    page.until("holder", "controller")
    resize(page.chrome, PHONE)
    page.chrome.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    gas = page.chrome.find_element(By.CSS_SELECTOR, "[data-holds='1+']")
    touch(page.chrome, gas)
    page.until("holder", "person")
    wait(page.chrome, lambda _: page.gas() == 1)
    lift(page.chrome)
    wait(page.chrome, lambda _: page.gas() == 0)
    assert page.chrome.execute_script("return document.documentElement.scrollWidth") <= PHONE


def test_a_failure_stays_in_sight_and_the_page_begins_again(server: Server) -> None:
    with browser(width=1000) as chrome:
        prepare(chrome, STAND_INS)
        page = opened(chrome, server.url)
        page.until_more("steps")
        page.press("t")
        page.until("holder", "person")
        chrome.execute_script("window.held = new Promise((let_go) => { window.letGo = let_go; })")
        (world,) = server.worlds()
        world.kill()  # while the page decodes a picture
        page.until("state", "failed")
        chrome.execute_script("window.held = null; window.letGo()")
        # What was held is drawn before a script that is requested later has waited for its turn twice.
        chrome.execute_async_script("const done = arguments[0]; requestAnimationFrame(() => setTimeout(done, 100))")
        assert chrome.find_element(By.TAG_NAME, "body").get_attribute("data-state") == "failed"
        assert page.at("reason").is_displayed() and "The connection is closed" in page.text("reason")
        page.until("holder", "controller")
        assert chrome.execute_script("return Boolean(arguments[0].closest('[inert]'))", page.at("hand"))
        page.at("again").click()
        page.until("state", "running")
        page.until_more("steps")
        page.at("hand").click()
        page.until("holder", "person")


def test_the_agent_of_the_package_is_watched_driven_and_dreams() -> None:
    with viewing("pretrained:carracing") as server, browser(width=1400) as chrome:
        page = opened(chrome, server.url)
        page.until_more("steps", 20)
        page.press("t")
        page.until("holder", "person")
        ActionChains(chrome).key_down(Keys.ARROW_UP).perform()
        wait(chrome, lambda _: page.gas() == 1.0)
        ActionChains(chrome).key_up(Keys.ARROW_UP).perform()
        page.press("m")
        page.until("asleep", "yes")
        page.until_more("dream-steps", 10)
        ActionChains(chrome).key_down(Keys.ARROW_UP).perform()
        wait(chrome, lambda _: page.gas() == 1.0)
        ActionChains(chrome).key_up(Keys.ARROW_UP).perform()
        assert chrome.get_log("browser") == []


def test_choices_are_held_by_keys_and_pads(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"env__id": "CartPole-v1", "env__max_episode_steps": 500, "collect__policy": "white"}
    # In float32: V was not calibrated for int8, which is what a CPU with VNNI would choose.
    put_trained(LocalStore(tmp_path), random_agent(make_config(**changes, rollouts__precision="float32")))
    with viewing(tmp_path) as server, browser(width=1400) as chrome:
        page = opened(chrome, server.url)
        assert page.at("environment").text == "CartPole-v1"
        assert page.at("scene").get_property("width") == 600
        assert page.at("keys").text == "Keys: hold 1 to 2, ← →. Pads and a gamepad work too."
        page.press("t")
        page.until("holder", "person")

        def taken(_: Chrome) -> list[str]:
            return [each.text for each in chrome.find_elements(By.CSS_SELECTOR, "#controls .taken")]

        for key in ("2", Keys.ARROW_RIGHT):
            ActionChains(chrome).key_down(key).perform()
            wait(chrome, lambda _: taken(_) == ["1"])  # Gymnasium's name of the second choice
            ActionChains(chrome).key_up(key).perform()
            wait(chrome, lambda _: taken(_) == ["0"])
        pad = chrome.find_element(By.CSS_SELECTOR, "[data-holds='0:1']")
        ActionChains(chrome).click_and_hold(pad).perform()
        wait(chrome, lambda _: taken(_) == ["1"])
        ActionChains(chrome).release().perform()
        page.press("m")
        page.until("asleep", "yes")
        page.until_more("dream-steps", 3)
        assert chrome.get_log("browser") == []


def test_choices_have_the_names_and_the_rest_of_their_environment(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"env__id": "ALE/Freeway-v5", "collect__policy": "white"}
    put_trained(LocalStore(tmp_path), random_agent(make_config(**changes, rollouts__precision="float32")))
    with viewing(tmp_path) as server, browser(width=1400) as chrome:
        page = opened(chrome, server.url)
        assert page.at("keys").text == "Keys: hold 1 to 3, ↑ ↓. Pads and a gamepad work too."
        page.press("t")
        page.until("holder", "person")

        def taken(name: str) -> bool:
            return [each.text for each in chrome.find_elements(By.CSS_SELECTOR, "#controls .taken")] == [name]

        wait(chrome, lambda _: taken("NOOP"))
        ActionChains(chrome).key_down(Keys.ARROW_UP).perform()
        wait(chrome, lambda _: taken("UP"))
        ActionChains(chrome).key_up(Keys.ARROW_UP).perform()
        wait(chrome, lambda _: taken("NOOP"))


def test_a_study_opens_with_its_runs(tmp_path: Path) -> None:
    LocalStore(tmp_path).write(STUDY, dump_study(load_study("tiny", seeds=[1, 2])).encode())
    with viewing(tmp_path) as server, browser(width=1400) as chrome:
        chrome.get(server.url)
        page = Page(chrome)
        wait(chrome, lambda _: page.at("overview").text.count("not begun") == 2)
        assert not page.at("world").is_displayed() and server.worlds() == []
        page.at("tab-world").click()
        assert "This is the study" in page.at("reason").text and not page.at("again").is_displayed()
