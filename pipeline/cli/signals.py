"""Stops: SIGTERM ends the command as Ctrl-C does, wherever it arrives."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType


def handle_stops() -> None:
    """Take SIGTERM for a KeyboardInterrupt, and lose none that is raised where Python drops exceptions."""
    signal.signal(signal.SIGTERM, _on_sigterm)
    sys.unraisablehook = _deliver_again


def was_terminated() -> bool:
    """Whether the last KeyboardInterrupt came from SIGTERM. Ray replaces exceptions, so the exception does not tell."""
    return signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    """SIGTERM ends the command as Ctrl-C does: KeyboardInterrupt is what Ray's own calls let through."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt(signal.SIGTERM)


def _deliver_again(unraisable: sys.UnraisableHookArgs) -> None:
    """A stop that was raised inside a finaliser, where Python drops it, comes again a moment later."""
    if not isinstance(unraisable.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)
        return
    number = signal.SIGTERM if unraisable.exc_value.args == (signal.SIGTERM,) else signal.SIGINT
    if number == signal.SIGTERM:
        signal.signal(signal.SIGTERM, _on_sigterm)
    threading.Timer(0.05, os.kill, (os.getpid(), number)).start()
