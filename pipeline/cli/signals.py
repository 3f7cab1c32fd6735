"""Handling of SIGTERM: it ends the command as Ctrl-C does, wherever it arrives."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType


def handle_stops() -> None:
    """Turn SIGTERM into KeyboardInterrupt, and lose none that is raised where Python drops exceptions."""
    signal.signal(signal.SIGTERM, _on_sigterm)
    sys.unraisablehook = _resend_signal


def was_terminated() -> bool:
    """Whether the last KeyboardInterrupt came from SIGTERM; Ray replaces exceptions, so they do not carry this."""
    return signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, as Ctrl-C does: Ray's own calls let it through."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt(signal.SIGTERM)


def _resend_signal(unraisable: sys.UnraisableHookArgs) -> None:
    """Send a stop again after 50 ms if it was raised inside a finaliser, where Python drops exceptions."""
    if not isinstance(unraisable.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)
        return
    number = signal.SIGTERM if unraisable.exc_value.args == (signal.SIGTERM,) else signal.SIGINT
    if number == signal.SIGTERM:
        signal.signal(signal.SIGTERM, _on_sigterm)
    threading.Timer(0.05, os.kill, (os.getpid(), number)).start()
