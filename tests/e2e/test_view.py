"""``world-models view`` in a real browser: watch, take the wheel, dream; and what it refuses."""

from __future__ import annotations

import asyncio
import json
import math
import signal
import subprocess
import sys
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
from aiohttp import ClientSession, WSMessage, WSMsgType
from selenium.webdriver import ActionChains, Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from pipeline.storage.local import LocalStore
from tests.browser import browser, resize
from tests.made_run import make_config, put_agent
from tests.viewer_messages import unpacked
from tests.viewing import LIMIT_S, ROOT, Page, Server, put_car_racing, viewing, wait


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return put_car_racing(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def server(run_dir: Path) -> Iterator[Server]:
    with viewing(run_dir, "--viewers", "1") as running:
        yield running


def test_a_person_watches_takes_the_wheel_and_drives_in_the_dream(server: Server) -> None:
    with browser(width=1400) as chrome:
        page = Page(chrome)
        chrome.get(server.url)
        page.until("state", "running")
        watch(page)
        take_the_wheel(page)
        dream(page)
        move_latents(page)
        stand_still(page)
        look_at_the_runs(page)
        fit(page)
        of_this_test = "rendering"  # it reads pixels, which slows the drawing
        assert [entry for entry in chrome.get_log("browser") if entry["source"] != of_this_test] == []

        chrome.switch_to.new_window("tab")
        chrome.get(server.url)
        page.until("state", "failed")
        assert "All 1 places are taken" in page.text("reason")
        chrome.close()
        chrome.switch_to.window(chrome.window_handles[0])
        assert len(server.worlds()) == 1
        chrome.get("about:blank")
        wait(chrome, lambda _: server.worlds() == [])  # a viewer who leaves frees the world


def watch(page: Page) -> None:
    page.until_more("steps")
    assert page.at("who").text == "The controller drives"
    assert page.at("environment").text == "CarRacing-v3"
    sizes = {name: page.at(name).get_property("width") for name in ("scene", "frame", "reconstruction", "held")}
    assert sizes == {"scene": 600, "frame": 64, "reconstruction": 64, "held": 64}
    context = "document.getElementById(arguments[0]).getContext('2d')"
    drawn = f"return {context}.getImageData(0, 0, 200, 200).data.some(each => each)"

    def are_drawn(chrome: Chrome) -> bool:
        names = ("scene", "frame", "reconstruction", "ahead", "spread", "bars", "strip")
        return all(chrome.execute_script(drawn, name) for name in names)

    wait(page.chrome, are_drawn)


def take_the_wheel(page: Page) -> None:
    while page.chrome.switch_to.active_element.get_attribute("id") != "hand":  # by keyboard alone
        page.press(Keys.TAB)
    assert page.at("hand").value_of_css_property("outline-style") == "solid", "the focus is visible"
    page.press(Keys.ENTER)
    page.until("holder", "person")
    assert page.at("who").text == "You drive"
    wait(page.chrome, lambda _: page.gas() == 0)  # nobody touches anything
    ActionChains(page.chrome).key_down(Keys.ARROW_UP).perform()
    wait(page.chrome, lambda _: page.gas() == 1)
    ActionChains(page.chrome).key_up(Keys.ARROW_UP).perform()
    wait(page.chrome, lambda _: page.gas() == 0)
    page.press("t")
    page.until("holder", "controller")
    pad = page.chrome.find_element(By.CSS_SELECTOR, "[data-holds='1+']")  # the pads of a touch screen
    ActionChains(page.chrome).click_and_hold(pad).perform()
    page.until("holder", "person")
    wait(page.chrome, lambda _: page.gas() == 1)
    ActionChains(page.chrome).release().perform()


def dream(page: Page) -> None:
    page.press("m")
    page.until("asleep", "yes")
    page.until_more("dream-steps", 3)
    steps = page.number("steps")
    ActionChains(page.chrome).key_down(Keys.ARROW_UP).perform()  # the person still has the wheel
    wait(page.chrome, lambda _: page.gas() == 1)
    ActionChains(page.chrome).key_up(Keys.ARROW_UP).perform()
    assert page.at("scene").get_property("width") == 64
    assert 0 <= page.number("dream-end") <= 100
    assert not math.isnan(page.number("dream-reward")), "M predicts rewards"
    page.chrome.execute_script("arguments[0].focus()", page.at("temperature"))
    page.press(Keys.ARROW_RIGHT)
    assert page.text("temperature-shown") == "1.05"
    page.until_more("dream-steps", 3)
    assert page.number("steps") == steps, "the game stands still"
    page.press("m")
    page.until("asleep", "no")
    page.until_more("steps")


def move_latents(page: Page) -> None:
    slider = page.chrome.find_element(By.CSS_SELECTOR, "#sliders input")
    page.chrome.execute_script("arguments[0].focus()", slider)
    page.press(Keys.HOME)
    assert page.text("held-caption") == "yours" and slider.get_property("value") == "-4"
    pixels = "return document.getElementById(arguments[0]).getContext('2d').getImageData(0, 0, 64, 64).data.join()"

    def looks(name: str) -> str:
        return str(page.chrome.execute_script(pixels, name))

    wait(page.chrome, lambda _: looks("held") != looks("reconstruction"))
    page.at("release").click()
    wait(page.chrome, lambda _: page.text("held-caption") == "follows the agent")


def stand_still(page: Page) -> None:
    page.at("track").clear()
    page.at("track").send_keys("17", Keys.ENTER)
    wait(page.chrome, lambda _: page.text("track-shown") == "17")
    page.press("p")
    page.until("paused", "yes")
    before = page.number("steps")
    page.press(".")
    wait(page.chrome, lambda _: page.number("steps") == before + 1)
    page.press("p")
    page.until("paused", "no")


def look_at_the_runs(page: Page) -> None:
    page.at("tab-runs").click()
    wait(page.chrome, lambda chrome: chrome.find_elements(By.CSS_SELECTOR, "#cards .stages"))

    def card() -> WebElement:
        return page.chrome.find_element(By.CSS_SELECTOR, "#cards .card")

    text = wait(page.chrome, lambda _: card().text)
    assert "Test return" in text and "report" in text
    # V and M; this evolution has no metrics.
    wait(page.chrome, lambda _: len(card().find_elements(By.CSS_SELECTOR, "svg[role=img]")) == 2)
    wait(page.chrome, lambda _: int(card().find_element(By.TAG_NAME, "video").get_property("readyState")) >= 1)
    page.at("tab-runs").send_keys(Keys.ARROW_LEFT)  # tabs are one stop of the keyboard
    wait(page.chrome, lambda _: page.at("world").is_displayed())


def fit(page: Page) -> None:
    for width in (320, 400, 800, 1400):
        resize(page.chrome, width)
        assert page.chrome.execute_script("return document.documentElement.scrollWidth") <= width
    for canvas in page.chrome.find_elements(By.CSS_SELECTOR, "#world canvas"):
        assert canvas.accessible_name


def status(url: str, path: str, method: str = "GET", **headers: str) -> int:
    """Status of the answer to a request whose path is sent as it is."""
    connection = HTTPConnection(urlsplit(url).netloc, timeout=LIMIT_S)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


def test_foreign_requests_are_refused(server: Server) -> None:
    asyncio.run(freed(server))
    url, root = server.url, urlsplit(server.url).path
    host = urlsplit(url).netloc
    assert status(url, root) == status(url, f"{root}page/main.js", Origin=f"http://{host}") == 200
    for path in ("/", "/x/", f"{root[:-2]}/", f"{root[:-2]}x/runs", "/%00/"):
        assert status(url, path) == 403, path
    assert status(url, root, Host="evil.example") == 403
    assert status(url, root, Origin="http://evil.example") == status(url, f"{root}runs", Origin="null") == 403
    for file in ("../world.py", "%2e%2e/world.py", "..%2fworld.py", "%2fetc%2fpasswd", "__init__.py", "nothing.js", ""):
        assert status(url, f"{root}page/{file}") == 404, file
    assert status(url, f"{root}runs/7/film") == status(url, f"{root}runs/-1/film") == 404
    assert status(url, root, "POST") == 405
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
               "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="}  # fmt: skip
    assert status(url, f"{root}world", Origin="http://evil.example", **upgrade) == 403
    assert status(url, "/wrong/world", **upgrade) == 403
    assert server.worlds() == []


