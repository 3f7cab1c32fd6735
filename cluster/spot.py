"""Watches for spot notices next to a Ray node, and drains the node. See ``python -m cluster.spot --help``."""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from actors import nodes
from cluster.metadata import Aws, Cloud, Gcp, MetadataError, Notice
from pipeline.base.errors import ClusterError, ConfigError, WorldModelsError

logger = logging.getLogger(__name__)

# Attempts, a poll apart, to find a metadata service. A service that has answered once is waited for without limit.
_FIND_ATTEMPTS = 5

# Seconds of attempts to drain the node if the notice has no time.
_DRAIN_ATTEMPTS_S = 120.0

_HELP = """\
Watches the metadata service of AWS or GCP for the notice that this spot machine will be taken away. At the notice, this
command drains the machine's Ray node until the time in the notice (GCP: 30 s): Ray places no new work on the node, its
present work continues, and drivers see that the node is going away. Then this command ends. It also ends with its Ray
node. Waiting takes about 25 MB and almost no CPU.
"""

_EXAMPLES = """\
examples, on a worker node after `ray start`:
  nohup python -m cluster.spot > /tmp/spot.log 2>&1 &      detect the cloud
  python -m cluster.spot --cloud aws --rebalance           also drain at AWS's earlier recommendation
  python -m cluster.spot --node-id ID                      if several Ray nodes share the machine

environment: AWS_EC2_METADATA_SERVICE_ENDPOINT (http://HOST:PORT) and GCE_METADATA_HOST (HOST:PORT) name another
metadata service than the cloud's, for a test without a cloud.

In a container with its own network, EC2's service answers only if the instance's metadata hop limit is 2.
On Kubernetes this command is not needed: at SIGTERM, `ray start --block` of Ray 2.60 drains the node of the pod.

exit codes: 0 the node was drained or has ended; 1 the cluster cannot be reached or refuses; 2 the command line is
wrong, no metadata service answers, or no Ray node runs here; 130 Ctrl-C.
"""


def await_notice(clouds: Sequence[Cloud], node_lives: Callable[[], bool], *, poll_s: float) -> Notice | None:
    """Wait for a notice.

    Args:
        clouds: Possible clouds of this machine; the first one whose metadata service answers is used.
        node_lives: Function that returns whether the Ray node still runs.
        poll_s: Interval of the requests in seconds.

    Returns:
        The notice; None if the Ray node has ended.

    Raises:
        ConfigError: No metadata service answers at the start. Later failures are waited out without limit.
    """
    cloud = _find(clouds, poll_s)
    logger.info("polling the metadata service of %s every %g s", cloud.name, poll_s)
    answers = True
    while node_lives():
        try:
            notice = cloud.notice()
        except MetadataError as error:
            if answers:
                logger.warning("%s; still polling", error)
            answers = False
        else:
            if notice is not None:
                return notice
            if not answers:
                logger.info("the metadata service answers again")
            answers = True
        time.sleep(poll_s)
    return None


def _find(clouds: Sequence[Cloud], poll_s: float) -> Cloud:
    for tries_left in reversed(range(_FIND_ATTEMPTS)):
        troubles = []
        for cloud in clouds:
            try:
                cloud.notice()
            except MetadataError as error:
                troubles.append(f"{cloud.name}: {error}")
            else:
                return cloud
        if tries_left:
            time.sleep(poll_s)
    raise ConfigError(
        f"no metadata service answers here ({'; '.join(troubles)}): this command is for machines of AWS and GCP. In a "
        "container with its own network on EC2, set the instance's metadata hop limit to 2"
    )


def drain_node(node: nodes.LocalNode, notice: Notice, *, poll_s: float) -> None:
    """Drain the node.

    Args:
        node: Ray node of this machine.
        notice: Notice of the cloud.
        poll_s: Interval of the attempts in seconds.

    Raises:
        ClusterError: The cluster did not answer before the deadline, or the node has ended meanwhile.
    """
    give_up_s = time.time() + _DRAIN_ATTEMPTS_S if notice.deadline_s is None else notice.deadline_s
    while True:
        try:
            nodes.drain(node.id, node.cluster_address, reason=notice.what, deadline_s=notice.deadline_s)
            return
        except ClusterError as error:
            if time.time() >= give_up_s or not node.lives():
                raise
            logger.warning("%s; trying again", error)
        time.sleep(poll_s)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = _make_parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        return _watch(options)
    except WorldModelsError as error:
        logger.error("%s", error)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def _watch(options: argparse.Namespace) -> int:
    node = nodes.this_node(options.node_id)
    if options.check:
        nodes.check_reachable(node.cluster_address)
        return 0
    _check(node)
    logger.info("watching for Ray node %s of the cluster at %s", node.id, node.cluster_address)
    notice = await_notice(_clouds(options), node.lives, poll_s=options.poll_s)
    if notice is None:
        logger.info("Ray node %s has ended", node.id)
        return 0
    left = "" if notice.deadline_s is None else f", {notice.deadline_s - time.time():.0f} s from now"
    logger.warning("%s%s: draining Ray node %s", notice.what, left, node.id)
    drain_node(node, notice, poll_s=options.poll_s)
    logger.info("the cluster has accepted the drain")
    return 0


def _check(node: nodes.LocalNode) -> None:
    """Check the connection and the token before any notice, in another process: Ray would stay in this one."""
    command = [sys.executable, "-m", "cluster.spot", "--check", "--node-id", node.id]
    if subprocess.run(command, check=False).returncode != 0:
        raise ClusterError(f"the cluster at {node.cluster_address} could not be notified: see the error above")


def _clouds(options: argparse.Namespace) -> list[Cloud]:
    clouds: list[Cloud] = []
    if options.cloud in ("aws", "auto"):
        clouds.append(Aws(rebalance=options.rebalance))
    if options.cloud in ("gcp", "auto"):
        clouds.append(Gcp())
    return clouds


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cluster.spot",
        description=_HELP,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--cloud", choices=["aws", "gcp", "auto"], default="auto", help="cloud of this machine (default: auto)"
    )
    parser.add_argument(
        "--poll-s", type=_positive, default=2.0, metavar="SECONDS", help="interval of the requests (default: 2)"
    )
    parser.add_argument("--rebalance", action="store_true", help="AWS: also drain at a rebalance recommendation")
    parser.add_argument("--node-id", metavar="ID", help="ID of the Ray node (default: the only one on this machine)")
    parser.add_argument(
        "--check",
        action="store_true",
        help="only check that the cluster could be notified; the watch also begins with this check",
    )
    return parser


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number above 0")
    return number


if __name__ == "__main__":
    sys.exit(main())
