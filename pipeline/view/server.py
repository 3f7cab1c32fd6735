"""The server of the page: its files, one process for each viewer, and the state of the runs.

It answers only addresses that begin with its token, from pages of its own.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import multiprocessing
import os
import secrets
import socket
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import resources
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from urllib.parse import urlsplit

from aiohttp import WSCloseCode, WSMsgType, web

from pipeline.base.errors import ConfigError
from pipeline.view import runs, wire
from pipeline.view.viewer import run_viewer

MOST_VIEWERS = 4

# Every file of the page, and nothing else, can be asked for.
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_LEAVE_S = 5.0  # seconds that a viewer's process has to end by itself
_PING_S = 10.0  # seconds between pings: a page that vanished without a word is noticed

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(eq=False)
class Seat:
    """A viewer's process.

    Attributes:
        process: Process with the viewer's world.
        connection: Pipe to it.
        messages: Its messages to the page; None at its end.
        ready: Whether it has sent one: before, it has nothing to release.
    """

    process: SpawnProcess
    connection: Connection
    messages: asyncio.Queue[bytes | None] = field(default_factory=asyncio.Queue)
    ready: bool = False

    @classmethod
    def taken(cls, run: str) -> Seat:
        """Start the process of a viewer."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=run_viewer, args=(theirs, run), daemon=True, name="world-models view")
        process.start()
        theirs.close()  # only the process holds that end, so that its death ends our reading
        return cls(process, ours)

    def __post_init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._reader = threading.Thread(target=self._read, args=(loop,), daemon=True)
        self._reader.start()

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        message: bytes | None = b""
        while message is not None:
            try:
                message = self.connection.recv_bytes()
                self.ready = True
            except (EOFError, OSError):
                message = None
            try:
                loop.call_soon_threadsafe(self.messages.put_nowait, message)
            except RuntimeError:  # the server has ended
                return

    def hang_up(self) -> None:
        """Tell the process, and our own reading thread, that the viewer has left; closing alone would not wake it."""
        with suppress(OSError), socket.socket(fileno=os.dup(self.connection.fileno())) as end:
            end.shutdown(socket.SHUT_RDWR)

    def leave(self) -> None:
        """End the process; waits until it is gone."""
        self.hang_up()
        self.process.join(_LEAVE_S if self.ready else 0)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.process.close()
        self._reader.join()
        self.connection.close()


