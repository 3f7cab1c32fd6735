"""Thread counts from the config: they change results (matrix products, ``eigh``, convolution gradients)."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits

from pipeline.base.errors import ConfigError


def check_thread_limit(count: int) -> None:
    """Refuse more threads than the environment allows OpenMP.

    torch 2.13 does not notice that it has fewer threads than requested: in the first backward pass of a convolution
    it waits for the others forever, at full load, and ignores SIGTERM.

    Args:
        count: Number of threads used at a time.

    Raises:
        ConfigError: ``OMP_THREAD_LIMIT`` is below ``count``. The message names both.
    """
    limit = os.environ.get("OMP_THREAD_LIMIT", "").strip()
    if limit.isdigit() and int(limit) < count:
        raise ConfigError(
            f"OMP_THREAD_LIMIT={limit} allows fewer threads than the {count} of this run, and training would hang "
            "forever. Unset OMP_THREAD_LIMIT, or lower vae.threads and mdnrnn.threads (in a new --run-dir, because "
            "they change results)."
        )


@contextmanager
def num_threads(count: int) -> Iterator[None]:
    """Run BLAS, OpenMP and torch with ``count`` threads, and restore the previous numbers afterwards.

    Raises:
        ConfigError: See ``check_thread_limit``.
    """
    check_thread_limit(count)
    with threadpool_limits(limits=count):
        torch = sys.modules.get("torch")  # not imported just for this: some workers do not need it
        before = torch.get_num_threads() if torch is not None else None
        if torch is not None:
            torch.set_num_threads(count)
        try:
            yield
        finally:
            if torch is not None and before is not None:
                torch.set_num_threads(before)
