"""A proxy in front of a real S3 server. It answers, hangs or closes the connection on request."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

_UPSTREAM_TIMEOUT_S = 60.0


@dataclass
class Exchange:
    """One request and the ways to answer it. Without a reply, the connection is closed."""

    method: str
    path: str
    request: bytes
    upstream: tuple[str, int]
    client: socket.socket
    over: threading.Event

    def forward(self) -> bytes:
        """The server's reply, whole."""
        with socket.create_connection(self.upstream, timeout=_UPSTREAM_TIMEOUT_S) as server:
            server.sendall(self.request)
            parts = []
            while part := server.recv(1 << 16):
                parts.append(part)
        return b"".join(parts)

    def reply(self, reply: bytes) -> None:
        self.client.sendall(reply)


Fault = Callable[[Exchange], None]
Matches = Callable[[str, str], bool]


def answer(status: int, code: str) -> Fault:
    """An error as S3 sends it; the request does not reach the server."""

    def fault(exchange: Exchange) -> None:
        body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>made up</Message></Error>'.encode()
        head = f"HTTP/1.1 {status} Made Up\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
        exchange.reply(head.encode() + b"Connection: close\r\n\r\n" + (b"" if exchange.method == "HEAD" else body))

    return fault


def page(text: str) -> Fault:
    """Status 200, with a page that no S3 server sends."""

    def fault(exchange: Exchange) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {len(text)}\r\nConnection: close\r\n\r\n"
        exchange.reply((head + text).encode())

    return fault


def hang(exchange: Exchange) -> None:
    """No answer at all."""
    exchange.over.wait()


def drop_request(exchange: Exchange) -> None:
    """A connection closed before the request reaches the server."""


def drop_reply(exchange: Exchange) -> None:
    """A connection closed after the server has executed the request."""
    exchange.forward()


def cut_body(exchange: Exchange) -> None:
    """The reply's head and half of its body."""
    head, _, body = exchange.forward().partition(b"\r\n\r\n")
    exchange.reply(head + b"\r\n\r\n" + body[: len(body) // 2])


def cut_between_chunks(exchange: Exchange) -> None:
    """The reply in chunks, without the second one: every chunk is whole, but the body is too short."""
    head, _, body = exchange.forward().partition(b"\r\n\r\n")
    half = body[: len(body) // 2]
    lines = [*_without(head, b"content-length"), b"Transfer-Encoding: chunked"]
    exchange.reply(b"\r\n".join(lines) + b"\r\n\r\n%x\r\n%s\r\n" % (len(half), half))


def stall_in_body(exchange: Exchange) -> None:
    """The reply's head and half of its body, then nothing while the client waits."""
    cut_body(exchange)
    exchange.over.wait()


def dated(date: str | None) -> Fault:
    """The reply with another Date header, or with none."""

    def fault(exchange: Exchange) -> None:
        head, _, body = exchange.forward().partition(b"\r\n\r\n")
        lines = _without(head, b"date") + ([f"Date: {date}".encode()] if date else [])
        exchange.reply(b"\r\n".join(lines) + b"\r\n\r\n" + body)

    return fault


def delay(seconds: float) -> Fault:
    def fault(exchange: Exchange) -> None:
        exchange.over.wait(seconds)
        exchange.reply(exchange.forward())

    return fault


def after(action: Callable[[], object]) -> Fault:
    """Calls a function, then forwards the request."""

    def fault(exchange: Exchange) -> None:
        action()
        exchange.reply(exchange.forward())

    return fault


def everything(method: str, path: str) -> bool:
    return True


def only(wanted: str, ending: str = "") -> Matches:
    """Requests of one method whose path has this ending."""
    return lambda method, path: method == wanted and path.endswith(ending)


@dataclass
class _Plan:
    fault: Fault
    matches: Matches
    left: float


class FaultProxy:
    """Forwards requests unchanged, except for the faults that ``fail`` sets. A context manager.

    Args:
        endpoint: URL of the server.

    Attributes:
        endpoint: URL of the proxy.
        requests: (method, path) of all requests so far.
        faulty: (method, path) of the requests that met a fault.
    """

    def __init__(self, endpoint: str) -> None:
        address = urlsplit(endpoint)
        assert address.hostname is not None
        assert address.port is not None
        self._upstream = (address.hostname, address.port)
        self._lock = threading.Lock()
        self._over = threading.Event()
        self.reset()

    def __enter__(self) -> Self:
        proxy = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                # A client that has closed the connection is no error here.
                with suppress(ConnectionError):
                    proxy._serve(self.request)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            block_on_close = False
            request_queue_size = 64

        self._server = Server(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), name="fault-proxy", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()

    def reset(self) -> None:
        """Remove all faults and requests, and close the hanging connections."""
        with self._lock:
            self._over.set()
            self._over = threading.Event()
            self._plans: list[_Plan] = []
            self.requests: list[tuple[str, str]] = []
            self.faulty: list[tuple[str, str]] = []

    def fail(self, fault: Fault, matches: Matches, times: float = 1) -> None:
        """Set a fault for the next ``times`` matching requests (``inf``: for all). Earlier faults come first."""
        with self._lock:
            self._plans.append(_Plan(fault, matches, times))

    def count(self, method: str) -> int:
        """The number of requests of a method so far."""
        with self._lock:
            return sum(seen == method for seen, _ in self.requests)

    def _serve(self, client: socket.socket) -> None:
        received = _received(client)
        if received is None:
            return
        head, body = received
        method, path, _ = head.split(b"\r\n", 1)[0].decode().split(" ", 2)
        request = b"\r\n".join([*_without(head, b"connection", b"expect"), b"Connection: close", b"", body])
        exchange = Exchange(method, path, request, self._upstream, client, self._over)
        fault = self._next_fault(method, path)
        if fault is None:
            exchange.reply(exchange.forward())
        else:
            fault(exchange)

    def _next_fault(self, method: str, path: str) -> Fault | None:
        with self._lock:
            self.requests.append((method, path))
            for plan in self._plans:
                if plan.left > 0 and plan.matches(method, path):
                    plan.left -= 1
                    self.faulty.append((method, path))
                    return plan.fault
        return None


def _received(client: socket.socket) -> tuple[bytes, bytes] | None:
    """A request's head and body; None if the client closed the connection before its request was complete."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = client.recv(1 << 16)
        if not part:
            return None
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    fields = [line.partition(b":") for line in head.split(b"\r\n")]
    headers = {name.lower(): value.strip() for name, _, value in fields}
    assert b"transfer-encoding" not in headers, "only bodies of a known length are forwarded"
    if headers.get(b"expect", b"").lower() == b"100-continue":
        client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    parts, missing = [body], int(headers.get(b"content-length", 0)) - len(body)
    while missing > 0:
        part = client.recv(min(missing, 1 << 20))
        if not part:
            return None
        parts.append(part)
        missing -= len(part)
    return head, b"".join(parts)


def _without(head: bytes, *names: bytes) -> list[bytes]:
    """The lines of a head without some headers."""
    return [line for line in head.split(b"\r\n") if line.partition(b":")[0].lower() not in names]


def wait_until(condition: Callable[[], bool], seconds: float = 600.0) -> None:
    """Wait until a condition holds that another thread brings about."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition never held"
        time.sleep(0.01)