def test_hostile_messages_end_the_connection_and_nothing_else(server: Server) -> None:
    async def ending(send: str | bytes) -> WSMessage | None:
        """Last message of the server before it closes, if any, after it was sent this."""
        async with ClientSession() as session, session.ws_connect(f"{server.url}world", max_msg_size=0) as page:
            await (page.send_str(send) if isinstance(send, str) else page.send_bytes(send))
            messages = [message async for message in page]
            codes.append(page.close_code)
        return messages[-1] if messages else None

    codes: list[int | None] = []
    for message in ("x" * 100_000, "{", b"\x00\x01"):
        asyncio.run(freed(server))
        asyncio.run(ending(message))
    assert codes == [1009, 1008, 1003]
    asyncio.run(freed(server))
    last = asyncio.run(ending(json.dumps({"do": "steer", "number": 1, "action": [0.0]})))
    assert last is not None and last.type is WSMsgType.BINARY
    header, _ = unpacked(last.data)
    assert header["is"] == "failed" and "action of 1 numbers: expected 3" in header["reason"]
    assert status(server.url, urlsplit(server.url).path) == 200


async def freed(server: Server) -> None:
    async with asyncio.timeout(LIMIT_S):
        while server.worlds():
            await asyncio.sleep(0.05)


def test_a_run_without_an_agent_says_so_and_ctrl_c_ends_everything(tmp_path: Path) -> None:
    store, config = LocalStore(tmp_path), make_config()
    put_agent(store, config)  # its evolution is not complete

    async def messages(url: str) -> list[dict[str, Any]]:
        async with ClientSession() as session:
            async with session.ws_connect(f"{url}world", max_msg_size=0) as page:
                found = [unpacked(message.data)[0] async for message in page]
            async with session.get(f"{url}runs") as answer:
                return [*found, *(await answer.json())["runs"]]

    with viewing(tmp_path) as server:
        failed, run = asyncio.run(messages(server.url))
        assert failed["is"] == "failed" and "is not complete" in failed["reason"]
        assert run["now"]["title"] == "collect"
        children = psutil.Process(server.process.pid).children(recursive=True)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(LIMIT_S) == 0
        _, left = psutil.wait_procs(children, LIMIT_S)
        assert not left


def test_a_folder_without_a_run_is_an_error(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipeline", "view", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 1 and "holds no run and no study" in done.stderr
