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
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import resources
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any
from urllib.parse import SplitResult, urlsplit

from aiohttp import WSCloseCode, WSMsgType, web

from pipeline.base.errors import ConfigError, StorageError
from pipeline.base.machine import reachable_address
from pipeline.view import runs, wire
from pipeline.view.viewer import run_viewer

_MOST_VIEWERS = 4

# Types of the page's files, which are served and no others.
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
        messages: Messages to the page; None at the end of the process.
        sender: Thread that sends to the process, which may be busy.
        ready: Whether the process has sent a message; before that it holds no resources.
        shown: Number of the last message that was passed to the page.
        leaving: Task that ends the process; None until the viewer leaves.
    """

    process: SpawnProcess
    connection: Connection
    messages: asyncio.Queue[bytes | None] = field(default_factory=asyncio.Queue)
    sender: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    ready: bool = False
    shown: int = 0
    leaving: asyncio.Task[None] | None = None

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
        self.sender.shutdown()
        self._reader.join()
        self.connection.close()


class ViewServer:
    """The server.

    Args:
        run: Location of a run or of a study.
        host: Address to listen on.
        port: Port; 0 for a free one.
        most: Maximum number of viewers at a time.

    Attributes:
        token: First part of every address.
        seats: Viewers' processes, each until it is gone.
    """

    def __init__(self, run: str, host: str = "127.0.0.1", port: int = 0, most: int = _MOST_VIEWERS) -> None:
        self._run, self._host, self._port, self._most = run, host, port, most
        self.token = secrets.token_urlsafe(24)
        self.seats: set[Seat] = set()
        self._runs = runs.Runs(run)
        self._describing: asyncio.Task[dict[str, Any]] | None = None
        # Threads of their own: leaving viewers wait for no slow bucket that others read from.
        self._leavers = ThreadPoolExecutor(most)
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
            Address of the page. If the host stands for all addresses: the address that other machines reach.

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
        host = reachable_address(ipv6=":" in self._host) if _is_unspecified(self._host) else self._host
        name = f"[{host}]" if ":" in host else host
        return f"http://{name}:{port}/{self.token}/"

    @property
    def is_public(self) -> bool:
        """Whether other machines may reach the server."""
        return not _is_loopback(self._host)

    async def stop(self) -> None:
        """Close all connections and end all viewers' processes."""
        for seat in self.seats:
            seat.hang_up()
        await self._runner.cleanup()
        await asyncio.gather(*map(self._free, self.seats))
        self._leavers.shutdown()

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
        token = request.path.removeprefix("/").partition("/")[0]
        # A path may hold any bytes, also some that are no text.
        if not hmac.compare_digest(token.encode(errors="replace"), self.token.encode()):
            return "The address lacks the token. Open the whole address that `world-models view` printed."
        if _is_loopback(self._host) and not _is_loopback(_split(f"//{request.host}").hostname or ""):
            return "This server answers to its own name only. Open the address that `world-models view` printed."
        origin = request.headers.get("Origin")
        if origin is not None and _split(origin).netloc != request.host:
            return "A page of another origin has no access."
        return None

    async def _page(self, request: web.Request) -> web.Response:
        content = self._files.get(request.match_info.get("name", "index.html"))
        if content is None:
            raise web.HTTPNotFound(text="There is no such file.\n")
        return web.Response(body=content[0], content_type=content[1], charset="utf-8")

    async def _describe_runs(self, request: web.Request) -> web.Response:
        if self._describing is None or self._describing.done():  # all pages wait for one description
            self._describing = asyncio.create_task(asyncio.to_thread(self._runs.describe))
        return web.json_response(await asyncio.shield(self._describing))

    async def _media(self, request: web.Request) -> web.Response:
        number, what = int(request.match_info["number"]), request.match_info["what"]
        try:
            found = await asyncio.to_thread(self._runs.media, number, what)
        except StorageError as error:
            raise web.HTTPServiceUnavailable(text=f"The {what} cannot be read: {error}\n") from error
        if found is None:
            raise web.HTTPNotFound(text=f"This run has no {what} yet.\n")
        return _part(request, found, "video/mp4" if what == "film" else "image/png")

    async def _world(self, request: web.Request) -> web.WebSocketResponse:
        page = web.WebSocketResponse(max_msg_size=wire.LARGEST_MESSAGE_BYTES, heartbeat=_PING_S)
        await page.prepare(request)
        if self._runs.study is not None:
            return await _refuse(
                page,
                f"This is the study {self._runs.study}: its runs are under Runs. To watch and drive the agent of one "
                "of them, start `world-models view` with the folder of that run.",
                WSCloseCode.POLICY_VIOLATION,
                study=True,
            )
        if not await self._has_room():
            return await _refuse(
                page,
                f"All {self._most} places are taken: each viewer has a world of its own. Close another page, or start "
                "`world-models view` with a larger --viewers.",
                WSCloseCode.TRY_AGAIN_LATER,
            )
        seat = Seat.taken(self._run)
        self.seats.add(seat)
        try:
            await _serve(seat, page)
        finally:
            await asyncio.shield(self._free(seat))
        return page

    async def _has_room(self) -> bool:
        """Whether another viewer may have a world; waits for viewers who are about to be gone, as after a reload."""
        while len(self.seats) >= self._most:
            leaving = [seat.leaving for seat in self.seats if seat.leaving is not None]
            if not leaving:
                return False
            await asyncio.wait(leaving, return_when=asyncio.FIRST_COMPLETED)
        return True

    async def _free(self, seat: Seat) -> None:
        """End a viewer's process. Until it is gone, it counts as a viewer: it still has its world."""
        if seat.leaving is None:
            seat.leaving = asyncio.create_task(self._release(seat))
        await seat.leaving

    async def _release(self, seat: Seat) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(self._leavers, seat.leave)
        finally:
            self.seats.discard(seat)


