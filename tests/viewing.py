"""``world-models view`` in a process of its own, and its page as a person uses it in a browser."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import ActionChains, Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from pipeline.storage.local import LocalStore
from tests.made_run import make_config, put_agent, put_data, put_evaluation, put_metrics

LIMIT_S = 240  # only a hang reaches it
ROOT = Path(__file__).parents[1]
# A gamepad that the test moves, what the page says to its world, films that are kept instead of saved, and pictures
# that are decoded when the test says so.
STAND_INS = """
window.pad = null;
window.said = [];
const send = WebSocket.prototype.send;
WebSocket.prototype.send = function (text) {
  said.push(JSON.parse(text));
  send.call(this, text);
};
navigator.getGamepads = () => [null, window.pad];
window.films = [];
const blobs = new Map(), address = URL.createObjectURL;
URL.createObjectURL = (blob) => {
  const made = address.call(URL, blob);
  blobs.set(made, blob);
  return made;
};
HTMLAnchorElement.prototype.click = function () {
  const { size, type } = blobs.get(this.href);
  films.push([this.download, size, type]);
};
const decode = window.createImageBitmap;
window.held = null;
window.createImageBitmap = async (...what) => {
  await window.held;
  return decode(...what);
};
"""
# Contrast of texts with what is behind them, as WCAG defines it, by the text; only of those that are shown.
CONTRAST = """
const rgb = (colour) => colour.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => [r, g, b].map((each) => each / 255)
  .map((each) => (each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4))
  .reduce((sum, each, index) => sum + each * [0.2126, 0.7152, 0.0722][index], 0);
const behind = (at) => {
  const found = rgb(getComputedStyle(at).backgroundColor);
  return found[3] === 0 ? behind(at.parentElement) : found;
};
const texts = [...document.querySelectorAll("h1, h2, h3, small, dt, dd, figcaption, p, label, button:enabled, "
  + ".name, li, td, th, caption, .pill, .legend span")];
const shown = (each) => each.innerText.trim() && each.checkVisibility() && !each.closest(".screen");
return texts.filter(shown).map((each) => {
  const pair = [light(rgb(getComputedStyle(each).color)), light(behind(each))].sort((a, b) => b - a);
  return [each.innerText, (pair[0] + 0.05) / (pair[1] + 0.05)];
});
"""


@dataclass(frozen=True)
class Server:
    """A server in a process of its own.

    Attributes:
        process: Process of the server.
        url: Address that it printed.
    """

    process: subprocess.Popen[str]
    url: str

    def worlds(self) -> list[psutil.Process]:
        """Viewers' processes."""
        found = []
        for child in psutil.Process(self.process.pid).children():
            with suppress(psutil.NoSuchProcess):  # a zombie has freed all
                if "spawn_main" in " ".join(child.cmdline()):
                    found.append(child)
        return found


@contextmanager
def viewing(run_dir: Path | str, *options: str) -> Iterator[Server]:
    command = [sys.executable, "-m", "pipeline", "view", str(run_dir), *options]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout is not None
        yield Server(process, process.stdout.readline().removeprefix("open ").strip())
    finally:
        process.kill()
        process.wait()


def put_car_racing(folder: Path) -> Path:
    """A small complete run of CarRacing whose M predicts rewards and ends."""
    store = LocalStore(folder)
    config = make_config(
        env__max_episode_steps=1000, mdnrnn__reward_weight=1.0, mdnrnn__done_weight=1.0, dream__end_probability=0.999,
        rollouts__precision="float32",
    )  # fmt: skip
    put_agent(store, config)
    put_data(store, config)
    put_metrics(store)
    put_evaluation(store, 6, {"mean": [100.5, 250.25], "best": [120.0, 270.5]})
    return folder


def wait(chrome: Chrome, condition: Callable[[Chrome], Any]) -> Any:
    redrawn = [StaleElementReferenceException]  # the page draws its cards again every two seconds
    return WebDriverWait(chrome, LIMIT_S, poll_frequency=0.05, ignored_exceptions=redrawn).until(condition)


class Page:
    """The page in a browser, with a person's actions on it."""

    def __init__(self, chrome: Chrome) -> None:
        self.chrome = chrome

    def at(self, name: str) -> WebElement:
        return self.chrome.find_element(By.ID, name)

    def text(self, name: str) -> str:
        return str(self.at(name).get_property("textContent"))

    def number(self, name: str) -> float:
        return float(self.text(name).replace(",", "").replace("−", "-").replace("–", "nan").removesuffix(" %"))

    def press(self, keys: str) -> None:
        ActionChains(self.chrome).send_keys(keys).perform()

    def until(self, name: str, value: str) -> None:
        body = self.chrome.find_element(By.TAG_NAME, "body")
        wait(self.chrome, lambda _: body.get_attribute(f"data-{name}") == value)

    def until_more(self, name: str, by: float = 1) -> None:
        before = self.number(name)
        wait(self.chrome, lambda _: not self.number(name) < (before if before == before else 0) + by)

    def axis(self, index: int) -> float:
        return float(self.chrome.find_elements(By.CSS_SELECTOR, ".axis .name span")[index].text)

    def gas(self) -> float:
        return self.axis(1)


def opened(chrome: Chrome, url: str) -> Page:
    chrome.get(url)
    page = Page(chrome)
    body = chrome.find_element(By.TAG_NAME, "body")
    wait(chrome, lambda _: body.get_attribute("data-state") in ("running", "failed"))
    assert body.get_attribute("data-state") == "running", page.text("reason")
    return page


def contrasts(chrome: Chrome) -> list[tuple[str, float]]:
    """Texts that are shown outside the scene, each with its contrast."""
    return [(text, contrast) for text, contrast in chrome.execute_script(CONTRAST)]
