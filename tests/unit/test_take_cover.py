"""TakeCover as in the paper: random scores, reproducible bits, and engines that end with their worker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from pipeline.base.errors import ConfigError
from pipeline.config.schema import EnvConfig
from pipeline.envs import reaper
from pipeline.envs.take_cover import TakeCover
from pipeline.rollouts.policies import Policy, RepeatPolicy, WhitePolicy
from tests.engines import engines_below, shared_memory, wait_until_gone

CONFIG = EnvConfig(id="TakeCover", max_episode_steps=2100)
FIRST_GAME = 20_000


@pytest.fixture
def env() -> Iterator[TakeCover]:
    made = TakeCover(CONFIG)
    yield made
    made.close()


def play(env: TakeCover, track: int, policy: Policy) -> tuple[int, bool, bool]:
    """Play a game to its end; returns the tics survived and the kind of end."""
    frame, earned = env.reset(track), 0.0
    while True:
        frame, reward, terminated, truncated = env.step(policy.act(frame))
        earned += reward
        if terminated or truncated:
            return int(earned), terminated, truncated


def play_unseen(env: TakeCover, track: int, policy: Policy) -> int:
    """Play a game without drawing, which is most of the cost; returns the tics survived."""
    frame, tics = env.reset(track), 0
    while not env._game.is_episode_finished() and tics < 2100:
        env._game.set_action(env.actions.native(policy.act(frame)))
        env._game.advance_action(1, False)
        tics += 1
    return tics


class Constant:
    """Always the same number."""

    def __init__(self, value: float) -> None:
        self._action = np.array([value], np.float32)

    def act(self, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self._action


@pytest.mark.parametrize(
    ("policy", "paper", "tolerance"),
    [
        (WhitePolicy, 210, 20),
        (lambda env, rng: RepeatPolicy(env, 10, rng), 317, 35),
    ],
    ids=["random", "collecting"],
)
def test_random_actions_score_as_in_the_paper(
    env: TakeCover, policy: Callable[[TakeCover, np.random.Generator], Policy], paper: float, tolerance: float
) -> None:
    def players() -> Iterator[tuple[int, Policy]]:
        return ((FIRST_GAME + game, policy(env, np.random.default_rng(game))) for game in range(150))

    lengths = [play_unseen(env, track, player) for track, player in players()]
    assert np.mean(lengths) == pytest.approx(paper, abs=tolerance)
    seen = [play(env, track, player) for track, player in islice(players(), 12)]
    assert [tics for tics, _, _ in seen] == lengths[:12], "as the policies do not look, drawing changes nothing"
    assert all(terminated and not truncated for tics, terminated, truncated in seen if tics < 2100)


def test_game_has_the_same_bits_in_used_instances_and_other_engines(env: TakeCover) -> None:
    def bits(game: TakeCover, track: int) -> bytes:
        rng = np.random.default_rng(track)
        frames = [game.reset(track).tobytes()]
        frames += [game.step(game.actions.random(rng)).frame.tobytes() for _ in range(60)]
        return b"".join(frames)

    first = bits(env, 5)
    assert bits(env, 6) != first
    assert bits(env, 5) == first
    other = TakeCover(CONFIG)
    try:
        assert bits(other, 5) == first
    finally:
        other.close()


def test_frames_are_colour_without_the_status_bar(env: TakeCover) -> None:
    frame = env.reset(3)
    assert frame.shape == (64, 64, 3) and frame.dtype == np.uint8
    assert env.render().shape == (120, 160, 3)
    red, _, blue = frame.reshape(-1, 3).astype(int).mean(axis=0)
    assert red > blue, "the walls of this map are brown"
    screen = env.render().astype(np.float64)
    # Of 64 rows the last one covers rows 98.4 to 100 of the screen; the status bar begins at 100.
    last = (0.5625 * screen[98] + screen[99]) / 1.5625
    wide = np.repeat(last, 2, axis=0).reshape(64, 5, 3).mean(axis=1)
    np.testing.assert_allclose(frame[-1], wide, atol=0.51)
    for _ in range(25):
        env.step(np.ones(1, np.float32))
    moved = np.abs(env.render() - screen).mean(axis=(1, 2))
    assert moved[95:100].min() > 1 and moved[100:107].max() == 0, "a walk changes the view and not the bar"


def test_frames_resemble_those_at_the_resolution_of_the_paper(env: TakeCover) -> None:
    large = TakeCover(EnvConfig(id="TakeCover", max_episode_steps=2100, options={"resolution": "640x480"}))
    try:
        for track in (3, 4):
            seen = [(env.reset(track), large.reset(track))]
            for step in range(60):
                action = env.actions.random(np.random.default_rng(step))
                seen.append((env.step(action).frame, large.step(action).frame))
            assert large.render().shape == (480, 640, 3)
            differences = [np.abs(one.astype(np.int64) - other).mean() for one, other in seen]
            assert max(differences) < 6, "of 255"
    finally:
        large.close()


def test_agent_walks_to_its_chosen_side_and_stands_between_thresholds(env: TakeCover) -> None:
    assert [env.actions.native(np.array([value], np.float32)) for value in (-1, -0.34, -0.33, 0, 0.33, 0.34, 1)] == [
        [False, True], [False, True], [False, False], [False, False], [False, False], [True, False], [True, False]
    ]  # fmt: skip

    def after(value: float) -> NDArray[np.int64]:
        env.reset(3)
        for _ in range(25):
            frame = env.step(np.array([value], np.float32)).frame
        return frame.astype(np.int64)

    still = after(0.0)

    def unlike(walked: NDArray[np.int64], columns: int) -> float:
        """Difference from the view without a walk, shifted to the right by some columns."""
        return float(np.abs(np.roll(still, columns, axis=1)[:, 12:-12] - walked[:, 12:-12]).mean())

    # A walk to the right moves the view to the left.
    right, left = after(1.0), after(-1.0)
    assert unlike(right, -8) < unlike(right, 8) - 0.3
    assert unlike(left, 8) < unlike(left, -8) - 0.3
    for value, action in ((0.4, 0.4), ([True, False], 1), ([False, True], -1), ([True, True], 0)):
        np.testing.assert_array_equal(env.actions.vector(value), np.array([action], np.float32))


def test_step_limit_truncates_and_each_tic_earns_one() -> None:
    env = TakeCover(EnvConfig(id="TakeCover", max_episode_steps=30))
    try:
        assert play(env, 3, Constant(0.0)) == (30, False, True)
    finally:
        env.close()
    repeated = TakeCover(EnvConfig(id="TakeCover", max_episode_steps=30, action_repeat=4))
    try:
        repeated.reset(3)
        assert repeated.step(np.zeros(1, np.float32)).reward == 4.0
        assert play(repeated, 3, Constant(0.0)) == (30, False, True)
    finally:
        repeated.close()


@pytest.mark.parametrize("options", [{"resolution": "1x1"}, {"skill": 5}])
def test_unknown_options_are_refused_with_the_known_one(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"takes resolution alone, one of ViZDoom's, such as 160x120"):
        TakeCover(EnvConfig(id="TakeCover", options=options))


# ---- engines

WORKER = """
import sys, time
import psutil
from pipeline.config.schema import EnvConfig
from pipeline.envs.registry import make_environment
envs = [make_environment(EnvConfig(id=id, options=options)) for id, options in (
    ("TakeCover", {}), ("TakeCover", {}), ("VizdoomTakeCover-v1", {"screen_resolution": "RES_160X120"}))]
