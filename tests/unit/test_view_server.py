"""The page's server without worlds: what it refuses, parts of films, and the places of viewers."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from aiohttp import ClientSession, ClientWebSocketResponse, WSCloseCode, WSMsgType

from pipeline.base.errors import StorageError
from pipeline.config.study import dump_study, load_study
from pipeline.storage.local import LocalStore
from pipeline.studies.plan import STUDY
from pipeline.view import server as module
from pipeline.view import wire
from pipeline.view.server import ViewServer
from tests.made_run import make_config, put_agent, put_data
from tests.viewer_messages import unpacked

LIMIT_S = 600  # only a hang reaches it


@asynccontextmanager
async def serving(where: Path, **options: Any) -> AsyncIterator[tuple[ViewServer, str]]:
    server = ViewServer(str(where), **options)
    try:
        yield server, await server.start()
    finally:
        await server.stop()


async def raw(url: str, head: bytes) -> int:
    """Status of the answer to a request whose head is sent as it is."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(head)
    async with asyncio.timeout(LIMIT_S):
        line = await reader.readline()
    writer.close()
    return int(line.split()[1])


def test_malformed_requests_are_refused(local_store: LocalStore) -> None:
    put_agent(local_store, make_config())

    async def statuses() -> list[int]:
        async with serving(local_store.root) as (server, url):
            host, root = urlsplit(url).netloc.encode(), f"/{server.token}/".encode()
            good = b"GET " + root + b" HTTP/1.1\r\nHost: " + host + b"\r\n"
            assert await raw(url, good + b"\r\n") == 200
            heads = [
                b"OPTIONS * HTTP/1.1\r\nHost: " + host + b"\r\n",
                *(b"GET " + path + b" HTTP/1.1\r\nHost: " + host + b"\r\n"
                  for path in (b"/\xff\xfe/", b"/%ff%fe/", b"/%ed%a0%80/", b"//", b"/%00/", b"*", b"x", root + b"%ff")),
                *(good + b"Origin: " + origin + b"\r\n"
                  for origin in (b"http://[", b"http://[::1", b"\xff", b"", b"://", b"http://[v1.x]/")),
                *(b"GET " + root + b" HTTP/1.1\r\nHost: " + name + b"\r\n"
                  for name in (b"[", b"[::1", b"", b"\xff", b"a:b:c", b"127.0.0.1:x@evil.example")),
                good + b"Range: bytes=9-1\r\n" * 2000,
            ]  # fmt: skip
            return [await raw(url, head + b"\r\n") for head in heads]

    assert [status for status in asyncio.run(statuses()) if not 400 <= status < 500] == []


def test_parts_of_a_film_are_sent_as_browsers_ask_for_them(local_store: LocalStore) -> None:
    config = make_config()
    put_agent(local_store, config)
    put_data(local_store, config)

    async def look() -> None:
        async with serving(local_store.root) as (_, url), ClientSession() as session:

            async def ask(wanted: str | None) -> tuple[int, bytes, str | None]:
                headers = {} if wanted is None else {"Range": wanted}
                async with session.get(f"{url}runs/0/picture", headers=headers) as answer:
                    assert answer.headers["X-Content-Type-Options"] == "nosniff"
                    return answer.status, await answer.read(), answer.headers.get("Content-Range")

            status, whole, _ = await ask(None)
            size = len(whole)
            assert status == 200 and whole.startswith(b"\x89PNG")
            assert await ask("bytes=0-1") == (206, whole[:2], f"bytes 0-1/{size}")
            assert await ask("bytes=10-") == (206, whole[10:], f"bytes 10-{size - 1}/{size}")
            assert await ask("bytes=-5") == (206, whole[-5:], f"bytes {size - 5}-{size - 1}/{size}")
            assert await ask("bytes=5-99999999") == (206, whole[5:], f"bytes 5-{size - 1}/{size}")
            assert await ask(f"bytes=0-{'9' * 100}") == (206, whole, f"bytes 0-{size - 1}/{size}")
            for wrong in (f"bytes={size}-", "bytes=5-2", "bytes=-", "furlongs=1-2", "bytes=0-1,4-5"):
                status, _, place = await ask(wrong)
                assert (status, place) == (416, f"bytes */{size}"), wrong

    asyncio.run(look())


