"""Metrics at a real node's metrics endpoint, and the names on Ray's dashboard."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from urllib.request import urlopen
from uuid import uuid4

import ray
from prometheus_client.parser import text_string_to_metric_families
from ray.util.state import list_actors, list_tasks
from ray.util.state.exception import RayStateApiException

from actors.executor import RayExecutor
from actors.telemetry import STAGE_METRICS, WORKER_METRICS, Telemetry
from pipeline.config.schema import ExecutionConfig
from tests.cluster.head import Head
from tests.cluster_files.test_grafana import EXPORTED
from tests.e2e import command
from tests.storage.proxy import wait_until

_DEADLINE_S = 600.0  # a node reports every 10 s; the machine may be busy
# Of an HTTP server, or of Ray's state service.
_NO_ANSWER = (OSError, HTTPException, ValueError, RayStateApiException)


def this_node() -> str:
    (node,) = ray.nodes()
    return f"127.0.0.1:{node['MetricsExportPort']}"


def samples(run: str, node: str) -> dict[tuple[str, str | None], tuple[str, float]]:
    """The metrics of a run that a node (HOST:PORT) serves: (name, stage) to (type, value)."""
    with urlopen(f"http://{node}/metrics", timeout=30) as reply:
        families = [*text_string_to_metric_families(reply.read().decode())]
    return {
        (sample.name, sample.labels.get("stage")): (family.type, sample.value)
        for family in families
        for sample in family.samples
        if sample.labels.get("run") == run
    }


def wait_for(run: str, node: str, expected: dict[tuple[str, str | None], tuple[str, float]]) -> None:
    deadline = time.monotonic() + _DEADLINE_S
    last: object = None
    while last != expected:
        assert time.monotonic() < deadline, last
        try:
            last = samples(run, node)
        except _NO_ANSWER as error:
            last = error
        time.sleep(0.5)


def wait_for_answer(expected: Callable[[], bool]) -> None:
    """Wait until a condition holds that asks a server, which may fail to answer meanwhile."""

    def holds() -> bool:
        with suppress(*_NO_ANSWER):
            return expected()
        return False

    wait_until(holds, _DEADLINE_S)


def test_every_metric_is_served_under_its_name(local_ray: None) -> None:
    run = f"run-{uuid4().hex}"
    executor = RayExecutor(ExecutionConfig(workers=1), run)
    workers = Telemetry(run)
    for value in (2.0, 3.5):
        for name in STAGE_METRICS:
            executor.publish("evolve", {name: value})
    executor.publish("collect", {"episodes": 7, "env_steps": 0})
    workers.workers(4)
    workers.workers(3)
    workers.retried(0)
    workers.retried(5)
    workers.retried(1)
    workers.lost_worker(preempted=True)
    workers.lost_worker(preempted=True)
    workers.lost_worker(preempted=False)

    of_workers = {"workers": 3.0, "retries": 6.0, "preemptions": 2.0, "worker_failures": 1.0}
    assert of_workers.keys() == WORKER_METRICS.keys()
    expected: dict[tuple[str, str | None], tuple[str, float]] = {
        ("ray_world_models_episodes_total", "collect"): ("counter", 7.0)
    }
    for exported, (short, of_stage) in zip(
        EXPORTED, [*((name, True) for name in STAGE_METRICS), *((name, False) for name in WORKER_METRICS)], strict=True
    ):
        counted = exported.endswith("_total")
        value = (5.5 if counted else 3.5) if of_stage else of_workers[short]
        expected[exported, "evolve" if of_stage else None] = ("counter" if counted else "gauge", value)
    wait_for(run, this_node(), expected)


def test_second_session_in_one_process_continues_the_counters(local_ray: None) -> None:
    run = f"run-{uuid4().hex}"
    for value in (2, 3):
        Telemetry(run).publish("evolve", {"episodes": value, "generation": value})
    wait_for(
        run,
        this_node(),
        {
            ("ray_world_models_episodes_total", "evolve"): ("counter", 5.0),
            ("ray_world_models_generation", "evolve"): ("gauge", 3.0),
        },
    )


def test_run_is_served_to_prometheus_and_named_in_the_dashboard(tmp_path: Path) -> None:
    small = ("execution.executor=ray", "execution.workers=1", "vae.epochs=1")
    arguments = ("smoke", "--run-dir", str(tmp_path), *(part for setting in small for part in ("-o", setting)))
    with Head() as head:
        for stage in ("collect", "train-vae"):
            code, output = command.run(stage, *arguments, environment={"RAY_ADDRESS": head.address})
            assert code == 0, output

        # The file from which `ray metrics launch-prometheus` reads its targets: nodes, then Ray's services.
        (found,) = json.loads((head.folder / "prom_metrics_service_discovery.json").read_text())
        steps = json.loads((tmp_path / "rollouts/metrics.jsonl").read_text().splitlines()[-1])["env_steps"]
        wait_for_answer(
            lambda: {
                ("ray_world_models_episodes_total", "collect"): ("counter", 6.0),
                ("ray_world_models_env_steps_total", "collect"): ("counter", steps),
            }.items() <= samples("smoke", found["targets"][0]).items()
        )  # fmt: skip

        # Ray's state service lists actors and tasks with a delay as well.
        def workers() -> set[str]:
            return {worker.repr_name for worker in list_actors(address=head.jobs, detail=True)}

        wait_for_answer(lambda: workers() == {"CollectWorker"})
        tasks: set[str] = set()

        def seen() -> bool:
            tasks.update(task.name for task in list_tasks(address=head.jobs))
            return {"CollectWorker.run", "train_vae"} <= tasks

        wait_for_answer(seen)
        assert not {"WorkerActor.run", "run_task"} & tasks
