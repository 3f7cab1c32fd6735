"""Ray's autoscaler, with real nodes on this machine: a run makes it add them, and they leave when it ends."""

from __future__ import annotations

import threading
import time
from itertools import dropwhile
from pathlib import Path

import pytest

from pipeline.executor import InProcessExecutor
from pipeline.presets import dump
from pipeline.run import STAGES, run_stages
from pipeline.storage.manifest import require_manifest
from pipeline.storage.store import LocalStore
from tests.cluster.elastic import config
from tests.cluster.head import Head
from tests.e2e.command import Command, outcome

NODE_TYPES = {
    "cpu": {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 3},
    # It has the CPUs that workers ask for, and is never started for them.
    "gpu": {
        "resources": {"CPU": 2, "GPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 1,
        "labels": {"world-models/workers": "no"},
    },
}  # fmt: skip


class _Watch:
    """Counts a head's nodes from a thread of its own, until the context ends.

    Attributes:
        counts: every half second.
        gpus: of all of them, every half second.
    """

    def __init__(self, head: Head) -> None:
        self.counts: list[int] = []
        self.gpus: list[float] = []
        self._head = head
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._over.wait(0.5):
            nodes = self._head.live_nodes()
            self.counts.append(len(nodes))
            self.gpus.append(sum(node.get("GPU", 0) for node in nodes))

    def wait_until_none_is_left(self) -> None:
        deadline = time.monotonic() + 60
        while self.counts[-1] > 0:
            assert time.monotonic() < deadline, f"{self.counts[-1]} nodes stay"
            time.sleep(0.5)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


@pytest.mark.timeout(280)
def test_nodes_come_for_a_run_and_leave_when_it_ends(tmp_path: Path) -> None:
    chosen = config(evolve__generations=8, vae__epochs=40, vae__device="cpu", mdnrnn__device="cpu")
    preset = tmp_path / "elastic.yaml"
    preset.write_text(dump(chosen))
    with Head(num_cpus=0, node_types=NODE_TYPES) as head:
        assert head.live_nodes() == []
        with _Watch(head) as watch:
            run = ("run", str(preset), "--run-dir", str(tmp_path / "cluster"))
            code, output = Command(*run, environment={"RAY_ADDRESS": head.address}).finish()
            assert code == 0, output
            came = [*dropwhile(lambda count: count < 2, watch.counts)]
            trained = [*dropwhile(lambda count: count > 1, came)]
            assert trained and trained[0] == 1, "for collecting some come; while V is trained one stays"
            assert max(trained) == 3, "then as many as there may be"
            assert max(watch.gpus) == 0, "and never the one with the GPU"
            watch.wait_until_none_is_left()
    assert require_manifest(LocalStore(tmp_path / "cluster"), "evolution").info["workers"] == 6
    run_stages(chosen, LocalStore(tmp_path / "here"), InProcessExecutor(), STAGES[:6])
    assert outcome(tmp_path / "cluster") == outcome(tmp_path / "here")


@pytest.mark.timeout(280)
def test_a_gpu_node_comes_for_training_and_all_leave_when_a_driver_fails_or_is_killed(tmp_path: Path) -> None:
    """The GPU is one that Ray believes in and torch does not: it gets as far as saying so."""
    with Head(num_cpus=0, node_types=NODE_TYPES) as head, _Watch(head) as watch:

        def run(**overrides: str) -> Command:
            folder = tmp_path / overrides["vae__device"]
            folder.mkdir()
            preset = folder / "elastic.yaml"
            preset.write_text(dump(config(**overrides)))
            arguments = ("run", str(preset), "--run-dir", str(folder / "run"))
            return Command(*arguments, environment={"RAY_ADDRESS": head.address})

        code, output = run(vae__device="cuda", mdnrnn__device="cpu").finish()
        assert code == 2, output
        assert "train-vae: begins" in output
        assert "torch finds no CUDA device here" in output
        assert max(watch.gpus) == 1
        watch.wait_until_none_is_left()

        driver = run(vae__device="cpu", mdnrnn__device="cpu")
        driver.wait_until(lambda: watch.counts[-1] > 0 and "evolve: begins" in driver.output())
        driver.process.kill()
        watch.wait_until_none_is_left()
