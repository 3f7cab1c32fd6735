"""The command line of ``world-models``: its commands, arguments and help."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING

from pipeline.base.errors import ConfigError
from pipeline.config.presets import preset_names
from pipeline.storage.store import as_run_dir

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

_FORMATTER = argparse.RawDescriptionHelpFormatter

_STAGES = {
    "collect": "1: drive the environment with a random policy, write episodes to shards",
    "train-vae": "2: train the VAE (V) on the frames",
    "encode": "3: turn the frames into latents",
    "train-mdnrnn": "4: train the MDN-RNN (M) on latents and actions",
    "evolve": "5: evolve the controller (C) by CMA-ES",
    "evaluate": "6: drive the test tracks",
    "report": "7: make the page that shows what came out",
}

_EXAMPLES = """\
examples:
  world-models run tiny                                   the whole pipeline in minutes, into runs/tiny
  world-models run tiny                                   again: what is complete is skipped
  world-models run laptop --run-dir /data/laptop          a real result on a few cores
  world-models run tiny -o evolve.population_size=8 -o seed=2 --run-dir runs/x
  world-models run my.yaml --run-dir runs/mine            a config of your own
  world-models train-vae tiny                             one stage, with the same arguments
  world-models run tiny --run-dir s3://bucket/tiny        on object storage; credentials from the AWS environment
  world-models resume runs/tiny                           go on with a run, by the config that it keeps
  world-models status runs/tiny                           where a run is, and who drives it
  world-models plan paper --workers 256 --price 0.05      what an evolution takes, in seconds and dollars
  world-models submit paper --run-dir s3://bucket/paper   as a job of a Ray cluster
  world-models storage check runs/tiny                    verify every byte of a run
"""

BENCHES = {
    "env": "Gymnasium's CarRacing-v3 beside ours, a core",
    "agent": "the naive agent loop beside a rollout worker, a core",
    "generation": "one generation of 64 x 16 episodes on all cores, around the controllers of a run",
    "fidelity": "the best controller of a run on both drawings and at every precision of V's encoder",
    "collect": "the environment alone beside collecting frames into shards, a core",
    "train-vae": "a plain training step of V beside the pipeline's",
    "train-mdnrnn": "a plain training step of M beside the pipeline's",
    "dream": "one dream at a time beside many, a core",
    "storage": "numpy files beside shards",
    "fanout": "how busy the pool keeps hundreds of workers, whose episodes are simulated; about 20 minutes",
}

_BENCH_EXAMPLES = """\
examples:
  world-models bench env                                  a table with the ratio
  world-models bench agent --seconds 30 --json            the last line is one JSON object
  world-models bench generation                           takes minutes, and a run: see --run-dir
  world-models bench all                                  everything: what the README shows
"""

_PLAN_EXAMPLES = """\
examples:
  world-models plan paper --price 0.05                    16 to 1,024 workers; measures this machine's speed first
  world-models plan paper --workers 256 --price 0.05 --steps-per-s 2200 900
                                                          with a speed that was measured elsewhere
  world-models plan laptop --run-dir runs/laptop          episodes as long as that run's were
  world-models plan paper -o rollouts.lanes=8 --json      the last line is one JSON object
"""

_SUBMIT_EXAMPLES = """\
examples:
  world-models submit paper --run-dir s3://bucket/paper --address http://127.0.0.1:8265
  world-models submit paper --run-dir s3://bucket/paper --follow           again: it resumes
  world-models submit my.yaml --run-dir s3://bucket/mine --env AWS_PROFILE=runs -o evolve.population_size=256
