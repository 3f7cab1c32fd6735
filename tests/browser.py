"""A real browser, Debian's Chromium, for tests of pages."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.remote.webelement import WebElement


@contextmanager
def browser(*flags: str, width: int, height: int = 900) -> Iterator[Chrome]:
    """Chromium without a window, whose page is as wide as asked, however narrow.

    Args:
        flags: Flags of Chromium's command line.
        width, height: Size of the page in CSS pixels.
    """
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("needs Chromium: apt-get install chromium chromium-driver")
    options = ChromeOptions()
    options.binary_location = program
    # In a container Chromium can neither use its sandbox as root nor a /dev/shm of the usual 64 MB.
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", *flags):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = Chrome(options, ChromeService(driver))
    try:
        resize(chrome, width, height)
        yield chrome
    finally:
        chrome.quit()


def resize(chrome: Chrome, width: int, height: int = 900) -> None:
    """Make the page so large, in CSS pixels; a window has a least width of its own."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def prepare(chrome: Chrome, script: str) -> None:
    """Run a script in every page that is opened from now on, before its own."""
    chrome.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": script})


def prefer(chrome: Chrome, colours: str) -> None:
    """Tell pages that the person prefers dark or light colours."""
    features = [{"name": "prefers-color-scheme", "value": colours}]
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def touch(chrome: Chrome, *elements: WebElement) -> None:
    """Put a finger on the middle of each element in turn, after the first was scrolled to, and leave it there."""
    chrome.execute_script("arguments[0].scrollIntoView({ block: 'center', behavior: 'instant' })", elements[0])
    points: list[dict[str, float]] = []
    for finger, element in enumerate(elements):
        box = chrome.execute_script("return arguments[0].getBoundingClientRect().toJSON()", element)
        points.append({"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2, "id": finger})
        chrome.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": points})


def lift(chrome: Chrome) -> None:
    """Take the finger away."""
    chrome.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
