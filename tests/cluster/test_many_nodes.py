"""The clusters for tests: a hanging test does not affect later ones."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType

import pytest

from pipeline.base.machine import process_started
from tests.cluster import many_nodes
from tests.cluster.many_nodes import ManyNodes
from tests.cluster.toys import hang, hung_processes
from tests.storage.proxy import wait_until


class _TimedOut(Exception):
    """Raised by a signal handler at any place of a test, like the timeout of pytest-timeout."""


def test_timed_out_call_ends_its_cluster_and_the_next_call_gets_a_new_one(tmp_path: Path) -> None:
    def time_out(number: int, frame: FrameType | None) -> None:
        raise _TimedOut

    def interrupt_once_it_hangs() -> None:
        while not hung_processes(tmp_path):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, time_out)
    try:
        with ManyNodes(num_cpus=1) as cluster:
            first = cluster.in_driver(many_nodes.address)
            threading.Thread(target=interrupt_once_it_hangs, daemon=True).start()
            with pytest.raises(_TimedOut):
                cluster.in_driver(hang, tmp_path)
            (driver,) = hung_processes(tmp_path)
            wait_until(lambda: process_started(driver) is None)
            assert cluster.in_driver(many_nodes.address) != first
    finally:
        signal.signal(signal.SIGUSR1, before)
