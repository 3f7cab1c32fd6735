"""``make soak``: real runs, killed at random times, each compared to the bit with an uninterrupted one.

At a random moment of a session, its driver or one of its Ray workers gets SIGKILL. The driver is then started again,
until the run is complete. A seed determines the moments; the place that a kill hits depends on the machine's speed.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil

from pipeline.storage.maintenance import check_run
from pipeline.storage.run_dir import open_store
from tests.e2e import command
from tests.s3_server import S3Server

_WORKER_SHARE = 0.3  # share of kills that hit a worker instead of the driver
_LONGEST_S = 20.0
_BUCKET = "soak"


def _preset(folder: Path) -> str:
    """A preset whose stages are all long enough to be hit at a random moment."""
    return command.counting_preset(
        folder,
        collect__episodes=60,
        vae__epochs=6,
        mdnrnn__epochs=20,
        evolve__generations=40,
        evolve__population_size=8,
        evaluate__episodes=20,
        execution__executor="ray",
        execution__workers=2,
        execution__max_attempts=100,  # a worker may be hit many times
    )


def _workers(driver: psutil.Process) -> list[psutil.Process]:
    """The Ray workers with a job of a driver."""
    found = []
    try:
        children = driver.children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    for process in children:
        try:
            name = process.cmdline()[0]
            # Ray's own agents have such names as well; the death of one ends the whole node.
            if name.startswith("ray::") and not name.endswith(("IDLE", "Agent")):
                found.append(process)
        except (psutil.Error, IndexError):
            continue
    return found


def run_until_killed(arguments: list[str], rng: random.Random, kills: Counter[str], log: Path) -> int:
    """Run the driver until it ends by itself or is killed at a random moment; returns the exit code."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline", *arguments],
            cwd=command.ROOT,
            env={**os.environ, "PYTHONPATH": str(command.ROOT)},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    driver = psutil.Process(process.pid)
    while True:
        try:
            return process.wait(rng.uniform(0.2, _LONGEST_S))
        except subprocess.TimeoutExpired:
            workers = _workers(driver) if rng.random() < _WORKER_SHARE else []
        if not workers:
            process.send_signal(signal.SIGKILL)
            code = process.wait()
            kills["driver"] += code == -signal.SIGKILL
            return code
        with suppress(psutil.NoSuchProcess):
            rng.choice(workers).kill()
            kills["worker"] += 1


def soak(wanted: int, seed: int, run_dirs: list[str], folder: Path) -> bool:
    """Kill ``wanted`` times, and complete the started runs; returns whether all gave the same bits."""
    rng, kills, log = random.Random(seed), Counter[str](), folder / "drivers.log"
    preset = _preset(folder)
    straight = folder / "straight"
    code, output = command.run("run", preset, "--run-dir", str(straight))
    assert code == 0, output
    expected = command.outcome(straight)
    began, complete, different = time.monotonic(), 0, 0
    while kills.total() < wanted:
        run_dir = f"{run_dirs[complete % len(run_dirs)]}/{complete:03d}"
        arguments = ["run", preset, "--run-dir", run_dir]
        while (code := run_until_killed(arguments, rng, kills, log)) != 0:
            if code != -signal.SIGKILL:
                print(f"{run_dir}: a driver ended with exit code {code}:\n{log.read_text()[-3000:]}")
                return False
        store = open_store(run_dir)
        complete += 1
        different += command.outcome(store) != expected or check_run(store).problems != []
        print(
            f"{time.monotonic() - began:6.0f} s: {complete} runs complete, kills survived: {kills['driver']} of "
            f"drivers, {kills['worker']} of workers; runs that differ: {different}",
            flush=True,
        )
    print(f"soak, seed {seed}: kills survived: {kills.total()}, runs: {complete}, differences: {different}")
    return different == 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--kills", type=int, default=60, help="to survive, at least; default: 60, about 15 minutes")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--store", choices=["local", "s3", "both"], default="both")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        run_dirs = [str(folder / "runs")] if options.store != "s3" else []
        if options.store != "local":
            server = stack.enter_context(S3Server(folder / "s3"))
            server.create_bucket(_BUCKET)
            os.environ.update(server.environment)
            run_dirs.append(f"s3://{_BUCKET}/runs")
        return 0 if soak(options.kills, options.seed, run_dirs, folder) else 1


if __name__ == "__main__":
    sys.exit(main())
