"""Resources and identity of this machine, or of the container on it."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

import psutil

from pipeline.base.ray_environment import STOP_WAIT, is_job

_CGROUP = Path("/sys/fs/cgroup")


def num_cores() -> int:
    """Cores that this process may use, limited by the machine, its affinity and its container's quota."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        cores = min(cores, len(os.sched_getaffinity(0)))
    quota, _, period = _read("cpu.max").partition(" ")
    if quota.isdigit() and period.isdigit():
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def memory_bytes() -> int:
    """Bytes of memory that this process may use, limited by the machine and its container."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _read("memory.max")
    return min(memory, int(limit)) if limit.isdigit() else memory


def machine_name() -> str:
    """Name of this boot of this machine, or of this container on it: the scope in which process IDs are unique."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    since = boot.read_text().strip() if boot.is_file() else f"{psutil.boot_time():.0f}"
    namespace = Path("/proc/self/ns/pid")
    return " ".join((socket.gethostname(), since, str(namespace.readlink()) if namespace.is_symlink() else ""))


def reachable_address(*, ipv6: bool = False) -> str:
    """Address by which other machines reach this one: that of its default route, or its name where it has none.

    Args:
        ipv6: Whether an address of version 6 is meant, not of version 4.
    """
    family, elsewhere = (socket.AF_INET6, "2001:db8::1") if ipv6 else (socket.AF_INET, "192.0.2.1")
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as route:
            route.connect((elsewhere, 9))  # this chooses a route and sends nothing
            return str(route.getsockname()[0])
    except OSError:
        return socket.gethostname()


def stop_grace_s() -> float:
    """Minimum seconds between SIGTERM and SIGKILL for this process.

    Ray kills a job after ``RAY_JOB_STOP_WAIT_TIME_S`` (default: 3 s). Docker waits 10 s, Kubernetes 30 s, systemd
    90 s, and a person at a terminal has no fixed limit.
    """
    if not is_job():
        return 10.0
    with contextlib.suppress(ValueError):
        return float(os.environ.get(STOP_WAIT, ""))
    return 3.0


def process_started(pid: int) -> float | None:
    """Start time of a process of this machine; None if the process does not exist or is a zombie.

    In clock ticks since boot on Linux, which changes of the clock do not affect; in seconds since the Unix epoch on
    other systems.
    """
    stat = Path(f"/proc/{pid}/stat")
    with contextlib.suppress(OSError):
        # After the name in parentheses come the state and, as the 20th field from there, the start (proc(5)).
        fields = stat.read_text().rpartition(")")[2].split()
        return None if fields[0] == "Z" else float(fields[19])
    if Path("/proc/self/stat").is_file():
        return None
    with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE:
            return float(process.create_time())
    return None


def _read(name: str) -> str:
    path = _CGROUP / name
    return path.read_text().strip() if path.is_file() else ""
