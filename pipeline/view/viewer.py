"""A viewer's process: one world, its pace, and the pictures of it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from pipeline.base.errors import WorldModelsError
from pipeline.view import wire

if TYPE_CHECKING:
    from pipeline.view.look_ahead import Ahead
    from pipeline.view.world import World

PICTURES_PER_SECOND = 30
# Messages not yet acknowledged by the page. A slower page skips some, so that it never shows old ones.
_ON_THE_WAY = 3
_SHOW_AN_END_S = 2.0
_AHEAD_EVERY_S = 0.4
_AHEAD_SHARE = 0.25  # maximum share of time spent looking ahead


def run_viewer(connection: Connection, run: str) -> None:
    """Serve one viewer until the other end of the connection is closed; the main function of a process.

    Args:
        connection: Pipe from the server: messages of the page arrive, and packed messages to the page leave.
        run: Location of the run.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's, which then closes the connection
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: batches are small, and viewers share the cores
    try:
        _serve(_Pipe(connection), run)
    except _ViewerLeftError:
        pass
    except Exception as error:  # an environment of a user may raise anything
        reason = str(error) if isinstance(error, WorldModelsError) else f"{type(error).__name__}: {error}"
        with suppress(OSError):  # the viewer has left
            connection.send_bytes(wire.to_bytes("failed", {"reason": reason}))


class _ViewerLeftError(EOFError):
    """The pipe to the server is closed."""


