"""A real S3 server on this machine: SeaweedFS, from a package.

``python -m tests.s3_server COMMAND...`` runs a command with a server that has the bucket ``s3://bench``.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import boto3.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from pipeline.base.errors import ConfigError, StorageError

_HOST = "127.0.0.1"
# Below the ephemeral ports of operating systems, and above those that Ray gives its workers.
_FIRST_PORT, _LAST_PORT = 20_000, 32_000
_SERVICES = ("master", "volume", "filer", "s3")

_SOCKETS = Path("/tmp")  # fixed location of the server's sockets

_STARTS = 3
_READY_S = 60.0
_STOP_S = 1.0
_LOG_LINES = 15


def server_program() -> str | None:
    """Path of the server's program; None if its package, which contains no Python module, is not installed."""
    return shutil.which("weed", path=f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ.get('PATH', '')}")


class S3Server:
    """Context manager of an S3 server on the loopback interface, with its own credentials.

    With ``setpriv`` (on Linux) the kernel also kills the server when the thread that started it ends for any reason.
    On other systems a killed process leaves its server behind.

    Args:
        folder: Folder for data and log.

    Attributes:
        endpoint: URL of the server.
        environment: AWS variables that select the server.
        client: boto3 client of the server.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).absolute()
        self.endpoint = ""
        self._access_key, self._secret_key = secrets.token_hex(10), secrets.token_hex(20)
        self._process: subprocess.Popen[bytes] | None = None
        self._ports: list[int] = []

    def __enter__(self) -> Self:
        """Start the server, and wait until it accepts objects.

        Raises:
            ConfigError: The package is not installed.
            StorageError: The server did not start. The message contains the end of its log.
        """
        program = server_program()
        if program is None:
            raise ConfigError("the S3 server is not installed: pip install 'world-models-ray[dev]'")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._configure()
        try:
            for _ in range(_STARTS):
                self._start(program)
                if self._answers():
                    return self
                self._stop()  # the server ended by itself: another process took one of its ports first
            raise StorageError(f"the S3 server ended {_STARTS} times before it was up. {self._log_end()}")
        except BaseException:
            self._stop()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    @property
    def environment(self) -> dict[str, str]:
        """AWS variables that select the server."""
        return {
            "AWS_ACCESS_KEY_ID": self._access_key,
            "AWS_SECRET_ACCESS_KEY": self._secret_key,
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def create_bucket(self, name: str) -> None:
        """Create a bucket; a name has three letters or more."""
        self.client.create_bucket(Bucket=name)

    @property
    def pid(self) -> int:
        """Process ID of the server."""
        assert self._process is not None
        return self._process.pid

    def _configure(self) -> None:
        key = {"accessKey": self._access_key, "secretKey": self._secret_key}
        identity = {"name": "owner", "credentials": [key], "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
        path = self.folder / "s3.json"
        path.touch(mode=0o600)
        path.write_text(json.dumps({"identities": [identity]}))

    def _start(self, program: str) -> None:
        self._ports = _free_ports(2 * len(_SERVICES))
        http = dict(zip(_SERVICES, self._ports[::2], strict=True))
        grpc = dict(zip(_SERVICES, self._ports[1::2], strict=True))
        (self.folder / "data").mkdir(exist_ok=True)
        setpriv = shutil.which("setpriv")
        command = [
            *([setpriv, "--pdeathsig", "KILL"] if setpriv else []),
            *(program, "server", "-dir=data", f"-ip={_HOST}", f"-ip.bind={_HOST}", "-filer", "-s3"),
            *(f"-{service}.port={port}" for service, port in http.items()),
            *(f"-{service}.port.grpc={port}" for service, port in grpc.items()),
            *("-s3.config=s3.json", "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.autoCreateBucket=false"),
            *("-s3.localSocket=s3.sock", "-filer.localSocket=filer.sock", "-master.telemetry=false"),
            *("-volume.max=1000", "-master.volumeSizeLimitMB=1024", "-volume.preStopSeconds=0"),
        ]
        # The user's own settings, in files or variables, must not affect this server. It also logs into its TMPDIR.
        environment = {"HOME": ".", "TMPDIR": ".", "PATH": os.environ.get("PATH", "")}
        with (self.folder / "server.log").open("wb") as log:
            self._process = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.endpoint = f"http://{_HOST}:{http['s3']}"
        self.client = self._new_client()

    def _new_client(self) -> Any:
        config = Config(
            connect_timeout=5,
            read_timeout=10,
            retries={"mode": "standard", "total_max_attempts": 1},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self._access_key,
            aws_secret_access_key=self._secret_key,
            region_name=self.environment["AWS_DEFAULT_REGION"],
            config=config,
        )

    def _answers(self) -> bool:
        """Wait until the server accepts an object; False if its process ends instead.

        Raises:
            StorageError: The server did not answer in time.
        """
        assert self._process is not None
        deadline = time.monotonic() + _READY_S
        while self._process.poll() is None:
            try:
                self._put_and_remove()
                return True
            except (BotoCoreError, ClientError) as error:
                if time.monotonic() > deadline:
                    raise StorageError(
                        f"the S3 server does not answer after {_READY_S:.0f} s ({error}). {self._log_end()}"
                    ) from error
                time.sleep(0.1)
        return False

    def _put_and_remove(self) -> None:
        bucket = "is-it-ready"
        if bucket not in [entry["Name"] for entry in self.client.list_buckets()["Buckets"]]:
            self.client.create_bucket(Bucket=bucket)
        # The server answers before it can store an object.
        self.client.put_object(Bucket=bucket, Key="object", Body=b"bytes")
        self.client.delete_object(Bucket=bucket, Key="object")
        self.client.delete_bucket(Bucket=bucket)

    def _stop(self) -> None:
        if self._process is None:
            return
        for signum in (signal.SIGTERM, signal.SIGKILL):
            self._process.send_signal(signum)
            try:
                self._process.wait(_STOP_S)
                break
            except subprocess.TimeoutExpired:
                continue
        self._process = None
        for port in self._ports:
            for socket_file in _SOCKETS.glob(f"seaweedfs-*-grpc-{port}.sock"):
                socket_file.unlink(missing_ok=True)

    def _log_end(self) -> str:
        path = self.folder / "server.log"
        lines = path.read_text(errors="replace").splitlines()[-_LOG_LINES:] if path.exists() else []
        return "\n".join([f"The end of {path}:", *lines])


def _free_ports(count: int) -> list[int]:
    """Choose ports that are free now."""
    sockets: list[socket.socket] = []
    try:
        while len(sockets) < count:
            candidate = socket.socket()
            sockets.append(candidate)
            while True:
                port = _FIRST_PORT + secrets.randbelow(_LAST_PORT - _FIRST_PORT)
                try:
                    candidate.bind((_HOST, port))
                    break
                except OSError:
                    continue
        return [candidate.getsockname()[1] for candidate in sockets]
    finally:
        for candidate in sockets:
            candidate.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, S3Server(folder) as server:
        server.create_bucket("bench")
        code = subprocess.run(sys.argv[1:], check=False, env=dict(os.environ, **server.environment)).returncode
    sys.exit(code)
