"""An evolution on real clusters of several nodes, which come, go and crash meanwhile: always the same bits."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.nodes import Node
from actors.placement import WORKERS_LABEL, Placement
from pipeline.config.schema import ExecutionConfig
from pipeline.execution.in_process import InProcessExecutor
from pipeline.run import run_stages
from pipeline.storage.local import LocalStore
from tests.cluster import many_nodes
from tests.cluster.elastic import (
    BEFORE_EVOLVE,
    EVALUATE,
    EVOLVE,
    config,
    evolve,
    run_while_its_node_is_lost,
    square_at_low_priority,
    square_while_a_gpu_node_comes,
    square_while_a_node_is_drained,
    wait_until_gone,
)
from tests.cluster.many_nodes import ManyNodes
from tests.cluster.toys import all_begun
from tests.e2e.command import outcome


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose evolution has yet to begin."""
    folder = tmp_path_factory.mktemp("trained")
    run_stages(config(), LocalStore(folder), InProcessExecutor(), BEFORE_EVOLVE)
    return folder


@pytest.fixture(scope="module")
def reference(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Result of a run in one process."""
    folder = shutil.copytree(trained, tmp_path_factory.mktemp("reference") / "run")
    run_stages(config(), LocalStore(folder), InProcessExecutor(), EVOLVE + EVALUATE)
    return outcome(folder)


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture(scope="module")
def cluster() -> Iterator[ManyNodes]:
    """A head without CPUs; nodes come and go from test to test."""
    with ManyNodes(num_cpus=0) as many:
        yield many


def have(cluster: ManyNodes, count: int) -> set[str]:
    """Add nodes of two CPUs up to a number; returns their IDs."""
    while len(live := cluster.in_driver(many_nodes.live_nodes)) < count:
        cluster.add(num_cpus=2)
    return live


@pytest.mark.parametrize(("count", "workers"), [(1, None), (2, 2), (3, None)])
def test_any_number_of_nodes_gives_the_same_bits_and_uses_all_nodes(
    cluster: ManyNodes, folder: Path, reference: dict[str, Any], count: int, workers: int | None
) -> None:
    """Two workers would fit on one node of the two."""
    there = have(cluster, count)
    cluster.in_driver(many_nodes.wait_until_used, there)
    most = workers or 2 * len(there)
    noted = cluster.in_driver(evolve, folder, "be many", most, execution__workers=workers)
    assert outcome(folder) == reference
    assert noted["workers"] == most
    assert {*noted["on"]} == there
    assert noted["preempted"] == []


def test_jobs_of_a_crashed_node_lose_no_try(cluster: ManyNodes, folder: Path, reference: dict[str, Any]) -> None:
    have(cluster, 2)
    noted = cluster.in_driver(evolve, folder, "crash", execution__max_attempts=1, execution__workers=2)
    assert outcome(folder) == reference
    assert noted["hit"] not in noted["on"]
    assert noted["lost_workers"] >= 1 and noted["retries"] >= 1
    assert {*noted["preempted"]} == {True}


def test_drained_node_gets_no_new_jobs_and_leaves_during_the_evolution(
    cluster: ManyNodes, folder: Path, reference: dict[str, Any]
) -> None:
    have(cluster, 2)
    noted = cluster.in_driver(evolve, folder, "drain", execution__max_attempts=1, execution__workers=2)
    assert outcome(folder) == reference
    assert noted["hit"] not in noted["on"], "its workers have left it, though it was still there"
    assert noted["retries"] == noted["lost_workers"] == 0, "started jobs were finished"
    assert {*noted["preempted"]} == {True}
    cluster.in_driver(wait_until_gone, noted["hit"])


@pytest.mark.parametrize("as_if_many", [False, True])
def test_drained_node_finishes_only_its_started_jobs(cluster: ManyNodes, tmp_path: Path, as_if_many: bool) -> None:
    have(cluster, 2)
    hit, at = cluster.in_driver(square_while_a_node_is_drained, tmp_path, as_if_many=as_if_many)
    begun = all_begun(tmp_path)
    assert sorted(each.job for each in begun) == [*range(100)]
    there = [each.at for each in begun if each.node_id == hit]
    assert there and max(there) < at, "jobs queued for its workers were recalled"
    assert max(each.at for each in begun) > at
    cluster.in_driver(wait_until_gone, hit)


def test_workers_do_not_use_a_gpu_node_that_joins_while_they_wait(cluster: ManyNodes, tmp_path: Path) -> None:
    have(cluster, 1)
    came, avoided = cluster.in_driver(square_while_a_gpu_node_comes, tmp_path)
    assert avoided
    assert came not in {begun.node_id for begun in all_begun(tmp_path)}


@pytest.mark.parametrize("identified", [True, False])
def test_task_of_a_lost_node_restarts_and_loses_no_try(cluster: ManyNodes, tmp_path: Path, identified: bool) -> None:
    have(cluster, 2)
    result = cluster.in_driver(run_while_its_node_is_lost, tmp_path, identified=identified)
    assert result == ("gone through", [True] if identified else [])
    first, second = all_begun(tmp_path)
    assert first.node_id != second.node_id


def test_node_that_joins_during_a_generation_is_used(
    cluster: ManyNodes, folder: Path, reference: dict[str, Any]
) -> None:
    there = have(cluster, 1)
    noted = cluster.in_driver(evolve, folder, "join")
    assert outcome(folder) == reference
    assert noted["joined"] in noted["on"]
    assert noted["joined"] not in there


def test_run_with_a_lost_head_resumes_on_another_cluster_with_the_same_bits(
    cluster: ManyNodes, folder: Path, reference: dict[str, Any]
) -> None:
    with ManyNodes(num_cpus=2) as first:
        host, _, port = first.in_driver(many_nodes.address).partition(":")
        first.lose_driver(evolve, folder, "lose the head")
        while _listens(host, int(port)):
            time.sleep(0.1)
    with pytest.raises(AssertionError, match="evolution is not complete"):
        outcome(folder)
    have(cluster, 1)
    cluster.in_driver(evolve, folder, "nothing", execution__workers=2)
    assert outcome(folder) == reference


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


def test_workers_with_low_priority_give_one_warning(tmp_path: Path) -> None:
    folders = tmp_path / "one", tmp_path / "two"
    for folder in folders:
        folder.mkdir()
    with ManyNodes(num_cpus=1, env_vars={"RAY_worker_niceness": "15"}) as cluster:
        (warning,) = cluster.in_driver(square_at_low_priority, *folders)
    assert f"the workers on {socket.gethostname()} run at nice 15" in warning
    assert "Start the node with RAY_worker_niceness=0" in warning


# ---- where workers go


def node(node_id: str, *, cpus: float = 4, gpus: float = 0, head: bool = False, **more: Any) -> Node:
    values = {"labels": {}, "alive": True, "draining": False, **more}
    return Node(node_id, "127.0.0.1", head, cpus, gpus, **values)


HEAD, WORKER, GPU = node("head", head=True), node("worker"), node("gpu", gpus=1)
NOT_FOR_WORKERS = node("other", labels={WORKERS_LABEL: "no"})


@pytest.mark.parametrize(
    ("cluster_nodes", "workers_on", "selector"),
    [
        ([HEAD, WORKER, GPU, NOT_FOR_WORKERS], [], {"ray.io/node-id": "!in(head,gpu,other)", WORKERS_LABEL: "!no"}),
        ([HEAD, WORKER, GPU], ["head"], {"ray.io/node-id": "!in(gpu)", WORKERS_LABEL: "!no"}),
        ([HEAD, WORKER, GPU], ["gpu-nodes"], {"ray.io/node-id": "!in(head)"}),
        ([HEAD, WORKER, GPU, NOT_FOR_WORKERS], ["head", "gpu-nodes"], {}),
        ([node("head", head=True, cpus=0), GPU], [], {"ray.io/node-id": "!in(head,gpu)", WORKERS_LABEL: "!no"}),
    ],
)
def test_workers_avoid_the_head_and_gpu_nodes_by_default(
    cluster_nodes: list[Node], workers_on: list[Any], selector: dict[str, str]
) -> None:
    places = Placement(ExecutionConfig(workers_on=workers_on)).places(cluster_nodes, on_head=0)
    for _ in range(6):
        place = next(places)
        assert place.options == {"scheduling_strategy": "SPREAD", "label_selector": selector}
        assert not place.on_head


@pytest.mark.parametrize("gone", [[], [node("worker", alive=False)], [node("worker", draining=True)]])
def test_only_the_cpus_of_the_head_are_used_without_other_nodes(gone: list[Node]) -> None:
    places = Placement(ExecutionConfig()).places([HEAD, GPU, *gone], on_head=1)
    for _ in range(3):
        place = next(places)
        assert place.on_head and place.options == {
            "scheduling_strategy": "DEFAULT", "label_selector": {"ray.io/node-id": "head"},
        }  # fmt: skip
    place = next(places)
    assert not place.on_head and "!in(head,gpu)" in place.options["label_selector"]["ray.io/node-id"]


@pytest.mark.parametrize(
    ("cluster_nodes", "workers_on", "left"),
    [
        ([HEAD, WORKER], [], {"head"}),
        ([HEAD, WORKER, GPU, NOT_FOR_WORKERS], [], {"head", "gpu", "other"}),
        ([HEAD, WORKER, GPU, NOT_FOR_WORKERS], ["head", "gpu-nodes"], set()),
        ([HEAD, GPU], [], {"gpu"}),
        ([HEAD, node("worker", alive=False)], [], set()),
        ([HEAD, node("worker", draining=True)], [], {"worker"}),
        ([node("head", head=True, draining=True), WORKER], ["head"], {"head"}),
    ],
)
def test_workers_leave_unsuitable_nodes(cluster_nodes: list[Node], workers_on: list[Any], left: set[str]) -> None:
    """A GPU node may come after actors were requested, and Ray then puts waiting actors on it."""
    assert Placement(ExecutionConfig(workers_on=workers_on)).unsuitable_nodes(cluster_nodes) == left