class _Pipe:
    """Pipe to the server, whose end is no error of the environment.

    Args:
        connection: See ``run_viewer``.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def poll(self, timeout_s: float) -> bool:
        """Whether a message arrives within ``timeout_s``."""
        with self._ends():
            return self._connection.poll(timeout_s)

    def recv(self) -> Any:
        """Next message of the page."""
        with self._ends():
            return self._connection.recv()

    def send_bytes(self, message: bytes) -> None:
        """Send a message to the page."""
        with self._ends():
            self._connection.send_bytes(message)

    @contextmanager
    def _ends(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError) as error:
            raise _ViewerLeftError("the viewer has left") from error


def _serve(connection: _Pipe, run: str) -> None:
    import torch

    from pipeline.data.trained_agent import TrainedAgent
    from pipeline.storage.run_dir import as_run_dir, open_store
    from pipeline.view.world import World

    torch.set_num_threads(1)
    world = World(TrainedAgent.read(open_store(as_run_dir(run))))
    try:
        with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as look_ahead_thread:
            Viewer(world, connection, look_ahead_thread).run()
    finally:
        world.close()


class Viewer:
    """Paces a world and sends pictures of it.

    Args:
        world: World of the viewer.
        connection: See ``run_viewer``.
        look_ahead_thread: Thread in which M looks ahead.
    """

    def __init__(self, world: World, connection: Connection | _Pipe, look_ahead_thread: ThreadPoolExecutor) -> None:
        self._world, self._connection, self._look_ahead_thread = world, connection, look_ahead_thread
        self._paused, self._speed = False, 1.0
        self._stale = True  # whether the page lacks the present picture
        self._sent = self._seen = 0
        # Numbers of the person's actions: the newest, the one of the last step, the one in the picture.
        self._newest = self._taken = self._shown = 0
        self._step_due = self._picture_due = self._ahead_due = time.monotonic()
        self._ahead: Future[Ahead] | None = None
        self._ahead_began = 0.0
        self._ahead_wanted = True

    def run(self) -> None:
        """Run until the connection is closed.

        Raises:
            EOFError: It was closed.
        """
        self._connection.send_bytes(wire.to_bytes("world", self._world.about))
        while True:
            patience_s = self._patience_s()
            while self._connection.poll(patience_s):
                self._handle(self._connection.recv())
                patience_s = 0.0
            now = time.monotonic()
            if not self._paused and now >= self._step_due:
                self._step(now)
            if self._stale and self._may_send:
                self._send_picture()
            self._look_ahead(now)

    @property
    def _may_send(self) -> bool:
        return self._sent - self._seen < _ON_THE_WAY

    def _patience_s(self) -> float:
        """Seconds to wait for a message."""
        if self._stale and self._may_send:
            return 0.0
        if self._paused:
            return 0.1 if self._ahead is not None or self._ahead_wanted else 60.0
        return max(0.0, self._step_due - time.monotonic())

    def _step(self, now: float) -> None:
        see = now >= self._picture_due and self._may_send
        self._step_world(see)
        self._ahead_wanted = True
        if see:
            self._stale = True
            self._picture_due = max(self._picture_due + 1 / PICTURES_PER_SECOND, now)
        period_s = 1 / (self._world.steps_per_second * self._speed)
        # A world that cannot keep pace does not run after it.
        self._step_due = max(self._step_due + period_s, now)
        if self._world.over:
            self._stale = True
            self._step_due = now + _SHOW_AN_END_S

    def _step_world(self, see: bool = True) -> None:
        """Take a step, and note which of the person's actions its picture shows.

        A scene of the game is drawn before the action.
        """
        before, self._taken = self._taken, self._newest
        self._world.step(see)
        if self._world.dreaming:
            self._shown = self._taken
        elif see:
            self._shown = before

    def _send_picture(self) -> None:
        picture = self._world.look()
        facts = {**picture.status, "action_number": self._shown, "paused": self._paused, "speed": self._speed}
        arrays: dict[str, NDArray[Any]] = {
            "scene": picture.scene, "frame": picture.frame, "reconstruction": picture.reconstruction,
            "z": picture.z, "h": picture.h,
        }  # fmt: skip
        if picture.held is not None:
            arrays["held"] = picture.held
        self._send("picture", facts, arrays)
        self._stale = False

    def _send(self, kind: str, facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Send a message that the page acknowledges by its number."""
        self._sent += 1
        self._connection.send_bytes(wire.to_bytes(kind, {**facts, "number": self._sent}, arrays))

    def _look_ahead(self, now: float) -> None:
        """Begin to look ahead if that is due, and send what was seen."""
        from pipeline.view.look_ahead import look_ahead

        if self._ahead is not None:
            if not (self._ahead.done() and self._may_send):
                return
            ahead, took_s = self._ahead.result(), now - self._ahead_began
            self._ahead, self._ahead_due = None, self._ahead_began + max(_AHEAD_EVERY_S, took_s / _AHEAD_SHARE)
            arrays: dict[str, NDArray[Any]] = {"frames": ahead.frames, "apart": ahead.apart, "spread": ahead.spread}
            if ahead.reward is not None:
                arrays["reward"] = ahead.reward
            if ahead.end_probability is not None:
                arrays["end_probability"] = ahead.end_probability
            self._send("ahead", {}, arrays)
        if self._ahead_wanted and now >= self._ahead_due:
            self._ahead_wanted, self._ahead_began = False, now
            dreams, decode = self._world.dream_ahead(), self._world.agent.decode
            self._ahead = self._look_ahead_thread.submit(look_ahead, dreams, decode)

    def _handle(self, message: wire.Message) -> None:
        world = self._world
        match message:
            case wire.Seen(number=number):
                self._seen = max(self._seen, min(number, self._sent))
                return
            case wire.Steer(number=number, action=action):
                world.steer(action)
                self._newest = number
                return
            case wire.Wheel(holder=holder):
                world.hand_to(holder)
            case wire.Sleep(on=on):
                if on:
                    world.fall_asleep()
                else:
                    world.wake_up()
                self._step_due = time.monotonic()  # the dream, or the game, starts at once
            case wire.Temperature(value=value):
                world.temperature = value
            case wire.Hold(z=z):
                world.hold(z)
            case wire.Track(seed=seed):
                world.reset(seed)
                self._step_due = time.monotonic()
            case wire.Pause(on=on):
                self._paused = on
                self._step_due = time.monotonic()
            case wire.StepOnce():
                self._step_world()
            case wire.Speed(value=value):
                self._speed = value
                self._step_due = time.monotonic()
        self._stale = self._ahead_wanted = True
