"""``make stress``: repeat the tests of Ray, processes and storage while other processes are busy.

In another order each time. A test that depends on the speed of its machine shows here, before it does so elsewhere.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]

TOUCHY = (
    "tests/cluster", "tests/cluster_files/test_slurm.py", "tests/e2e", "tests/storage",
    "tests/unit/test_checkpoints.py", "tests/unit/test_disks.py", "tests/unit/test_lease.py",
    "tests/unit/test_mailbox.py", "tests/unit/test_maintenance.py", "tests/unit/test_manifest.py",
    "tests/unit/test_progress.py",
    "tests/unit/test_references.py", "tests/unit/test_spot.py", "tests/unit/test_stops.py", "tests/unit/test_store.py",
    "tests/unit/test_streaming.py", "tests/unit/test_study.py", "tests/unit/test_take_cover.py",
    "tests/unit/test_view_server.py",
)  # fmt: skip


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Run ``count`` processes that occupy one core each, at ordinary priority."""
    busy = f"import os\nwhile os.getppid() == {os.getpid()}: pass"  # ends with this process, however it ends
    processes = [subprocess.Popen([sys.executable, "-c", busy]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def run_tests(paths: Sequence[str], workers: int, seed: int, report: Path) -> int:
    """Run tests in an order drawn from a seed; returns pytest's exit code."""
    order = ("--random-order", "--random-order-bucket=module", f"--random-order-seed={seed}")
    distributed = (f"-n{workers}", "--dist=loadfile", "--no-loadscope-reorder")
    command = (sys.executable, "-m", "pytest", "-q", *distributed, *order, f"--junit-xml={report}", *paths)
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def failures(report: Path) -> set[str]:
    """The names of the failed tests of a JUnit report."""
    cases = ElementTree.parse(report).iter("testcase")
    return {
        f"{case.get('classname')}::{case.get('name')}"
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="make stress", description=__doc__)
    parser.add_argument("paths", nargs="*", default=TOUCHY, help="default: all that touch Ray, processes or storage")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--busy", type=int, default=2, help="busy processes next to the tests; default: 2")
    parser.add_argument("--workers", type=int, default=2, help="tests at a time; default: 2")
    parser.add_argument("--seed", type=int, default=1, help="seed of the first round's order; default: 1")
    options = parser.parse_args()
    failed: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder, busy(options.busy):
        for number in range(options.rounds):
            report, began = Path(folder) / f"{number}.xml", time.monotonic()
            code = run_tests(options.paths, options.workers, options.seed + number, report)
            found = failures(report) if code in (0, 1) else set()
            if bool(found) != (code == 1) or code not in (0, 1):
                print(f"pytest ended with exit code {code}: these are no results")
                return 1
            failed.update(found)
            seconds = time.monotonic() - began
            print(f"round {number + 1} of {options.rounds}: {len(found)} failed, {seconds:.0f} s", flush=True)
    for name, times in failed.most_common():
        print(f"failed {times} of {options.rounds} times: {name}")
    print(f"stress: {options.rounds} rounds next to {options.busy} busy processes, {len(failed)} flaky tests")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
