"""A process that ends game engines when the worker that started them is gone, however that ended.

Started by ``pipeline.envs.engines`` as a script of its own, in a new session, with a pipe from the worker. The pipe
closes with the worker, even if that is killed. Then this process kills the engines and removes their shared memory.
It imports the standard library alone, because each worker has one.
"""

import json
import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path


def started(pid: int) -> str | None:
    """Start time of a process in clock ticks since boot; None if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        return stat.rpartition(")")[2].split()[19]
    except OSError:
        return None


def main() -> None:
    """Read registrations, one JSON object a line, until the pipe closes; then clean up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    engines: list[dict[str, str | int]] = []
    folders: list[str] = []
    for line in sys.stdin:
        entry = json.loads(line)
        if "folder" in entry:
            folders.append(entry["folder"])
        else:
            engines.append(entry)
    for engine in engines:
        while started(int(engine["pid"])) == engine["started"]:
            with suppress(ProcessLookupError):
                os.kill(int(engine["pid"]), signal.SIGKILL)
            time.sleep(0.01)
        for path in Path("/dev/shm").glob(str(engine["shared_memory"])):
            path.unlink(missing_ok=True)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
