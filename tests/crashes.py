"""Hooks for tests that end their process, as one that hangs in C code does: the other tests run all the same.

pytest-xdist starts another process, which would run the same test again, and hang again. The name of a running test
stands in a file, so that the next process sees that the test has ended one, and fails it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Generator
from pathlib import Path

import pytest

_ENDED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Keep a file while the test runs."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return (yield)
    # The folder above that of this process belongs to all processes of the session.
    own = Path(item.config._tmp_path_factory.getbasetemp())  # type: ignore[attr-defined]
    mark = own.parent / f"running-{hashlib.sha256(item.nodeid.encode()).hexdigest()[:16]}"
    item.stash[_ENDED] = mark.exists()
    mark.touch()
    try:
        return (yield)
    finally:
        mark.unlink()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail a test that has ended the process that ran it."""
    if item.stash.get(_ENDED, False):
        pytest.fail("the process that ran this test before has ended", pytrace=False)
