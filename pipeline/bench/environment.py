"""``bench env``: the environment alone, on one core."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice

import gymnasium
import numpy as np

from pipeline.base.threads import num_threads
from pipeline.bench.drives import RecordedDrive, record_drive
from pipeline.bench.measure import BenchResult, Side, compare
from pipeline.bench.table import ENV
from pipeline.config.schema import EnvConfig
from pipeline.envs.car_racing import ID, CarRacing, forget_tracks

_TRACKS = 12
_POPULATION = 16  # consecutive episodes on one track, one candidate each
_REFERENCE_STEPS = 100  # steps per call of the slow sides


def bench_env(seconds: float) -> BenchResult:
    """Compare Gymnasium with the pipeline's environment on whole laps, including resets."""
    drives = [record_drive(track) for track in range(_TRACKS)]
    shared = cycle(drive for drive in drives for _ in range(_POPULATION))
    ours, drop_in = CarRacing(EnvConfig()), gymnasium.make(ID, disable_env_checker=True)

    def lap(drives: Iterator[RecordedDrive]) -> Callable[[], int]:
        def work() -> int:
            drive = next(drives)
            ours.reset(drive.track)
            for action in drive.actions:
                ours.step(action)
            return len(drive.actions)

        return work

    def fresh() -> Iterator[RecordedDrive]:
        for drive in cycle(drives):
            forget_tracks()
            yield drive

    others = [
        Side("a new track every episode", lap(fresh())),
        Side("96x96, in CarRacing-v3's place", _replay(drop_in, drives)),
    ]
    if importlib.util.find_spec("envpool") is not None:
        others.append(Side("EnvPool CarRacing-v3 (C++)", _envpool(drives[0])))
    with num_threads(1):
        return compare(
            ENV,
            "steps/s/core",
            Side("Gymnasium CarRacing-v3", _replay(gymnasium.make("CarRacing-v3", disable_env_checker=True), drives)),
            Side(f"ours at 64x64, {_POPULATION} episodes a track", lap(shared)),
            seconds=seconds,
            threads=1,
            others=others,
        )


def _replay(env: gymnasium.Env, drives: Sequence[RecordedDrive]) -> Callable[[], int]:
    """Replay laps in pieces, because a whole lap takes a plain environment several seconds."""

    def steps() -> Iterator[None]:
        for drive in cycle(drives):
            env.reset(seed=drive.track)
            for action in drive.actions:
                env.step(action)
                yield

    stream = steps()
    return lambda: sum(1 for _ in islice(stream, _REFERENCE_STEPS))


def _envpool(drive: RecordedDrive) -> Callable[[], int]:
    """Replay actions on EnvPool, on other tracks: they do not follow the road, which hardly affects the speed."""
    import envpool

    env = envpool.make("CarRacing-v3", env_type="gymnasium", num_envs=1, num_threads=1)
    env.reset()
    actions = cycle(drive.actions)

    def work() -> int:
        for action in islice(actions, _REFERENCE_STEPS):
            env.step(np.ascontiguousarray(action[None]))
        return _REFERENCE_STEPS

    return work
