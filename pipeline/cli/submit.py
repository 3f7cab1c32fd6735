"""``world-models submit``."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from pipeline.cli.arguments import FORMATTER, add_override, run_dir

if TYPE_CHECKING:
    from pipeline.cli.arguments import Commands

_SUBMIT_EXAMPLES = """\
examples:
  world-models submit paper --run-dir s3://bucket/paper --address http://127.0.0.1:8265
  world-models submit paper --run-dir s3://bucket/paper --follow           again: it resumes
  world-models submit my.yaml --run-dir s3://bucket/mine --env AWS_PROFILE=runs -o evolve.population_size=256
"""


def add_parser(commands: Commands) -> None:
    """Add the command."""
    text = "hand a run to a Ray cluster as a job: the sources travel, dependencies are those of its image"
    submit = commands.add_parser(
        "submit", help=text, description=text, epilog=_SUBMIT_EXAMPLES, formatter_class=FORMATTER
    )
    submit.add_argument("preset", metavar="CONFIG", help="a preset, or the path of a YAML file, which travels, too")
    submit.add_argument(
        "--run-dir",
        type=run_dir,
        required=True,
        help="s3://bucket/prefix, or the absolute path of a folder that all nodes share",
    )
    add_override(submit)
    submit.add_argument(
        "--address",
        help="of the job server, http://HOST:PORT; RAY_API_SERVER_ADDRESS or else http://127.0.0.1:8265 unless told",
    )
    submit.add_argument("--follow", action="store_true", help="show its output; its exit code becomes this one's")
    submit.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="a variable for the job and its workers, with its value here unless one is given; may be repeated. "
        "AWS_REGION and AWS_ENDPOINT_URL go without being asked for, secrets never: name a profile or a file",
    )
    submit.set_defaults(perform=_submit)


def _submit(options: argparse.Namespace) -> int:
    from cluster.submit import make_job, submit

    job = make_job(options.preset, options.override, options.run_dir, options.env, os.environ)
    return submit(job, options.address, follow=options.follow)
