"""An environment with real faults, set by files in a folder: it kills its process, hangs or raises.

Use it as ``env.id = "tests.cluster.faulty:FaultyEnv"``. Without such files it is ``CountingEnv``.
"""

from __future__ import annotations

import os
import signal
from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from actors.worker_identity import session_logs
from pipeline.config.schema import EnvConfig
from pipeline.envs.actions import Actions, BoxActions
from pipeline.envs.environment import Step
from tests.cluster.toys import hang, wait_for
from tests.counting import CountingEnv

ENV_ID = "tests.cluster.faulty:FaultyEnv"
DREAMT_ID = "tests.cluster.faulty:DreamtEnv"

_AT_STEP = 1  # so that the episode is running

_place: int | None = None


def faults_folder() -> Path:
    """The folder of the faults, which the driver and all workers of a local Ray share."""
    return session_logs().parent / "faults"


def hung_folder() -> Path:
    """The folder in which processes note that they hang."""
    return faults_folder().parent / "hung"


def ask_for(fault: str, track: int, *, times: int | None = 1) -> list[Path]:
    """Set a fault for the next episodes on a track.

    Args:
        fault: ``"kill"``, ``"hang"``, ``"raise"``, ``"raise in reset"``; the rewards ``"nan"``, ``"inf"``, ``"-inf"``;
            ``"hang in construction"``, of the environment.
        track: The track's seed; any number for ``"hang in construction"``.
        times: Number of episodes with the fault; None for all until the files are removed.
    """
    names = [f"{fault}@{track}@{number}" for number in range(times)] if times else [f"{fault}@{track}@always"]
    files = [faults_folder() / name for name in names]
    for file in files:
        file.touch()
    return files


def ask_for_deaths_in_turn(workers: int) -> None:
    """Let each of ``workers`` processes kill itself, one after the other, once all of them run episodes."""
    (faults_folder() / f"deaths@{workers}").touch()


class FaultyEnv(CountingEnv):
    """See the module's docstring."""

    def __init__(self, config: EnvConfig) -> None:
        super().__init__(config)
        self._folder = faults_folder()
        if self._has("hang in construction", 0):
            hang(hung_folder())

    def reset(self, track: int) -> NDArray[np.uint8]:
        if self._has("raise in reset", track):
            raise FloatingPointError("there is no such road")
        return super().reset(track)

    def step(self, action: NDArray[np.float32]) -> Step:
        if self._step != _AT_STEP:
            return super().step(action)
        assert self._track is not None
        _die_in_turn(self._folder)
        if self._has("kill", self._track):
            os.kill(os.getpid(), signal.SIGKILL)
        if self._has("hang", self._track):
            hang(hung_folder())
        if self._has("raise", self._track):
            self._over = True  # a further step of this episode is an error
            raise FloatingPointError("the car is nowhere")
        reward = next((value for value in ("nan", "inf", "-inf") if self._has(value, self._track)), None)
        step = super().step(action)
        return step if reward is None else step._replace(reward=float(reward))

    def _has(self, fault: str, track: int) -> bool:
        """Whether a fault is set; uses it up."""
        if (self._folder / f"{fault}@{track}@always").exists():
            return True
        return any(_took(file) for file in self._folder.glob(f"{fault}@{track}@*"))


class FaultyActions(BoxActions):
    """Actions whose third call kills its process, if ``ask_for_a_death_in_a_dream`` was called before."""

    def __init__(self) -> None:
        super().__init__([-1.0, 0.0], [1.0, 1.0])
        self._calls = 0

    def squash(self, output: NDArray[np.float32]) -> NDArray[np.float32]:
        self._calls += 1
        if self._calls == 3 and _took(_death_in_a_dream()):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().squash(output)


class DreamtEnv(CountingEnv):
    """``CountingEnv`` with ``FaultyActions``; a worker for dreams has its actions without an environment."""

    actions: Actions = FaultyActions()


def ask_for_a_death_in_a_dream() -> Path:
    """Let one worker kill itself during its next dreams."""
    _death_in_a_dream().touch()
    return _death_in_a_dream()


def _death_in_a_dream() -> Path:
    return faults_folder() / "death in a dream"


def _took(file: Path) -> bool:
    try:
        file.unlink()
    except FileNotFoundError:
        return False
    return True


def _die_in_turn(folder: Path) -> None:
    global _place
    wanted = next((int(file.name.partition("@")[2]) for file in folder.glob("deaths@*")), 0)
    if not wanted:
        return
    if _place is None:
        _place = next(place for place in count() if _made(folder / f"place@{place}"))
    if _place >= wanted:
        return
    wait_for(folder / f"place@{wanted - 1}")
    if _place:
        wait_for(folder / f"dead@{_place - 1}")
    (folder / f"dead@{_place}").touch()
    os.kill(os.getpid(), signal.SIGKILL)


def _made(file: Path) -> bool:
    try:
        file.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
