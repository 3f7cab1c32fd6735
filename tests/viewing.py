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
