"""Stand-ins for the metadata services of AWS and GCP: real HTTP servers on loopback, as strict as the real ones."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from uuid import uuid4

# Method, path and headers (by lower-case name) to status and text.
Answer = tuple[int, str]
Headers = dict[str, str]


class MetadataServer:
    """A server that runs within a context.

    Attributes:
        faults: Answers to the next requests, in order, in place of the usual ones; None for no answer.
        asked: Method and path of every request so far.
        environment: Variables that lead a command to this server.
    """

    variable: str
    scheme = ""

    def __init__(self) -> None:
        self.faults: list[Answer | None] = []
        self.asked: list[tuple[str, str]] = []
        self._over = threading.Event()

    @property
    def environment(self) -> dict[str, str]:
        return {self.variable: f"{self.scheme}127.0.0.1:{self._server.server_port}"}

    def answer(self, method: str, path: str, headers: Headers) -> Answer:
        raise NotImplementedError

    def __enter__(self) -> Self:
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                stand_in.asked.append((self.command, self.path))
                headers = {name.lower(): value for name, value in self.headers.items()}
                answer = (
                    stand_in.faults.pop(0) if stand_in.faults else stand_in.answer(self.command, self.path, headers)
                )
                if answer is None:
                    stand_in._over.wait()
                    return
                status, text = answer
                self.send_response(status)
                self.send_header("Content-Length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text.encode())

            do_PUT = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class AwsServer(MetadataServer):
    """The metadata service of EC2, version 2 only.

    Attributes:
        documents: Documents below ``meta-data``, by path.
    """

    variable = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
    scheme = "http://"

    def __init__(self) -> None:
        super().__init__()
        self.documents: dict[str, str] = {"instance-id": "i-0123456789abcdef0"}
        self._tokens: set[str] = set()

    def interrupt(self, action: str, when_s: float) -> None:
        """Publish the notice of an interruption at a time, in seconds since the epoch."""
        when = f"{datetime.fromtimestamp(when_s, UTC):%Y-%m-%dT%H:%M:%SZ}"
        self.documents["spot/instance-action"] = json.dumps({"action": action, "time": when})

    def expire(self) -> None:
        """Expire all tokens."""
        self._tokens.clear()

    def answer(self, method: str, path: str, headers: Headers) -> Answer:
        if (method, path) == ("PUT", "/latest/api/token"):
            lifetime = headers.get("x-aws-ec2-metadata-token-ttl-seconds", "")
            if not lifetime.isdigit() or not 1 <= int(lifetime) <= 21600:
                return 400, "Bad Request"
            token = uuid4().hex
            self._tokens.add(token)
            return 200, token
        if headers.get("x-aws-ec2-metadata-token") not in self._tokens:
            return 401, "Unauthorized"
        document = self.documents.get(path.removeprefix("/latest/meta-data/"))
        return (404, "Not Found") if document is None else (200, document)


class GcpServer(MetadataServer):
    """The metadata service of Compute Engine.

    Attributes:
        values: Values of the instance, by name.
    """

    variable = "GCE_METADATA_HOST"

    def __init__(self) -> None:
        super().__init__()
        self.values = {"preempted": "FALSE", "maintenance-event": "NONE"}

    def answer(self, method: str, path: str, headers: Headers) -> Answer:
        if headers.get("metadata-flavor") != "Google" or "x-forwarded-for" in headers:
            return 403, "Forbidden"
        value = self.values.get(path.removeprefix("/computeMetadata/v1/instance/"))
        if value is None:
            return 404, "Not Found"
        return (200, value) if method == "GET" else (405, "Method Not Allowed")


def wait_for(when: Callable[[], bool], timeout_s: float = 600.0) -> None:
    """Wait until a condition holds."""
    pause = threading.Event()
    for _ in range(int(timeout_s / 0.01)):
        if when():
            return
        pause.wait(0.01)
    raise AssertionError("the awaited event never came")
