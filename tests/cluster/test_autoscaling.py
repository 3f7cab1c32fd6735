"""Ray's autoscaler with real nodes on this machine: it adds nodes for a run and removes them after its end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.failpoints import VARIABLE, WORKER_VARIABLE
from pipeline.config.presets import dump
from pipeline.config.schema import RunConfig
from pipeline.execution.in_process import InProcessExecutor
from pipeline.run import run_stages
from pipeline.stages.table import STAGES
from pipeline.storage.local import LocalStore
from pipeline.storage.manifest import require_manifest
from tests.cluster.elastic import config
from tests.cluster.gated import gate
from tests.cluster.head import Head
from tests.e2e.command import Command, frozen_below, outcome

NOT_FOR_WORKERS = "world-models/workers"
NODE_TYPES = {
    "cpu": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 3},
    # It has CPUs for workers, but must never start for them.
    "gpu": {
        "resources": {"CPU": 1, "GPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 1,
        "labels": {NOT_FOR_WORKERS: "no"},
    },
}  # fmt: skip


class _Watch:
    """Counts a head's nodes in a thread, until the context ends.

    Attributes:
        counts: Number of nodes, every half second.
    """

    def __init__(self, head: Head) -> None:
        self.counts: list[int] = []
        self._head = head
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._over.wait(0.5):
            # A busy head sometimes does not answer.
            with suppress(OSError, HTTPException, ValueError, KeyError, TypeError):
                self.counts.append(len(self._head.live_nodes()))

    @property
    def count(self) -> int:
        """The number of nodes now."""
        return self.counts[-1] if self.counts else 0

    def wait_until_none_is_left(self) -> None:
        """Wait for the end of all nodes, after at least one count that begins now."""
        before = len(self.counts)
        while len(self.counts) < before + 2 or self.count > 0:
            time.sleep(0.5)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A head without CPUs. Each training on it is frozen at its first checkpoint."""
    frozen_in_training = {WORKER_VARIABLE: "checkpoint-recorded@1:freeze"}
    with Head(num_cpus=0, node_types=NODE_TYPES, environment=frozen_in_training) as head:
        assert head.live_nodes() == []
        yield head


@pytest.fixture
def watch(head: Head) -> Iterator[_Watch]:
    with _Watch(head) as watch:
        yield watch


def _run(head: Head, folder: Path, **environment: str) -> Command:
    arguments = ("run", str(folder / "elastic.yaml"), "--run-dir", str(folder / "run"))
    return Command(*arguments, environment={"RAY_ADDRESS": head.address, **environment})


def _preset(folder: Path, **overrides: Any) -> RunConfig:
    chosen = config(**overrides)
    folder.mkdir(exist_ok=True)
    (folder / "elastic.yaml").write_text(dump(chosen))
    return chosen


@contextmanager
def _gate_closed(head: Head) -> Iterator[Callable[[], int]]:
    """Make all environments on a head's nodes pause. Gives a function that returns how many workers do."""
    (session,) = head.folder.glob("session_2*")
    for note in session.glob("blocked@*"):
        note.unlink()
    gate(session).touch()
    try:
        yield lambda: len([*session.glob("blocked@*")])
    finally:
        gate(session).unlink()


def _resume_training(head: Head) -> None:
    for training in frozen_below(head.pid):
        training.resume()


def test_nodes_join_for_a_run_and_leave_after_its_end(head: Head, watch: _Watch, tmp_path: Path) -> None:
    """All episodes and V's training pause until the expected number of nodes is up."""
    chosen = _preset(tmp_path, vae__device="cpu", mdnrnn__device="cpu")
    with_gpu = head.labelled_nodes(NOT_FOR_WORKERS)
    with _gate_closed(head) as paused:
        driver = _run(head, tmp_path)
        driver.wait_until(lambda: watch.count >= 2 and paused() >= 2)  # several nodes join for collect
    driver.wait_until(lambda: frozen_below(head.pid) and watch.count == 1)  # one stays for V's training

    def evolves_on_all() -> bool:
        _resume_training(head)
        return watch.count == 3 and paused() == 3

    with _gate_closed(head) as paused:
        driver.wait_until(evolves_on_all)
    code, output = driver.finish()
    assert code == 0, output
    assert max(watch.counts) == 3, "the maximum number of nodes"
    assert head.labelled_nodes(NOT_FOR_WORKERS) == with_gpu, "the GPU node never joins"
    watch.wait_until_none_is_left()
    assert require_manifest(LocalStore(tmp_path / "run"), "evolution").info["workers"] == 3
    run_stages(chosen, LocalStore(tmp_path / "here"), InProcessExecutor(), STAGES[:6])
    assert outcome(tmp_path / "run") == outcome(tmp_path / "here")


def test_gpu_node_joins_for_training_and_leaves_after_the_driver_fails(
    head: Head, watch: _Watch, tmp_path: Path
) -> None:
    """Ray sees a GPU on the node, but torch does not: training fails with this error."""
    _preset(tmp_path, vae__device="cuda", mdnrnn__device="cpu", execution__workers=1)
    with_gpu = head.labelled_nodes(NOT_FOR_WORKERS)
    code, output = _run(head, tmp_path).finish()
    assert code == 2, output
    assert "train-vae: begins" in output
    assert "torch finds no CUDA device here" in output
    assert head.labelled_nodes(NOT_FOR_WORKERS) > with_gpu
    watch.wait_until_none_is_left()


def test_nodes_leave_after_the_driver_is_killed(head: Head, watch: _Watch, tmp_path: Path) -> None:
    _preset(tmp_path, vae__device="cpu", mdnrnn__device="cpu", execution__workers=1)
    driver = _run(head, tmp_path, **{VARIABLE: "generation-scored@1:freeze"})

    def is_frozen() -> bool:
        _resume_training(head)
        return driver.is_frozen()

    driver.wait_until(is_frozen)
    driver.wait_until(lambda: watch.count > 0)
    driver.process.kill()
    watch.wait_until_none_is_left()
