"""Human-readable numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def number(value: float, digits: int = 0) -> str:
    """Format 1234.56 as 1,235, or as 1,234.6 with one digit, with a true minus sign."""
    text = f"{value:,.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}") if float(text.replace(",", "")) else text.lstrip("-")


def counted(count: int, one: str, many: str = "") -> str:
    """Format a number of things: 1 run, 2,000 runs.

    Args:
        count: Number.
        one: Singular.
        many: Plural; "" for the singular with an s.
    """
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def duration(seconds: float) -> str:
    """Format seconds: 5.7 s, 3 min 20 s, 1 h 12 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60:,} h {minutes % 60} min"


def rough_duration(seconds: float) -> str:
    """Format an estimate of seconds with two or three digits, in a suitable unit."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"


def binary_size(size_bytes: float) -> str:
    """Format bytes in binary units, as memory and disks are counted: 512 MiB, 1.5 GiB."""
    gib = 2**30
    return f"{size_bytes / gib:.1f} GiB" if size_bytes >= gib / 10 else f"{size_bytes / 2**20:.0f} MiB"


def size(size_bytes: float) -> str:
    """Format bytes: 1.2 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 999.5:
            return f"{size_bytes:.3g} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:,.1f} TB"


def fact(value: str | int | float) -> str:
    """Format a value from a stage's manifest."""
    if isinstance(value, bool | str):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def score(summary: Mapping[str, Any]) -> str:
    """Format the summary of returns: 906.5 +- 21.0 (95 % interval 901.2 to 911.8); a value of None is not finite."""
    keys = ("mean", "sd", "low", "high")
    mean, sd, low, high = ("not finite" if summary[key] is None else f"{summary[key]:.1f}" for key in keys)
    return f"{mean} +- {sd} (95 % interval {low} to {high})"
