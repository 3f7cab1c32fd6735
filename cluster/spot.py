"""Beside a Ray node on a spot machine: turns the cloud's notice into a drain. ``python -m cluster.spot --help``."""

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

# Tries, a poll apart, until it is clear that there is no metadata service here. One that was there is waited for.
_FIRST_TRIES = 5

# How long the cluster is told of a notice that names no time.
_TELL_S = 120.0

_HELP = """\
Watches the metadata service of AWS or GCP for the notice that this spot machine is about to be taken away. When it
comes, this machine's Ray node is drained until the time that the notice gives (GCP: 30 s): Ray places no new work on
it, what runs there runs on, and drivers see that it is going. Then this command ends. It also ends when its Ray node
does. Waiting takes about 25 MB and no CPU to speak of.
"""

_EXAMPLES = """\
examples, on a worker node after `ray start`:
  nohup python -m cluster.spot > /tmp/spot.log 2>&1 &      which cloud it is, it finds out
  python -m cluster.spot --cloud aws --rebalance           leave at AWS's earlier recommendation already
  python -m cluster.spot --node-id ID                      where several Ray nodes share a machine

environment: AWS_EC2_METADATA_SERVICE_ENDPOINT (http://HOST:PORT) and GCE_METADATA_HOST (HOST:PORT) lead to another
metadata service than the cloud's, for a trial without a cloud.

in a container with a network of its own, EC2's service answers only if the instance's metadata hop limit is 2.
On Kubernetes this command is not needed: a pod gets SIGTERM, at which `ray start --block` of Ray 2.60 drains its node.

exit codes: 0 the node was drained, or ended by itself; 1 the cluster cannot be told; 2 the command line is wrong, no
metadata service answers, or no Ray node runs here; 130 Ctrl-C.
"""


def await_notice(clouds: Sequence[Cloud], node_lives: Callable[[], bool], *, poll_s: float) -> Notice | None:
    """Wait for a notice, asking every ``poll_s`` seconds; None: the Ray node has ended.

    Args:
        clouds: where this machine may be: the first one whose metadata service answers is it.
        node_lives: tells whether there is still a Ray node to watch for.

    Raises:
        ConfigError: no metadata service answers from the beginning. Later ones may fail for as long as they like.
    """
    cloud = _find(clouds, poll_s)
    logger.info("asking the metadata service of %s every %g s", cloud.name, poll_s)
    answers = True
    while node_lives():
        try:
            notice = cloud.notice()
        except MetadataError as error:
            if answers:
                logger.warning("%s; asking on", error)
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
    for tries_left in reversed(range(_FIRST_TRIES)):
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
        "container with a network of its own on EC2, set the instance's metadata hop limit to 2"
    )


def tell(node: nodes.LocalNode, notice: Notice, *, poll_s: float) -> None:
    """Drain the node.

    Raises:
        ClusterError: the cluster did not answer until the deadline, or the node ended meanwhile.
    """
    give_up_s = time.time() + _TELL_S if notice.deadline_s is None else notice.deadline_s
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
    tell(node, notice, poll_s=options.poll_s)
    logger.info("the cluster has been told")
    return 0


def _check(node: nodes.LocalNode) -> None:
    """A missing token shows now rather than with the notice. In a process that ends: Ray would stay in this one."""
    command = [sys.executable, "-m", "cluster.spot", "--check", "--node-id", node.id]
    if subprocess.run(command, check=False).returncode != 0:
        raise ClusterError(f"the cluster at {node.cluster_address} could not be told of a notice: see above")


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
    parser.add_argument("--cloud", choices=["aws", "gcp", "auto"], default="auto", help="auto unless told")
    parser.add_argument(
        "--poll-s", type=_positive, default=2.0, metavar="SECONDS", help="between two looks; 2 unless told"
    )
    parser.add_argument("--rebalance", action="store_true", help="AWS: drain at a rebalance recommendation already")
    parser.add_argument("--node-id", metavar="ID", help="the Ray node; the one that runs on this machine unless told")
    parser.add_argument(
        "--check", action="store_true", help="only see whether the cluster could be told; the watch begins with that"
    )
    return parser


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


if __name__ == "__main__":
    sys.exit(main())
