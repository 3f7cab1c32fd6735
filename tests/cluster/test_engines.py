"""Games with engines in separate processes, on Ray: every engine ends with the worker that started it."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from pipeline.config.schema import EnvConfig
from pipeline.envs.registry import make_environment
from tests.engines import engines_below, shared_memory, wait_until_gone

ROOT = Path(__file__).parents[2]


class Player:
    """A worker with two started games."""

    def __init__(self) -> None:
        self._envs = [make_environment(EnvConfig(id="TakeCover")) for _ in range(2)]
        for env in self._envs:
            env.reset(1)

    def pid(self) -> int:
        """The id of its process."""
        import os

        return os.getpid()


def begun(pid: int) -> tuple[list[psutil.Process], list[Path]]:
    """The engines of a worker and their shared memory."""
    engines = engines_below(pid)
    memory = [path for engine in engines for path in shared_memory(engine)]
    assert len(engines) == 2 and len(memory) == 6, (engines, memory)
    return engines, memory


@pytest.fixture
def player() -> Iterator[Any]:
    actor = ray.remote(Player).remote()
    yield actor
    ray.kill(actor)


@pytest.mark.usefixtures("local_ray")
def test_engines_end_after_ray_kills_their_worker(player: Any) -> None:
    left = begun(ray.get(player.pid.remote()))
    ray.kill(player)
    wait_until_gone(*left)


DRIVER = """
import ray
from tests.cluster.test_engines import Player
ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
player = ray.remote(Player).remote()
print(ray.get(player.pid.remote()), flush=True)
input()
"""


def test_engines_end_after_the_driver_of_their_worker_is_killed() -> None:
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert driver.stdout is not None
    left = begun(int(driver.stdout.readline()))
    driver.send_signal(signal.SIGKILL)
    wait_until_gone(*left)
    driver.wait(600)
