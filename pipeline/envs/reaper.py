"""A process that ends game engines after any end of the worker that started them.

Started by ``pipeline.envs.engines`` as a script of its own, in a new session, with a pipe from the worker. The pipe
closes with the worker, even if that is killed. Then this process kills the engines and removes their shared memory.
It imports the standard library alone, because each worker has one. With the argument ``detached`` it is no child of the
worker: Ray kills the children of a worker that it ends.
"""

import json
import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

_TRIES = 1000  # 10 s: a killed process ends at once, unless its disk hangs


def started(pid: int) -> str | None:
    """Start time of a process in clock ticks since boot; None if it has ended, or if the system does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else fields[19]


def main() -> None:
    """Read registrations, one JSON object a line, until the pipe closes; then clean up."""
    if sys.argv[1:] == ["detached"] and os.fork():
        os._exit(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    engines: list[dict[str, str | int | None]] = []
    folders: list[str] = []
    for line in sys.stdin:
        entry = json.loads(line)
        if "folder" in entry:
            folders.append(entry["folder"])
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
        for path in Path("/dev/shm").glob(str(engine["shared_memory"])):
            path.unlink(missing_ok=True)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
