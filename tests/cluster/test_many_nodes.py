"""The clusters for tests: a hanging test does not affect later ones."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType

import pytest
from psutil import NoSuchProcess, Process

from pipeline.base.machine import process_started
from tests.cluster import many_nodes
from tests.cluster.many_nodes import ManyNodes
from tests.cluster.toys import hang, hung_processes
from tests.storage.proxy import wait_until


class _TimedOut(Exception):
    """Raised by a signal handler at any place of a test, like the timeout of pytest-timeout."""


def processes_below(pid: int) -> dict[int, str]:
    """The names of the descendants of a process, by id."""
    found = {}
    for process in Process(pid).children(recursive=True):
        with suppress(NoSuchProcess):
            found[process.pid] = process.name()
    return found


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
            driver = cluster.in_driver(os.getpid)
            below = processes_below(driver)
            assert {"raylet", "gcs_server"} <= {*below.values()}
            started = {pid: when for pid in (driver, *below) if (when := process_started(pid)) is not None}
            threading.Thread(target=interrupt_once_it_hangs, daemon=True).start()
            with pytest.raises(_TimedOut):
                cluster.in_driver(hang, tmp_path)
            wait_until(lambda: all(process_started(pid) != when for pid, when in started.items()))
            assert cluster.in_driver(many_nodes.address) != first
    finally:
        signal.signal(signal.SIGUSR1, before)
