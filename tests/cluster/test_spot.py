"""The watcher drains a node after a spot machine's notice: real nodes, stand-ins for the clouds."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError

from actors import nodes
from tests.cluster import many_nodes
from tests.cluster.many_nodes import ManyNodes
from tests.e2e.command import Command
from tests.metadata_server import AwsServer, GcpServer, wait_for

# The live actors of the driver's process.
_actors: list[Any] = []


@pytest.fixture(scope="module")
def shared() -> Iterator[ManyNodes]:
    with ManyNodes(num_cpus=1) as cluster:
        cluster.add(num_cpus=2)
        yield cluster


@pytest.fixture
def cluster(shared: ManyNodes) -> Iterator[ManyNodes]:
    """A head with one CPU, a node with two, and no actors."""
    yield shared
    shared.in_driver(_actors_end)


def start(count: int, answers: int, node_id: str | None = None) -> list[str]:
    """Start one-CPU actors, on a node or anywhere, and wait for ``answers`` of them; returns their nodes' ids.

    After that, it waits one second for further answers.
    """

    class Place:
        def node_id(self) -> str:
            node: str = ray.get_runtime_context().get_node_id()
            return node

    actor_class = ray.remote(num_cpus=1)(Place)
    where = {} if node_id is None else {"label_selector": {"ray.io/node-id": node_id}}
    new = [actor_class.options(scheduling_strategy="SPREAD", **where).remote() for _ in range(count)]
    _actors.extend(new)
    references = [actor.node_id.remote() for actor in new]
    ray.wait(references, num_returns=answers, timeout=600)
    answered, _ = ray.wait(references, num_returns=count, timeout=1)
    nodes_of_them: list[str] = ray.get(answered)
    return nodes_of_them


def first_answers_from() -> str:
    """The id of the node that the first actor answers from."""
    node: str = ray.get(_actors[0].node_id.remote(), timeout=600)
    return node


def first_was_preempted() -> bool:
    """Whether Ray reports, after the first actor's death, that its node was preempted."""
    while True:
        try:
            ray.get(_actors[0].node_id.remote(), timeout=10)
        except ActorDiedError as error:
            return bool(error.preempted)
        except ActorUnavailableError:
            pass
        time.sleep(0.1)


def drain_until(node_id: str, deadline_s: float) -> None:
    """Drain a node with another deadline, which may be past."""
    nodes.drain(node_id, many_nodes.address(), reason="a test", deadline_s=deadline_s)


def _actors_end() -> None:
    for actor in _actors:
        ray.kill(actor)
    _actors.clear()


def watch(node_id: str, server: AwsServer | GcpServer) -> Command:
    watcher = Command("--poll-s", "0.1", "--node-id", node_id, environment=server.environment, module="cluster.spot")
    watcher.wait_until(lambda: len(server.asked) > 4)
    return watcher


def test_aws_notice_drains_the_node_until_the_time_of_the_notice(cluster: ManyNodes) -> None:
    leaving = cluster.add(num_cpus=2)
    assert cluster.in_driver(start, 1, 1, leaving) == [leaving]
    with AwsServer() as aws:
        watcher = watch(leaving, aws)
        assert cluster.in_driver(nodes.draining_nodes) == {}
        when = float(int(time.time()) + 1200)  # notices are in whole seconds
        aws.interrupt("terminate", when)
        code, output = watcher.finish()
    assert code == 0, output
    assert re.search(rf"AWS will terminate this spot instance at .*: draining Ray node {leaving}", output)

    assert cluster.in_driver(nodes.draining_nodes) == {leaving: when}
    known = {node.id: node for node in cluster.in_driver(nodes.nodes)}
    assert [node.id for node in known.values() if node.draining] == [leaving]
    assert known[leaving].alive
    (head,) = [node.id for node in known.values() if node.is_head]
    (staying,) = known.keys() - {head, leaving}
    placed = cluster.in_driver(start, 4, 3)
    assert sorted(placed) == sorted([head, staying, staying]), "the free CPU of the draining node is not used"
    assert cluster.in_driver(first_answers_from) == leaving, "running actors continue"

    deadline_s = time.time() + 1
    cluster.in_driver(drain_until, leaving, deadline_s)
    assert cluster.in_driver(nodes.draining_nodes) == {leaving: pytest.approx(deadline_s, abs=0.001)}
    wait_for(lambda: time.time() > deadline_s + 1)
    assert cluster.in_driver(first_answers_from) == leaving, "the cloud ends the node at the deadline, not Ray"
    cluster.kill(leaving)
    assert cluster.in_driver(first_was_preempted), "Ray knows that the node was preempted"


def test_gcp_preemption_drains_the_node_and_an_idle_node_leaves_at_once(cluster: ManyNodes) -> None:
    node_id = cluster.add(num_cpus=2, num_gpus=1, labels={"kind": "spot"})
    (node,) = [node for node in cluster.in_driver(nodes.nodes) if node.id == node_id]
    assert (node.num_cpus, node.num_gpus, node.is_head, node.alive, node.draining) == (2, 1, False, True, False)
    assert node.labels == {"kind": "spot", "ray.io/node-id": node_id}
    assert node.address == "127.0.0.1"
    with GcpServer() as gcp, AwsServer() as quiet:
        watcher, second = watch(node_id, gcp), watch(node_id, quiet)
        gcp.values["preempted"] = "TRUE"
        code, output = watcher.finish()
        assert code == 0, output
        assert f"GCP preempts this machine, 30 s from now: draining Ray node {node_id}" in output
        # A watcher without a notice ends with its node.
        code, output = second.finish()
        assert code == 0, output
        assert f"Ray node {node_id} has ended" in output
    (node,) = [node for node in cluster.in_driver(nodes.nodes) if node.id == node_id]
    assert (node.alive, node.draining) == (False, False)


def test_node_id_is_required_with_several_nodes_on_a_machine(cluster: ManyNodes) -> None:
    with AwsServer() as aws:
        code, output = Command(environment=aws.environment, module="cluster.spot").finish()
    assert code == 2, output
    assert "Ray nodes run on this machine, choose one with --node-id: " in output
    assert aws.asked == []


def test_unreachable_cluster_is_an_error_at_the_start(cluster: ManyNodes) -> None:
    (head,) = [node for node in cluster.in_driver(nodes.nodes) if node.is_head]
    with AwsServer() as aws:
        no_token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/nowhere"}
        environment = {**aws.environment, **no_token}
        code, output = Command("--node-id", head.id, environment=environment, module="cluster.spot").finish()
    assert code == 1, output
    assert "could not be notified: see the error above" in output
    assert aws.asked == []
