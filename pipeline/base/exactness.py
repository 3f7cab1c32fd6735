"""Differences that would change the bits of a run's results: refused in an exact run, else accepted with a warning."""

from __future__ import annotations

import logging

from pipeline.base.errors import ConfigError

logger = logging.getLogger(__name__)


def inexact_error(difference: str, remedy: str = "") -> ConfigError:
    """Error for a difference that an exact run refuses.

    Args:
        difference: Difference, in words; its lines, if it has several, stand alone.
        remedy: Imperative clause: what to do instead of accepting it; "" for nothing.
    """
    accept = f"{remedy}, or accept the difference" if remedy else "Accept the difference"
    return ConfigError(
        f"{difference}{_end(difference)}results would not be bit-for-bit the same. {accept} with "
        "-o execution.exact=false"
    )


def refuse_or_accept(difference: str, remedy: str, *, exact: bool) -> None:
    """Refuse a difference in an exact run, else log that it is accepted.

    Args:
        difference: See ``inexact_error``.
        remedy: See ``inexact_error``.
        exact: Whether the run must be exact (``execution.exact``).

    Raises:
        ConfigError: The run must be exact.
    """
    if exact:
        raise inexact_error(difference, remedy)
    logger.warning("%s%saccepted, as execution.exact is false", difference, _end(difference))


def _end(difference: str) -> str:
    return "\n" if "\n" in difference else ": "
