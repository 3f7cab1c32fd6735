"""A process that ends game engines after any end of the worker that started them.

Started by ``pipeline.envs.engines`` as a script of its own, in a new session, with a pipe from the worker. The pipe
closes with the worker, even if that is killed. Then this process kills the engines and removes their shared memory.
A worker may be killed while an engine starts, before it could be registered: so every process whose working directory
is the engines' folder ends too. It imports the standard library alone, because each worker has one. With the argument
``detached`` it is no child of the worker: Ray kills the children of a worker that it ends.

It needs Linux's /proc. Elsewhere engines end with their worker only if that closes them.
"""

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

_INSTANCE = "+viz_instance_id"  # argument of an engine, before the ID that its shared memory is named after
_TRIES = 1000  # 10 s: a killed process ends at once, unless its disk hangs


def started(pid: int) -> str | None:
    """Start time of a process in clock ticks since boot; None if it has ended, or if the system does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else fields[19]


def shared_memory(arguments: Sequence[str]) -> str | None:
    """Pattern of an engine's files in /dev/shm, from its command line; None if it is no engine."""
    if _INSTANCE not in arguments[:-1]:
        return None
    return f"ViZDoom*{arguments[arguments.index(_INSTANCE) + 1]}"


def main() -> None:
    """Read registrations, one JSON object a line, until the pipe closes; then clean up."""
    if sys.argv[1:] == ["detached"] and os.fork():
        os._exit(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    engines: list[dict[str, str | int | None]] = []
    folders: set[str] = set()
    for line in sys.stdin:
        entry = json.loads(line)
        if "folder" in entry:
            folders.add(entry["folder"])
        else:
            engines.append(entry)
    for engine in engines:
        for _ in range(_TRIES):
            # Without its start time, the process could be another one that got the same number.
            if engine["started"] is None or started(int(engine["pid"] or 0)) != engine["started"]:
                break
            with suppress(ProcessLookupError):
                os.kill(int(engine["pid"] or 0), signal.SIGKILL)
            time.sleep(0.01)
        _remove(str(engine["shared_memory"]))
    for folder in folders:
        _end_all_in(os.path.realpath(folder))
        shutil.rmtree(folder, ignore_errors=True)


def _end_all_in(folder: str) -> None:
    """End all processes whose working directory is a folder, and remove their shared memory."""
    patterns = set()
    for _ in range(_TRIES):
        found = list(_processes_in(folder))
        if not found:
            break
        for process in found:
            with suppress(OSError):
                arguments = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
                patterns.add(shared_memory(arguments))
            with suppress(ProcessLookupError):
                os.kill(int(process.name), signal.SIGKILL)
        time.sleep(0.01)
    for pattern in patterns - {None}:
        _remove(str(pattern))


def _processes_in(folder: str) -> Iterator[Path]:
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is another user's
            if str((process / "cwd").readlink()) == folder:
                yield process


def _remove(pattern: str) -> None:
    for path in Path("/dev/shm").glob(pattern):
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
