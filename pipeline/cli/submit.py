"""``world-models submit``."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from pipeline.cli.arguments import FORMATTER, add_override, add_reuse, written_dir
from pipeline.cli.study import add_arms

if TYPE_CHECKING:
    from pipeline.cli.arguments import Commands

_SUBMIT_EXAMPLES = """\
examples:
  world-models submit paper --run-dir s3://bucket/paper --address http://127.0.0.1:8265
  world-models submit paper --run-dir s3://bucket/paper --follow           again, to resume it
  world-models submit ablation --run-dir s3://bucket/ablation              a study, as many runs at once as fit
  world-models submit laptop --vary mdnrnn.init=trained,random --seeds 1,2,3 --run-dir s3://bucket/init
  world-models submit my.yaml --run-dir s3://bucket/mine --env AWS_PROFILE=runs -o evolve.population_size=256
"""


def add_parser(commands: Commands) -> None:
    """Add ``submit``."""
    text = "submit a run to a Ray cluster as a job; sources are uploaded, dependencies come from the cluster's image"
    submit = commands.add_parser(
        "submit", help=text, description=text, epilog=_SUBMIT_EXAMPLES, formatter_class=FORMATTER
    )
    submit.add_argument(
        "preset", metavar="CONFIG", help="preset, study, or path of a YAML file of either, which is uploaded too"
    )
    submit.add_argument(
        "--run-dir",
        type=written_dir,
        required=True,
        help="run directory: s3://bucket/prefix, or the absolute path of a folder that all nodes share",
    )
    add_override(submit)
    add_arms(submit)
    add_reuse(submit)
    submit.add_argument(
        "--address",
        help="address of the job server, http://HOST:PORT (default: RAY_API_SERVER_ADDRESS, else "
        "http://127.0.0.1:8265)",
    )
    submit.add_argument(
        "--follow", action="store_true", help="print the job's output until it ends, and exit with its code"
    )
    submit.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="environment variable for the job and its workers (default value: its value here); may be repeated; "
        "the AWS settings of region, endpoint and retries are always passed, secrets never: name a profile or a file",
    )
    submit.set_defaults(perform=_submit)


def _submit(options: argparse.Namespace) -> int:
    from cluster.submit import make_job, submit

    job = make_job(
        options.preset, options.override, options.run_dir, options.env, os.environ,
        reuse=options.reuse, varied=options.vary, seeds=options.seeds,
    )  # fmt: skip
    return submit(job, options.address, follow=options.follow)