for env in envs:
    env.reset(1)
print(*(child.pid for child in psutil.Process().children() if "vizdoom" in child.name()), flush=True)
if sys.argv[1] == "raises":
    raise SystemExit(3)
if sys.argv[1] == "closes":
    for env in envs:
        env.close()
    sys.exit()
time.sleep(3600)
"""


STARTING = """
import sys
from pipeline.config.schema import EnvConfig
from pipeline.envs.registry import make_environment
envs = [make_environment(EnvConfig(id="TakeCover")) for _ in range(2)]
print("starting", flush=True)
envs[0].reset(1)
print("started", flush=True)
input()
envs[1].reset(1)
print("started", flush=True)
input()
"""


@pytest.mark.parametrize("end", ["closes", "raises", "SIGTERM", "SIGKILL", "stopped, then SIGKILL"])
def test_engines_and_their_shared_memory_end_with_their_worker(end: str, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "TMPDIR": str(tmp_path)}
    here = tmp_path / "home"
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, end], stdout=subprocess.PIPE, text=True, cwd=here, env=environment
    )
    assert worker.stdout is not None
    engines = [psutil.Process(int(pid)) for pid in worker.stdout.readline().split() if psutil.pid_exists(int(pid))]
    memory = [path for engine in engines if end not in ("closes", "raises") for path in shared_memory(engine)]
    if end not in ("closes", "raises"):
        assert len(engines) == 3 and len(memory) == 9, (engines, memory)
    if end.startswith("stopped"):
        worker.send_signal(signal.SIGSTOP)
    if "SIG" in end:
        worker.send_signal(signal.SIGTERM if end == "SIGTERM" else signal.SIGKILL)
    worker.wait(600)
    wait_until_gone(engines, memory)
    deadline = time.monotonic() + 120
    while left := list(tmp_path.glob("world-models-engines-*")):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    assert list(here.iterdir()) == [], "nothing is written to the working directory"


def test_starting_engine_ends_with_its_killed_worker(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "TMPDIR": str(tmp_path)}
    worker = subprocess.Popen([sys.executable, "-c", STARTING], stdout=subprocess.PIPE, text=True, env=environment)
    assert worker.stdout is not None
    assert worker.stdout.readline() == "starting\n"
    started: list[psutil.Process] = []
    while not started and worker.poll() is None:
        started = [child for child in psutil.Process(worker.pid).children() if "vizdoom" in child.name()]
    (engine,) = started
    engine.suspend()  # so that its start does not finish
    memory = shared_memory(engine)
    try:
        worker.kill()
        worker.wait(600)
        wait_until_gone([engine], memory)
    finally:
        with suppress(psutil.NoSuchProcess):
            engine.kill()


def test_killed_reaper_is_replaced_by_one_that_ends_all_engines(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "TMPDIR": str(tmp_path)}
    worker = subprocess.Popen(
        [sys.executable, "-c", STARTING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=environment,
    )  # fmt: skip
    assert worker.stdin is not None and worker.stdout is not None
    assert [worker.stdout.readline() for _ in range(2)] == ["starting\n", "started\n"]
    reaping = _reaper_of(tmp_path)
    reaping.kill()
    reaping.wait(600)
    worker.stdin.write("\n")
    worker.stdin.flush()
    assert worker.stdout.readline() == "started\n"
    engines = engines_below(worker.pid)
    memory = [path for engine in engines for path in shared_memory(engine)]
    assert len(engines) == 2 and len(memory) == 6
    worker.kill()
    worker.wait(600)
    wait_until_gone(engines, memory)


def _reaper_of(folder: Path) -> psutil.Process:
    """The reaper of a process with this TMPDIR."""
    found = []
    for pid in psutil.pids():  # process_iter skips a process that has the number of an earlier one
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            if process.environ().get("TMPDIR") == str(folder) and "detached" in process.cmdline():
                found.append(process)
    (reaper,) = found
    return reaper


def test_reaper_spares_processes_with_another_or_an_unknown_start() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert reaper.started(child.pid) is None, "no process has waited for it"
    child.wait()
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    entry = json.dumps({"pid": other.pid, "started": None, "shared_memory": "nothing-of-this-name"})
    subprocess.run([sys.executable, "-S", "-E", reaper.__file__], input=entry, text=True, check=True, timeout=600)
    assert other.poll() is None
    known = json.dumps({"pid": other.pid, "started": reaper.started(other.pid), "shared_memory": "nothing"})
    subprocess.run([sys.executable, "-S", "-E", reaper.__file__], input=known, text=True, check=True, timeout=600)
    assert other.wait(600) == -signal.SIGKILL
