"""Thread counts, set from the config: they change bits (matrix products, ``eigh``, convolution gradients)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits


@contextmanager
def num_threads(count: int) -> Iterator[None]:
    """Run BLAS, OpenMP and torch with so many threads, and set them back afterwards."""
    with threadpool_limits(limits=count):
        torch = sys.modules.get("torch")  # not imported for its threads: some workers do without it
        before = torch.get_num_threads() if torch is not None else None
        if torch is not None:
            torch.set_num_threads(count)
        try:
            yield
        finally:
            if torch is not None and before is not None:
                torch.set_num_threads(before)
