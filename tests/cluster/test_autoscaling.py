"""Ray's autoscaler, with real nodes on this machine: a run makes it add them, and they leave when it ends."""

from __future__ import annotations

import threading
import time
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
    """Counts a head's nodes from a thread of its own, until the context ends."""

    def __init__(self, head: Head) -> None:
        self.counts: list[int] = []
        self._head = head
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._over.wait(0.5):
            self.counts.append(self._head.live_nodes())

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


@pytest.mark.timeout(280)
def test_nodes_come_for_a_run_and_leave_when_it_ends(tmp_path: Path) -> None:
    chosen = config(evolve__generations=10, vae__device="cpu", mdnrnn__device="cpu")
    preset = tmp_path / "elastic.yaml"
    preset.write_text(dump(chosen))
    with Head(num_cpus=0, node_types=NODE_TYPES) as head:
        assert head.live_nodes() == 0
        with _Watch(head) as watch:
            run = ("run", str(preset), "--run-dir", str(tmp_path / "cluster"))
            code, output = Command(*run, environment={"RAY_ADDRESS": head.address}).finish()
            assert code == 0, output
            assert max(watch.counts) == 3, "as many as there may be, and never the one with the GPU"
            deadline = time.monotonic() + 60
            while watch.counts[-1] > 0:
                assert time.monotonic() < deadline, f"{watch.counts[-1]} nodes stay"
                time.sleep(0.5)
    assert require_manifest(LocalStore(tmp_path / "cluster"), "evolution").info["workers"] == 6
    run_stages(chosen, LocalStore(tmp_path / "here"), InProcessExecutor(), STAGES[:6])
    assert outcome(tmp_path / "cluster") == outcome(tmp_path / "here")
