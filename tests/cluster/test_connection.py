"""How a command comes to a Ray, and what it says where it cannot."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil
import pytest

from tests.cluster.head import free_ports
from tests.e2e import command

ON_RAY = ("-o", "execution.executor=ray", "-o", "execution.workers=1")


def refused(folder: Path, address: str) -> str:
    """What is said where a run is to join a cluster at an address, before anything is written."""
    arguments = ("run", "smoke", *ON_RAY, "--run-dir", str(folder / "run"))
    code, output = command.run(*arguments, environment={"RAY_ADDRESS": address})
    assert code == 2, output
    assert "Traceback" not in output
    assert address in output
    assert not (folder / "run").exists()
    return output


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "ray://127.0.0.1:10001"])
def test_the_address_of_another_of_ray_s_servers_is_refused(tmp_path: Path, address: str) -> None:
    assert "joins a cluster by HOST:PORT" in refused(tmp_path, address)


def test_a_place_where_nobody_is_is_refused(tmp_path: Path) -> None:
    output = refused(tmp_path, f"127.0.0.1:{free_ports(1)[0]}")
    assert "no Ray cluster answers" in output
    assert "Connection refused" in output
    assert "unset RAY_ADDRESS" in output


@pytest.fixture
def web_server() -> Iterator[HTTPServer]:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_web_server_is_refused(web_server: HTTPServer, tmp_path: Path) -> None:
    assert "another server listens there" in refused(tmp_path, f"127.0.0.1:{web_server.server_port}")


def test_the_private_ray_of_another_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    arguments = ("collect", "smoke", "--run-dir", str(tmp_path / "other" / "run"))
    other = command.frozen(arguments, "ray", "record-created@1")
    below = [word for each in psutil.Process(other.process.pid).children(recursive=True) for word in each.cmdline()]
    (address,) = {word.partition("=")[2] for word in below if re.fullmatch(r"--gcs-address=127\.0\.0\.1:\d+", word)}
    assert f"the private one of another run (process {other.process.pid})" in refused(tmp_path, address)


def test_a_local_ray_that_does_not_come_up_is_tried_again_and_then_an_error(tmp_path: Path) -> None:
    """Its sockets have no place under a long path."""
    (long := tmp_path / ("x" * 100)).mkdir()
    arguments = ("run", "smoke", *ON_RAY, "--run-dir", str(tmp_path / "run"))
    code, output = command.run(*arguments, environment={"RAY_TMPDIR": str(long)})
    assert code == 1, output
    assert "trying once more" in output
    assert "no local Ray starts on this machine, in two attempts" in output
    assert "-o execution.executor=in-process" in output
    assert "Traceback" not in output


def test_packages_of_the_same_names_where_the_command_is_called_are_not_taken_for_ours(tmp_path: Path) -> None:
    """By the command as it is installed: `python -m` would be asked for what lies there."""
    for package in ("pipeline", "actors", "configs"):
        (tmp_path / package).mkdir()
        for module in ("__init__", "config", "worker"):
            (tmp_path / package / f"{module}.py").write_text("raise SystemExit('of somebody else')")
    arguments = ["collect", "smoke", *ON_RAY, "--run-dir", str(tmp_path / "run")]
    with (tmp_path / "log").open("w") as log:
        done = subprocess.run(
            [Path(sys.executable).parent / "world-models", *arguments],
            cwd=tmp_path, check=False, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    assert done.returncode == 0, (tmp_path / "log").read_text()
