"""One local Ray for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import ray
from ray.cluster_utils import Cluster


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A local Ray with four CPUs, whatever the machine has, so that four workers fit. Their logs are not read."""
    cluster = Cluster()
    cluster.add_node(num_cpus=4, include_dashboard=False, include_log_monitor=False)
    ray.init(address=cluster.address, log_to_driver=False, _node_ip_address="127.0.0.1")
    yield
    ray.shutdown()
    cluster.shutdown()
