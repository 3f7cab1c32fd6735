"""How the command and its workers log: plain lines on standard error."""

from __future__ import annotations

import logging


def configure_logging() -> None:
    """Messages of this project from INFO, everybody else's from WARNING."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for package in ("pipeline", "actors", "cluster"):
        logging.getLogger(package).setLevel(logging.INFO)
