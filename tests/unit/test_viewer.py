"""The pace of a viewer's process: how much it sends to a slow page, which action a picture shows, and when it steps."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import pytest

from pipeline.view import viewer, wire
from pipeline.view.viewer import Viewer
from pipeline.view.world import World
from tests.unit.test_view_world import TRACK, make_world
from tests.viewer_messages import unpacked

pytestmark = pytest.mark.usefixtures("one_thread")

STEP_S = 1 / 50


@dataclass
class Page:
    """The other end of a viewer's connection, and the viewer's clock, which only its waiting moves.

    Attributes:
        leaves_at: Seconds after which the page leaves.
        reads: Whether it acknowledges what arrives.
        sends: Messages to the viewer, by the seconds at which they are sent.
        now: Seconds so far.
        got: Headers of the messages from the viewer, with the seconds at which they were sent.
        sizes: Bytes of these messages.
    """

    leaves_at: float
    reads: bool = True
    sends: deque[tuple[float, wire.Message]] = field(default_factory=deque)
    now: float = 0.0
    got: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    def monotonic(self) -> float:
        return self.now

    def send_bytes(self, message: bytes) -> None:
        header, _ = unpacked(message)
        self.got.append((self.now, header))
        self.sizes.append(len(message))
        if self.reads and "number" in header:
            self.sends.appendleft((self.now, wire.Seen(do="seen", number=header["number"])))

    def poll(self, patience_s: float) -> bool:
        until = self.now + patience_s
        if self.sends and self.sends[0][0] <= until:
            self.now = max(self.now, self.sends[0][0])
            return True
        self.now = until
        if self.now >= self.leaves_at:
            raise EOFError
        return False

    def recv(self) -> wire.Message:
        return self.sends.popleft()[1]

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [header for _, header in self.got if header["is"] == kind]


class AtOnce:
    """An executor that does its work where it is asked to."""

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(work(*arguments))
        return done


def show(page: Page, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve a page until it leaves."""
    monkeypatch.setattr(viewer, "time", page)
    with pytest.raises(EOFError):
        Viewer(world, page, AtOnce()).run()  # type: ignore[arg-type]


def test_a_page_that_reads_nothing_is_sent_three_messages_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    page = Page(leaves_at=10.0, reads=False)
    show(page, make_world(env__max_episode_steps=1000), monkeypatch)
    numbers = [header["number"] for _, header in page.got if header["is"] != "world"]
    assert numbers == [1, 2, 3]
    assert sum(page.sizes) < 1_000_000


def test_a_page_that_reads_gets_its_pictures_and_looks_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    page = Page(leaves_at=2.0)
    show(page, make_world(env__max_episode_steps=1000), monkeypatch)
    assert len(page.of("picture")) == pytest.approx(2 * viewer.PICTURES_PER_SECOND, abs=3)
    assert len(page.of("ahead")) == pytest.approx(2.0 / 0.4, abs=1)
    assert page.of("picture")[-1]["steps"] == pytest.approx(2.0 / STEP_S, abs=2)  # the game's own speed


@pytest.mark.parametrize("dreams", [False, True], ids=["game", "dream"])
def test_picture_tells_the_number_of_the_action_that_it_shows(monkeypatch: pytest.MonkeyPatch, dreams: bool) -> None:
    taken = [0.5, 0.5]
    steer = wire.Steer(do="steer", number=7, action=taken)
    wheel = wire.Wheel(do="wheel", holder="person")
    begins = [(0.1, wire.Sleep(do="dream", on=True))] if dreams else []
    page = Page(leaves_at=1.0, sends=deque([(0.0, wheel), *begins, (0.5, steer)]))
    world = make_world(env__max_episode_steps=1000)
    began: list[int] = []  # number of the step that took the action first
    step_of, count = world.step, iter(range(2000))

    def step(see: bool = True) -> None:
        step_of(see)
        number, status = next(count), world.look().status
        seen_at[status["steps"], dreams and status["dream"] is not None and status["dream"]["steps"]] = number
        if status["action"] == taken and not began:
            began.append(number)

    seen_at: dict[tuple[int, int | bool], int] = {}
    monkeypatch.setattr(world, "step", step)
    show(page, world, monkeypatch)
    for picture in page.of("picture")[2:]:  # the first is of the world's own beginning
        dream = picture["dream"]
        number = seen_at.get((picture["steps"], dreams and dream is not None and dream["steps"]))
        if number is not None:
            # A scene of the game is that before the action of its step; a dream shows what the step made of it.
            shows = number >= began[0] if dreams else number > began[0]
            assert picture["action_number"] == (7 if shows else 0)
    assert page.of("picture")[-1]["action_number"] == 7


def test_neither_dream_nor_game_waits_for_the_end_of_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    asleep, awake = wire.Sleep(do="dream", on=True), wire.Sleep(do="dream", on=False)
    # Each step of the dream is an end, which is shown for 2 s.
    page = Page(leaves_at=1.0, sends=deque([(0.1, asleep), (0.5, awake)]))
    world = make_world(env__max_episode_steps=1000, dream__end_probability=1e-6)
    show(page, world, monkeypatch)
    assert [each["dream"]["steps"] for each in page.of("picture") if each["over"]][:1] == [1]
    woken = [header["steps"] for at, header in page.got if header["is"] == "picture" and at > 0.5]
    assert woken[-1] - woken[0] == pytest.approx(0.5 / STEP_S, abs=3)

    # An episode of 16 steps ends after 0.3 s; a dream of its last moment begins at once.
    page = Page(leaves_at=1.0, sends=deque([(0.5, asleep)]))
    world = make_world()
    world.reset(TRACK)
    show(page, world, monkeypatch)
    assert page.of("picture")[-1]["dream"]["steps"] == pytest.approx(0.5 / STEP_S, abs=3)


@pytest.mark.parametrize(
    ("error", "reasons"),
    [(EOFError("the game has closed its socket"), ["EOFError: the game has closed its socket"]), (None, [])],
)
def test_environment_that_raises_is_no_viewer_who_leaves(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None, reasons: list[str]
) -> None:
    page = Page(leaves_at=1.0)

    def serve(pipe: Any, _: str) -> None:
        if error is not None:
            raise error
        pipe.poll(2.0)

    monkeypatch.setattr(viewer, "_serve", serve)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    viewer.run_viewer(page, "runs/x")  # type: ignore[arg-type]
    assert [header["reason"] for header in page.of("failed")] == reasons
