"""Standard output and standard error that may lose their reader while a command runs.

A run continues when the terminal closes, or when ``head`` has read enough: output without a reader is dropped. A
command whose purpose is its standard output ends with its reader, like other Unix filters.
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

# A pipe without a reader, or a closed terminal.
_NO_READER_ERRORS = (errno.EPIPE, errno.EIO, errno.ENXIO, errno.EBADF)

EXIT_CODE_OF_A_FILTER = 128 + signal.SIGPIPE


class ReaderLeft(OSError):
    """The reader of standard output left, and the command has no other purpose."""


class OutputError(WorldModelsError):
    """Standard output is the command's purpose and cannot be written, for example because its disk is full."""


class _Dropping(io.FileIO):
    """A file descriptor for writing that becomes the null device after a failed write.

    Attributes:
        required: Whether a failed write also raises an error.
    """

    required = False

    def write(self, data: Any, /) -> int:
        try:
            while (written := super().write(data)) is None:
                select.select([], [self], [])  # another process made this terminal or pipe non-blocking
        except OSError as error:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())  # for other writers to this descriptor, and for Python's flush at exit
            os.close(null)
            if self.required and error.errno in _NO_READER_ERRORS:
                raise ReaderLeft(str(error)) from error
            if self.required:
                raise OutputError(f"cannot write to standard output: {error.strerror}") from error
            return len(data)
        return written


def _dropping(stream: TextIO) -> io.TextIOWrapper:
    raw = _Dropping(stream.fileno(), "w", closefd=False)
    at_once = stream is sys.stderr or stream.isatty() or getattr(stream, "write_through", False)  # the last: python -u
    return io.TextIOWrapper(io.BufferedWriter(raw), stream.encoding, stream.errors, line_buffering=at_once)


def drop_unread_output() -> None:
    """Make both outputs of this process drop text that has no reader, instead of failing."""
    flush()
    for name in ("stdout", "stderr"):
        stream: TextIO | None = getattr(sys, name)
        if stream is not None:
            setattr(sys, name, _dropping(stream))


def flush() -> None:
    """Flush both outputs."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # closed before the command began
            stream.flush()


def require_a_reader(required: bool = True) -> None:
    """Set whether failed writes to standard output raise instead of being dropped."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if isinstance(raw, _Dropping):
        raw.required = required