async def _refuse(
    page: web.WebSocketResponse, reason: str, code: WSCloseCode, **facts: object
) -> web.WebSocketResponse:
    await page.send_bytes(wire.to_bytes("failed", {"reason": reason, **facts}))
    await page.close(code=code)
    return page


async def _serve(seat: Seat, page: web.WebSocketResponse) -> None:
    """Pass messages between a page and a viewer's process, until the page has left or the process has ended."""
    showing, listening = asyncio.create_task(_show(seat, page)), asyncio.create_task(_listen(seat, page))
    try:
        await asyncio.wait((showing, listening), return_when=asyncio.FIRST_COMPLETED)
        if listening.done() and not page.closed:  # the process has ended; its last message says why
            await asyncio.wait([showing])
    finally:
        showing.cancel()
        listening.cancel()
        ends = await asyncio.gather(showing, listening, return_exceptions=True)
    for end in ends:
        if isinstance(end, Exception):
            raise end


async def _show(seat: Seat, page: web.WebSocketResponse) -> None:
    """Pass messages of a viewer's process to the page, until either ends."""
    with suppress(ConnectionError):  # the page has left
        while (message := await seat.messages.get()) is not None:
            seat.shown = max(seat.shown, wire.number_of(message))
            await page.send_bytes(message)
    await page.close(code=WSCloseCode.GOING_AWAY)


async def _listen(seat: Seat, page: web.WebSocketResponse) -> None:
    """Pass messages of the page to the viewer's process, until either ends or the page sends something else."""
    async for message in page:
        if message.type is not WSMsgType.TEXT:
            await page.close(code=WSCloseCode.UNSUPPORTED_DATA, message=b"text was expected")
            return
        try:
            parsed = wire.read_message(message.data)
            # The process sends more only if the page has shown the last ones, so a page that claims to have shown more
            # than it got would fill this server's memory.
            if isinstance(parsed, wire.Seen) and parsed.number > seat.shown:
                raise ValueError(f"message {parsed.number} was never sent")
        except ValueError as error:
            await page.close(code=WSCloseCode.POLICY_VIOLATION, message=str(error).encode()[:120])
            return
        try:
            await asyncio.get_running_loop().run_in_executor(seat.sender, seat.connection.send, parsed)
        except OSError:  # the process has ended
            return


def _part(request: web.Request, content: bytes, content_type: str) -> web.Response:
    """Answer with some media, or with the part of them that the header ``Range`` requests: Safari plays nothing else.

    Raises:
        HTTPRequestRangeNotSatisfiable: There is no such part.
    """
    headers = {"Accept-Ranges": "bytes"}
    try:
        asked = request.http_range
        start, stop, _ = asked.indices(len(content))
    except ValueError:
        start = stop = -1
    if start >= stop:
        raise web.HTTPRequestRangeNotSatisfiable(headers={"Content-Range": f"bytes */{len(content)}"})
    if (asked.start, asked.stop) == (None, None):
        return web.Response(body=content, content_type=content_type, headers=headers)
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
    return web.Response(status=206, body=content[start:stop], content_type=content_type, headers=headers)


def _split(address: str) -> SplitResult:
    """Parts of an address; empty ones if it is malformed."""
    try:
        return urlsplit(address)
    except ValueError:
        return urlsplit("")


def _is_unspecified(host: str) -> bool:
    """Whether a host stands for all addresses of this machine, which no browser can open."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