"""

_EXIT_CODES = """\
exit codes: 0 done; 1 failed, the message says what to do; 2 the command line or the config is wrong, nothing was
written; 3 a wall-clock limit ended the session; 130 Ctrl-C; 143 SIGTERM. After 1, 3, 130, 143 or a kill: run the same
command again, or `world-models resume RUN_DIR`: both go on from what is committed.
"""


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="world-models",
        description="World Models (Ha & Schmidhuber 2018) as a pipeline on Ray: VAE, MDN-RNN, CMA-ES controller.",
        epilog=_EXAMPLES + "\n" + _EXIT_CODES,
        formatter_class=_FORMATTER,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in {"run": "all stages in order; goes on where it was", **_STAGES}.items():
        command = commands.add_parser(name, help=text, description=text, epilog=_EXIT_CODES, formatter_class=_FORMATTER)
        command.add_argument(
            "preset",
            metavar="CONFIG",
            help=f"a preset ({', '.join(preset_names())}), the path of a YAML file, or - for standard input",
        )
        _add_override(command)
        command.add_argument(
            "--run-dir",
            type=_run_dir,
            help="where the run lives, a folder or s3://bucket/prefix; by default runs/NAME, NAME being the config's",
        )
    text = "go on with a run by the config that it keeps; the same as `run` with the same arguments"
    resume = commands.add_parser("resume", help=text, description=text, epilog=_EXIT_CODES, formatter_class=_FORMATTER)
    resume.add_argument("run_dir", metavar="RUN_DIR", type=_run_dir)
    _add_override(resume)
    text = "where a run is: stages, evolution, time left, who drives it"
    status = commands.add_parser("status", help=text, description=text)
    status.add_argument("run_dir", metavar="RUN_DIR", type=_run_dir)
    _add_plan(commands)
    _add_submit(commands)
    _add_storage(commands)
    _add_bench(commands)
    return parser


def _add_plan(commands: Commands) -> None:
    text = "what an evolution takes on so many workers: seconds and dollars a generation, and to published scores"
    plan = commands.add_parser(
        "plan",
        help=text,
        description=f"{text}.\nComputed, from how fast a worker is and how the pool hands episodes out; starts nothing "
        "on any cluster.\nWhat is taken for granted is listed below the table.",
        epilog=_PLAN_EXAMPLES,
        formatter_class=_FORMATTER,
    )
    plan.add_argument("preset", metavar="CONFIG", help="a preset, or the path of a YAML file")
    _add_override(plan)
    plan.add_argument(
        "--workers",
        type=_positive,
        nargs="+",
        metavar="N",
        help="numbers of workers, one a vCPU; 16, 32 and so on to 1,024 unless told",
    )
    plan.add_argument("--price", type=_above_zero, metavar="DOLLARS", help="of a vCPU-hour; without it no dollars")
    plan.add_argument(
        "--steps-per-s",
        type=_above_zero,
        nargs=2,
        metavar=("ALL", "ONE"),
        help="agent-steps/s of a worker with all its lanes at work, and with one; measured here unless given, by a "
        "worker on each core at once",
    )
    plan.add_argument(
        "--seconds", type=_above_zero, default=5.0, help="each of the two is measured for so long; 5 unless told"
    )
    plan.add_argument(
        "--run-dir",
        type=_run_dir,
        help="a run whose training episodes tell how long episodes are; without it all last to their limit",
    )
    plan.add_argument(
        "--dispatch-ms",
        type=_not_negative,
        metavar="MS",
        help="driver's time an episode, for handing it out and taking its result; unless told, as measured here once",
    )
    plan.add_argument(
        "--overhead-ms",
        type=_not_negative,
        metavar="MS",
        help="driver's time a generation, for CMA-ES and the checkpoint; unless told, as measured here once",
    )
    plan.add_argument("--json", action="store_true", help="one JSON object as the last line")


def _add_submit(commands: Commands) -> None:
    text = "hand a run to a Ray cluster as a job: the sources travel, dependencies are those of its image"
    submit = commands.add_parser(
        "submit", help=text, description=text, epilog=_SUBMIT_EXAMPLES, formatter_class=_FORMATTER
    )
    submit.add_argument("preset", metavar="CONFIG", help="a preset, or the path of a YAML file, which travels, too")
    submit.add_argument(
        "--run-dir",
        type=_run_dir,
        required=True,
        help="s3://bucket/prefix, or the absolute path of a folder that all nodes share",
    )
    _add_override(submit)
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


def _add_override(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "-o",
        "--override",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="set a config key by its dotted name, for example evolve.population_size=8; may be repeated. "
        "All keys are in pipeline/config/schema.py and in RUN_DIR/config.yaml",
    )


def _add_bench(commands: Commands) -> None:
    text = "measure speed, ours beside a reference, in turn in one run"
    bench = commands.add_parser(
        "bench",
        help=text,
        description=text + ":\n" + "\n".join(f"  {name:<13} {what}" for name, what in BENCHES.items()),
        epilog=_BENCH_EXAMPLES,
        formatter_class=_FORMATTER,
    )
    bench.add_argument(
        "name", metavar="NAME", choices=[*BENCHES, "all"], help=f"{', '.join(BENCHES)}; or all: every one but fanout"
    )
    bench.add_argument(
        "--run-dir",
        type=_run_dir,
        help="the run whose controllers `generation` and `fidelity` drive; by default runs/laptop, or else runs/tiny, "
        "which is made first (minutes) where neither is there",
    )
    bench.add_argument(
        "--seconds",
        type=_above_zero,
        default=10.0,
        help="each side is measured for so long, all turns together; 10 unless told",
    )
    bench.add_argument(
        "--workers",
        type=_positive,
        default=256,
        metavar="N",
        help="`fanout` goes up to so many, all of them on this machine: 256 take 20 GiB of memory; 256 unless told",
    )
    bench.add_argument("--json", action="store_true", help="one JSON object as the last line")


def _add_storage(commands: Commands) -> None:
    text = "look after the bytes of a run"
    storage = commands.add_parser("storage", help=text, description=text, formatter_class=_FORMATTER)
    actions = storage.add_subparsers(dest="action", required=True, metavar="ACTION")
    text = "read everything and verify manifests, records, sizes, checksums and row counts; exit code 1 on damage"
    check = actions.add_parser("check", help=text, description=text)
    check.add_argument("run_dir", metavar="RUN_DIR", type=_run_dir)
    text = "remove what no record names and old checkpoints; only says what it would remove unless --delete is given"
    gc = actions.add_parser("gc", help=text, description=text)
    gc.add_argument("run_dir", metavar="RUN_DIR", type=_run_dir)
    gc.add_argument("--delete", action="store_true", help="remove it; takes the run's lease")
    gc.add_argument(
        "--keep",
        type=_positive,
        metavar="N",
        help="checkpoints to keep a stage, one at least; as the run's config unless told",
    )
    text = "copy a run to another place, every byte verified; an interrupted copy goes on"
    copy = actions.add_parser("copy", help=text, description=text)
    copy.add_argument("source", metavar="FROM", type=_run_dir)
    copy.add_argument("target", metavar="TO", type=_run_dir)


def _run_dir(text: str) -> str:
    try:
        return as_run_dir(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: a whole number above 0 was expected")
    return int(text)


def _above_zero(text: str) -> float:
    number = _number(text)
    if number <= 0:
        raise argparse.ArgumentTypeError(f"{text}: a number above 0 was expected")
    return number


def _not_negative(text: str) -> float:
    number = _number(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text}: 0 or a number above it was expected")
    return number


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text}: a number was expected")
    return number
