"""Standard output and standard error that may lose their reader while a command works.

A run goes on when the terminal closes, or when ``head`` has read enough: output that nobody takes is dropped. Where
standard output is what the command is for, a reader that leaves ends the command as it ends other Unix filters.
"""

from __future__ import annotations

import errno
import io
import os
import select
import signal
import sys
from typing import Any, TextIO

from pipeline.base.errors import WorldModelsError

# A pipe without a reader, a terminal that was closed.
_NOBODY_READS = (errno.EPIPE, errno.EIO, errno.ENXIO, errno.EBADF)

EXIT_CODE_OF_A_FILTER = 128 + signal.SIGPIPE


class ReaderLeft(OSError):
    """The reader of standard output left, and the command works for nobody else."""


class OutputError(WorldModelsError):
    """Standard output is what the command is for, and cannot be written: its disk is full, for instance."""


class _Dropping(io.FileIO):
    """A file descriptor for writing that turns into the null device once a write fails.

    Attributes:
        required: Whether that is an error as well.
    """

    required = False

    def write(self, data: Any, /) -> int:
        try:
            while (written := super().write(data)) is None:
                select.select([], [self], [])  # a terminal or pipe that another of its users made non-blocking
        except OSError as error:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())  # for whatever else writes here, and for Python's own flush at the end
            os.close(null)
            if self.required and error.errno in _NOBODY_READS:
                raise ReaderLeft(str(error)) from error
            if self.required:
                raise OutputError(f"cannot write to standard output: {error.strerror}") from error
            return len(data)
        return written


def _dropping(stream: TextIO) -> io.TextIOWrapper:
    raw = _Dropping(stream.fileno(), "w", closefd=False)
    at_once = stream is sys.stderr or stream.isatty() or getattr(stream, "write_through", False)  # the last: python -u
    return io.TextIOWrapper(io.BufferedWriter(raw), stream.encoding, stream.errors, line_buffering=at_once)


def drop_what_nobody_takes() -> None:
    """From here on, neither of this process's outputs can fail."""
    flush()
    for name in ("stdout", "stderr"):
        stream: TextIO | None = getattr(sys, name)
        if stream is not None:
            setattr(sys, name, _dropping(stream))


def flush() -> None:
    """Write out what is buffered of both outputs."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # closed before the command began
            stream.flush()


def require_a_reader(required: bool = True) -> None:
    """Whether standard output raises from here on where it cannot be written, if its failures are dropped so far."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if isinstance(raw, _Dropping):
        raw.required = required
