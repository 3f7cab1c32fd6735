"""The connection of a command to Ray, and its error messages."""

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


def refusal(folder: Path, address: str) -> str:
    """The output of a run that is refused before it writes, because of the address of its cluster."""
    arguments = ("run", "smoke", *ON_RAY, "--run-dir", str(folder / "run"))
    code, output = command.run(*arguments, environment={"RAY_ADDRESS": address})
    assert code == 2, output
    assert "Traceback" not in output
    assert address in output
    assert not (folder / "run").exists()
    return output


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "ray://127.0.0.1:10001"])
def test_address_of_another_ray_server_is_refused(tmp_path: Path, address: str) -> None:
    assert "joins a cluster by HOST:PORT" in refusal(tmp_path, address)


def test_address_without_a_server_is_refused(tmp_path: Path) -> None:
    output = refusal(tmp_path, f"127.0.0.1:{free_ports(1)[0]}")
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


def test_address_of_a_web_server_is_refused(web_server: HTTPServer, tmp_path: Path) -> None:
    assert "another server listens there" in refusal(tmp_path, f"127.0.0.1:{web_server.server_port}")


def test_private_ray_of_another_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    arguments = ("collect", "smoke", "--run-dir", str(tmp_path / "other" / "run"))
    other = command.frozen(arguments, "ray", "record-created@1")
    below = [word for each in psutil.Process(other.process.pid).children(recursive=True) for word in each.cmdline()]
    (address,) = {word.partition("=")[2] for word in below if re.fullmatch(r"--gcs-address=127\.0\.0\.1:\d+", word)}
    assert f"the private one of another run (process {other.process.pid})" in refusal(tmp_path, address)


def test_local_ray_that_fails_to_start_is_an_error_after_a_retry(tmp_path: Path) -> None:
    """The path of its sockets would be too long."""
    (long := tmp_path / ("x" * 100)).mkdir()
    arguments = ("run", "smoke", *ON_RAY, "--run-dir", str(tmp_path / "run"))
    code, output = command.run(*arguments, environment={"RAY_TMPDIR": str(long)})
    assert code == 1, output
    assert "trying once more" in output
    assert "no local Ray starts on this machine, in two attempts" in output
    assert "-o execution.executor=in-process" in output
    assert "Traceback" not in output


def test_packages_of_the_same_names_in_the_current_folder_are_ignored(tmp_path: Path) -> None:
    """With the installed command, because `python -m` imports from the current folder."""
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