class ViewServer:
    """The server.

    Args:
        run: Location of a run or of a study.
        host: Address to listen on.
        port: Port; 0 for a free one.
        most: Most viewers at a time.

    Attributes:
        token: First part of every address.
        seats: Viewers' processes.
    """

    def __init__(self, run: str, host: str = "127.0.0.1", port: int = 0, most: int = MOST_VIEWERS) -> None:
        self._run, self._host, self._port, self._most = run, host, port, most
        self.token = secrets.token_urlsafe(24)
        self.seats: set[Seat] = set()
        self._runs = runs.Runs(run)
        package = resources.files("pipeline.view") / "page"
        self._files = {
            each.name: (each.read_bytes(), _TYPES["." + each.name.rpartition(".")[2]])
            for each in package.iterdir()
            if each.name.endswith(tuple(_TYPES))
        }
        app = web.Application(middlewares=[self._guard], client_max_size=1024)
        root = f"/{self.token}"
        app.router.add_get(f"{root}/", self._page)
        app.router.add_get(f"{root}/page/{{name}}", self._page)
        app.router.add_get(f"{root}/runs", self._describe_runs)
        app.router.add_get(f"{root}/runs/{{number:[0-9]{{1,4}}}}/{{what:film|picture}}", self._media)
        app.router.add_get(f"{root}/world", self._world)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)

    async def start(self) -> str:
        """Begin to listen.

        Returns:
            Address of the page.

        Raises:
            ConfigError: The address is not one of this machine, or the port is taken.
        """
        await self._runner.setup()
        try:
            site = web.TCPSite(self._runner, self._host, self._port)
            await site.start()
        except OSError as error:
            raise ConfigError(
                f"--host {self._host} --port {self._port}: cannot listen there ({error.strerror or error}). Choose an "
                "address of this machine, and a free port or 0"
            ) from error
        port = self._runner.addresses[0][1]
        name = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{name}:{port}/{self.token}/"

    async def stop(self) -> None:
        """Close all connections and end all viewers' processes."""
        for seat in self.seats:
            seat.hang_up()
        await self._runner.cleanup()
        await asyncio.gather(*(self._free(seat) for seat in list(self.seats)))

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        reason = self._refusal(request)
        if reason is not None:
            return web.Response(status=403, text=f"{reason}\n", headers=_HEADERS)
        try:
            answer = await handler(request)
        except web.HTTPException as error:
            error.headers.update(_HEADERS)
            raise
        if not answer.prepared:
            answer.headers.update(_HEADERS)
        return answer

    def _refusal(self, request: web.Request) -> str | None:
        """Reason to refuse a request; None if it may be answered."""
        token = request.path.split("/")[1]
        if not hmac.compare_digest(token.encode(), self.token.encode()):
            return "The address lacks the token. Open the whole address that `world-models view` printed."
        if _is_loopback(self._host) and not _is_loopback(urlsplit(f"//{request.host}").hostname or ""):
            return "This server answers to its own name only. Open the address that `world-models view` printed."
        origin = request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != request.host:
            return "A page of another origin has no access."
        return None

    async def _page(self, request: web.Request) -> web.Response:
        content = self._files.get(request.match_info.get("name", "index.html"))
        if content is None:
            raise web.HTTPNotFound(text="There is no such file.\n")
        return web.Response(body=content[0], content_type=content[1], charset="utf-8")

    async def _describe_runs(self, request: web.Request) -> web.Response:
        return web.json_response(await asyncio.to_thread(self._runs.describe))

    async def _media(self, request: web.Request) -> web.Response:
        number, what = int(request.match_info["number"]), request.match_info["what"]
        found = await asyncio.to_thread(self._runs.media, number, what)
        if found is None:
            raise web.HTTPNotFound(text=f"This run has no {what} yet.\n")
        return web.Response(body=found, content_type="video/mp4" if what == "film" else "image/png")

    async def _world(self, request: web.Request) -> web.WebSocketResponse:
        page = web.WebSocketResponse(max_msg_size=wire.LARGEST_MESSAGE_BYTES, heartbeat=_PING_S)
        await page.prepare(request)
        if len(self.seats) >= self._most:
            reason = (
                f"All {self._most} places are taken: each viewer has a world of its own. Close another page, or start "
                "`world-models view` with a larger --viewers."
            )
            await page.send_bytes(wire.to_bytes("failed", {"reason": reason}))
            await page.close(code=WSCloseCode.TRY_AGAIN_LATER)
            return page
        seat = Seat.taken(self._run)
        self.seats.add(seat)
        showing = asyncio.create_task(_show(seat, page))
        try:
            await _listen(seat, page)
        finally:
            showing.cancel()
            await asyncio.shield(self._free(seat))
        return page

    async def _free(self, seat: Seat) -> None:
        if seat in self.seats:
            self.seats.discard(seat)
            await asyncio.to_thread(seat.leave)


async def _show(seat: Seat, page: web.WebSocketResponse) -> None:
    """Pass messages of a viewer's process to the page, until either ends."""
    while (message := await seat.messages.get()) is not None:
        await page.send_bytes(message)
    await page.close(code=WSCloseCode.GOING_AWAY)


async def _listen(seat: Seat, page: web.WebSocketResponse) -> None:
    """Pass messages of the page to the viewer's process, until the page leaves or sends something else."""
    async for message in page:
        if message.type is not WSMsgType.TEXT:
            await page.close(code=WSCloseCode.UNSUPPORTED_DATA, message=b"text was expected")
            return
        try:
            parsed = wire.read_message(message.data)
        except ValueError as error:
            await page.close(code=WSCloseCode.POLICY_VIOLATION, message=str(error).encode()[:120])
            return
        try:
            await asyncio.to_thread(seat.connection.send, parsed)
        except OSError:  # the process has ended; its last message says why
            return


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
