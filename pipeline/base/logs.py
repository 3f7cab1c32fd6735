"""Logging of the command and its workers: plain lines on standard error."""

from __future__ import annotations

import logging


def configure_logging() -> None:
    """Log this project's messages from INFO, all others from WARNING."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for package in ("pipeline", "actors", "cluster"):
        logging.getLogger(package).setLevel(logging.INFO)