def test_a_film_that_cannot_be_read_says_why(local_store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    put_agent(local_store, make_config())

    def silent(self: LocalStore, key: str) -> bool:
        raise StorageError("the bucket does not answer")

    async def look() -> tuple[int, str, dict[str, Any]]:
        async with serving(local_store.root) as (_, url), ClientSession() as session:
            monkeypatch.setattr(LocalStore, "exists", silent)
            async with session.get(f"{url}runs") as answer:
                (run,) = (await answer.json())["runs"]
            async with session.get(f"{url}runs/0/film") as answer:
                return answer.status, await answer.text(), run

    status, text, run = asyncio.run(look())
    assert status == 503 and text == "The film cannot be read: the bucket does not answer\n"
    assert run["problem"] == "the bucket does not answer" and run["passing"]


class Seats:
    """Stand-ins for viewers' processes.

    Attributes:
        taken: All of them so far.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.taken: list[Seat] = []
        monkeypatch.setattr(module.Seat, "taken", self.take)

    def take(self, run: str) -> Seat:
        self.taken.append(Seat())
        return self.taken[-1]


class Seat:
    """A viewer's process that ends, with a last message, when the page first sends something."""

    def __init__(self) -> None:
        self.leaving: asyncio.Task[None] | None = None
        self.sender, self.shown = None, 0  # the loop's own threads send
        self.may_leave = threading.Event()
        self.connection = self.messages = self
        self.sent = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._left = [wire.to_bytes("failed", {"reason": "the game has ended"}), None]

    def send(self, message: object) -> None:
        self._loop.call_soon_threadsafe(self.sent.set)
        raise BrokenPipeError

    async def get(self) -> bytes | None:
        await self.sent.wait()
        for _ in range(100):  # the server has long seen that the process has ended
            await asyncio.sleep(0)
        return self._left.pop(0)

    def hang_up(self) -> None:
        self.may_leave.set()

    def leave(self) -> None:
        assert self.may_leave.wait(LIMIT_S)


async def connected(session: ClientSession, url: str) -> ClientWebSocketResponse:
    return await session.ws_connect(f"{url}world", max_msg_size=0)


async def reasons(page: ClientWebSocketResponse) -> list[str]:
    """Reasons of all messages until the server closes."""
    async with asyncio.timeout(LIMIT_S):
        return [unpacked(message.data)[0]["reason"] async for message in page]


def test_last_message_of_a_process_arrives_while_the_page_sends(
    local_store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_agent(local_store, make_config())
    seats = Seats(monkeypatch)

    async def look() -> list[str]:
        async with serving(local_store.root) as (_, url), ClientSession() as session:
            page = await connected(session, url)
            await page.send_str('{"do":"step"}')
            found = await reasons(page)
            seats.taken[0].may_leave.set()
            return found

    assert asyncio.run(look()) == ["the game has ended"]


def test_page_that_acknowledges_a_message_it_never_got_is_closed(
    local_store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that claims to have shown more than it got would be sent more than it reads."""
    put_agent(local_store, make_config())
    seats = Seats(monkeypatch)

    async def look() -> int | None:
        async with serving(local_store.root) as (_, url), ClientSession() as session:
            page = await connected(session, url)
            await page.send_str('{"do":"seen","number":1}')
            async with asyncio.timeout(LIMIT_S):
                assert (await page.receive()).type is WSMsgType.CLOSE
            seats.taken[0].may_leave.set()
            assert not seats.taken[0].sent.is_set(), "the process has not seen it"
            return page.close_code

    assert asyncio.run(look()) == WSCloseCode.POLICY_VIOLATION


def test_leaving_viewer_keeps_its_place_until_its_world_has_ended(
    local_store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_agent(local_store, make_config())
    seats = Seats(monkeypatch)

    async def look() -> None:
        async with serving(local_store.root, most=1) as (server, url), ClientSession() as session:
            first = await connected(session, url)
            while not seats.taken:
                await asyncio.sleep(0)
            (reason,) = await reasons(await connected(session, url))
            assert reason.startswith("All 1 places are taken")
            await first.close()
            while seats.taken[0].leaving is None:
                await asyncio.sleep(0)
            second = await connected(session, url)  # as after a reload: it waits for the place
            for _ in range(100):
                await asyncio.sleep(0)
            assert len(seats.taken) == len(server.seats) == 1
            seats.taken[0].may_leave.set()
            while len(seats.taken) < 2:
                await asyncio.sleep(0)
            await second.send_str('{"do":"step"}')
            assert await reasons(second) == ["the game has ended"]
            seats.taken[1].may_leave.set()

    asyncio.run(asyncio.wait_for(look(), LIMIT_S))


def test_a_study_has_no_world_and_starts_none(local_store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    study = load_study("tiny", seeds=[1, 2])
    local_store.write(STUDY, dump_study(study).encode())
    seats = Seats(monkeypatch)

    async def look() -> dict[str, Any]:
        async with serving(local_store.root) as (_, url), ClientSession() as session:
            message = await (await connected(session, url)).receive(LIMIT_S)
            header, _ = unpacked(message.data)
            return header

    failed = asyncio.run(look())
    assert failed["study"] and f"This is the study {study.name}" in failed["reason"]
    assert seats.taken == []


def test_all_addresses_are_announced_by_one_that_a_browser_opens(local_store: LocalStore) -> None:
    put_agent(local_store, make_config())

    async def address(host: str) -> tuple[str, bool]:
        async with serving(local_store.root, host=host) as (server, url):
            return str(urlsplit(url).hostname), server.is_public

    name, public = asyncio.run(address("0.0.0.0"))
    assert public and (name == socket.gethostname() or not ipaddress.ip_address(name).is_unspecified)
    assert asyncio.run(address("127.0.0.1")) == ("127.0.0.1", False)
