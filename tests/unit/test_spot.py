"""The spot watcher with stand-ins for the clouds' metadata services, which are real HTTP servers."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from actors import nodes
from cluster import metadata, spot
from cluster.metadata import Aws, Gcp, Notice
from pipeline.base.errors import ClusterError, ConfigError
from pipeline.base.machine import process_started
from tests.metadata_server import Answer, AwsServer, GcpServer, MetadataServer, wait_for

ROOT = Path(__file__).parents[2]
NODE = nodes.LocalNode("ab" * 28, "127.0.0.1:1", os.getpid(), process_started(os.getpid()) or 0.0)
WHEN = 1_900_000_120.0


@pytest.fixture
def drains(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str, float | None]]:
    """The drain calls: node, cluster, reason and deadline. This process stands in for the Ray node."""
    drained: list[tuple[str, str, str, float | None]] = []

    def drain(node_id: str, cluster_address: str, *, reason: str, deadline_s: float | None) -> None:
        drained.append((node_id, cluster_address, reason, deadline_s))

    monkeypatch.setattr(nodes, "drain", drain)
    as_if_on_a_node(monkeypatch)
    return drained


def as_if_on_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "this_node", lambda _: NODE)
    monkeypatch.setattr(spot, "_check", lambda _: None)


def make_services_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{port}")


class Watching:
    """The wait for a notice, in a thread."""

    def __init__(self, *clouds: metadata.Cloud, poll_s: float = 0.01, lives: Callable[[], bool] = lambda: True) -> None:
        self.notice: Notice | None = None
        self.over = False

        def watch() -> None:
            self.notice = spot.await_notice(clouds, lives, poll_s=poll_s)
            self.over = True

        self._thread = threading.Thread(target=watch, daemon=True)  # a failed test leaves it running
        self._thread.start()

    def end(self) -> Notice | None:
        self._thread.join(30)
        assert self.over
        return self.notice


def wait_for_requests(server: MetadataServer, times: int) -> None:
    """Wait until a server has got ``times`` more requests."""
    before = len(server.asked)
    wait_for(lambda: len(server.asked) >= before + times)


def test_aws_is_polled_with_a_token_until_a_notice(aws: AwsServer) -> None:
    watching = Watching(Aws())
    wait_for_requests(aws, 5)
    assert not watching.over
    aws.interrupt("terminate", WHEN)
    assert watching.end() == Notice("AWS will terminate this spot instance at 2030-03-17T17:48:40Z", WHEN)
    tokens = [path for method, path in aws.asked if method == "PUT"]
    assert tokens == ["/latest/api/token"], "one token serves for hours"
    assert {path for method, path in aws.asked if method == "GET"} == {"/latest/meta-data/spot/instance-action"}


@pytest.mark.parametrize(
    ("name", "value", "what", "seconds"),
    [
        ("preempted", "TRUE", "GCP preempts this machine", 30),
        ("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE", "GCP ends this machine for host maintenance", 60),
    ],
)
def test_gcp_is_polled_until_a_notice(gcp: GcpServer, name: str, value: str, what: str, seconds: float) -> None:
    watching = Watching(Gcp())
    wait_for_requests(gcp, 5)
    assert not watching.over
    before = time.time()
    gcp.values[name] = value
    notice = watching.end()
    assert notice is not None
    assert notice.what == what
    assert notice.deadline_s is not None
    assert before + seconds <= notice.deadline_s <= time.time() + seconds


@pytest.mark.parametrize("status", [500, 503, 429, 302])
@pytest.mark.parametrize("which", ["aws", "gcp"])
def test_watcher_waits_through_service_errors(
    which: str, status: int, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "cluster.spot")
    server = request.getfixturevalue(which)
    watching = Watching(Aws() if which == "aws" else Gcp())
    wait_for_requests(server, 4)
    server.faults = [(status, "not now")] * 8
    wait_for(lambda: not server.faults)
    wait_for_requests(server, 4)
    assert not watching.over
    if which == "aws":
        server.interrupt("terminate", WHEN)
    else:
        server.values["preempted"] = "TRUE"
    assert watching.end() is not None
    messages = [record.message for record in caplog.records]
    assert len([message for message in messages if f"answered {status}" in message]) == 1, "once, not each time"
    assert "the metadata service answers again" in messages


def test_hanging_request_times_out_and_is_repeated(aws: AwsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    watching = Watching(Aws())
    wait_for_requests(aws, 4)
    monkeypatch.setattr(metadata, "_TIMEOUT_S", 0.2)
    aws.faults = [None, None]
    wait_for(lambda: not aws.faults)
    aws.interrupt("terminate", WHEN)
    assert watching.end() is not None


def test_watcher_waits_through_a_short_absence_of_the_service(
    aws: AwsServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cloud = Aws()
    watching = Watching(cloud)
    wait_for_requests(aws, 4)
    port = cloud._service._port
    cloud._service._port = 1
    wait_for(lambda: "Connection refused" in caplog.text)
    cloud._service._port = port
    aws.interrupt("terminate", WHEN)
    assert watching.end() is not None


@pytest.mark.parametrize("faults", [[], [(500, "")] * 100])
def test_watcher_sleeps_between_two_requests(aws: AwsServer, faults: list[Answer | None]) -> None:
    ended = threading.Event()
    watching = Watching(Aws(), poll_s=0.1, lives=lambda: not ended.is_set())
    wait_for_requests(aws, 3)
    aws.faults = faults
    began = time.monotonic()
    before = len(aws.asked)
    wait_for_requests(aws, 8)
    assert len(aws.asked) - before <= (time.monotonic() - began) / 0.1 + 1
    ended.set()
    assert watching.end() is None


def test_watcher_ends_with_its_ray_node(aws: AwsServer) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = process_started(process.pid)
    assert started is not None
    node = nodes.LocalNode("ab" * 28, "127.0.0.1:1", process.pid, started)
    watching = Watching(Aws(), lives=node.lives)
    wait_for_requests(aws, 3)
    assert not watching.over
    process.communicate(b"\n")
    assert watching.end() is None


def test_process_with_a_reused_pid_is_another_node() -> None:
    started = process_started(os.getpid())
    assert started is not None
    assert nodes.LocalNode("ab" * 28, "127.0.0.1:1", os.getpid(), started).lives()
    assert not nodes.LocalNode("ab" * 28, "127.0.0.1:1", os.getpid(), started - 1).lives()


@pytest.mark.parametrize("which", ["aws", "gcp"])
def test_cloud_is_identified_by_its_answer(
    which: str, monkeypatch: pytest.MonkeyPatch, drains: list[tuple[str, str, str, float | None]]
) -> None:
    """Both clouds' services have one address, and each answers the other's requests with an error."""
    with ExitStack() as stack:
        server: AwsServer | GcpServer
        if which == "aws":
            server = stack.enter_context(AwsServer())
            server.interrupt("terminate", WHEN)
        else:
            server = stack.enter_context(GcpServer())
            server.values["preempted"] = "TRUE"
        place = server.environment[server.variable].removeprefix("http://")
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://{place}")
        monkeypatch.setenv("GCE_METADATA_HOST", place)
        assert spot.main(["--poll-s", "0.01"]) == 0
        ((node_id, address, reason, deadline_s),) = drains
        assert (node_id, address) == (NODE.id, NODE.cluster_address)
        assert reason.startswith(which.upper())
        assert deadline_s is not None


def test_watcher_ends_with_a_message_outside_a_cloud(
    monkeypatch: pytest.MonkeyPatch,
    drains: list[tuple[str, str, str, float | None]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    make_services_unreachable(monkeypatch)
    assert spot.main(["--poll-s", "0.01"]) == 2
    assert drains == []
    (message,) = [record.message for record in caplog.records if record.levelno >= logging.ERROR]
    assert "no metadata service answers here (AWS: http://127.0.0.1:" in message
    assert "GCP: http://127.0.0.1:" in message


def test_service_that_starts_later_is_found(aws: AwsServer) -> None:
    aws.faults = [(503, "")] * 4
    aws.interrupt("terminate", WHEN)
    assert Watching(Aws()).end() is not None


def test_drain_is_repeated_until_the_cluster_accepts_it(aws: AwsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def drain(*_: object, **__: object) -> None:
        tries.append(time.time())
        if len(tries) < 3:
            raise ClusterError("it does not answer")

    monkeypatch.setattr(nodes, "drain", drain)
    as_if_on_a_node(monkeypatch)
    aws.interrupt("terminate", time.time() + 60)
    assert spot.main(["--cloud", "aws", "--poll-s", "0.01"]) == 0
    assert len(tries) == 3


@pytest.mark.parametrize("gone", ["the time", "the node"])
def test_drain_is_not_repeated_after_its_deadline(
    aws: AwsServer, monkeypatch: pytest.MonkeyPatch, gone: str, caplog: pytest.LogCaptureFixture
) -> None:
    def drain(*_: object, **__: object) -> None:
        raise ClusterError("it does not answer")

    monkeypatch.setattr(nodes, "drain", drain)
    node = NODE if gone == "the time" else nodes.LocalNode(NODE.id, NODE.cluster_address, NODE.pid, NODE.started - 1)
    aws.interrupt("terminate", time.time() - 5 if gone == "the time" else WHEN)
    notice = Aws().notice()
    assert notice is not None
    with pytest.raises(ClusterError, match="it does not answer"):
        spot.drain_node(node, notice, poll_s=0.01)
    as_if_on_a_node(monkeypatch)
    if gone == "the time":
        assert spot.main(["--poll-s", "0.01"]) == 1
        assert "it does not answer" in caplog.text


def test_exactly_one_ray_node_must_run_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [nodes.LocalNode(letter * 56, "127.0.0.1:1", 1, 1.0) for letter in "ab"]
    monkeypatch.setattr(nodes, "_local_nodes", lambda: found)
    assert nodes.this_node("b" * 56) == found[1]
    said = f"2 Ray nodes run on this machine, choose one with --node-id: {'a' * 56}, {'b' * 56}"
    with pytest.raises(ConfigError, match=said):
        nodes.this_node()
    with pytest.raises(ConfigError, match=f"Ray node cc does not run on this machine; running: {'a' * 56}, "):
        nodes.this_node("cc")
    del found[0]
    assert nodes.this_node() == found[0]
    del found[0]
    with pytest.raises(ConfigError, match="no Ray node runs on this machine: start one first with `ray start"):
        nodes.this_node()


def test_waiting_watcher_uses_little_memory() -> None:
    """The watcher runs on every worker node: Ray, which takes 70 MB and half a second, is imported only for a drain."""
    code = "import cluster.spot, sys; print('ray' in sys.modules, flush=True); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "False\n"
    assert psutil.Process(process.pid).memory_full_info().uss < 30e6
    process.communicate("\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--poll-s", "0"], "0 is not a finite number above 0"),
        (["--poll-s", "nan"], "nan is not a finite number above 0"),
        (["--cloud", "azure"], "invalid choice: 'azure'"),
    ],
)
def test_wrong_command_line_is_refused(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        spot.main(arguments)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err
