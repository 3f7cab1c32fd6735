"""``python -m tests.simulation SEED [WORKERS]``: replay a seed, with each action of the scheduler and its time."""

from __future__ import annotations

import sys

from tests.simulation.cases import FEW, case_of
from tests.simulation.cluster import run_seed

if __name__ == "__main__":
    seed, workers = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else FEW
    print(case_of(seed, workers))
    cluster = run_seed(seed, workers, show=print)
    print(f"{sum(map(len, cluster.values))} results after {cluster.now:.2f} s")
