"""cluster/slurm.sh, with stand-ins for SLURM, Ray and the driver: starts, stops and requeues."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.cli.main import make_parser
from pipeline.config.presets import load_config
from tests.cluster_files.documents import ROOT, parse_ray_command
from tests.cluster_files.stand_ins import StandIns, after, option, shellcheck

SCRIPT = ROOT / "cluster" / "slurm.sh"
RUN = ["tiny", "--run-dir", "/shared/runs/tiny", "-o", "seed=2"]
DEADLINE_S = 120  # catches hanging scripts only

# Options of sbatch, as SLURM is not installed here.
SBATCH_OPTIONS = {
    "nodes", "time", "job-name", "output", "open-mode", "exclusive", "ntasks-per-node", "mem", "no-kill", "requeue",
    "signal",
}  # fmt: skip

SEEN = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_worker_niceness", "PYTHONUNBUFFERED")
SRUN = """\
case " $* " in
  *" hostname "*) echo "${ADDRESSES-fe80::1 127.0.1.1 10.1.2.3 10.9.9.9}" ;;
  *) while [[ $1 == --* ]]; do shift; done; exec "$@" ;;
esac
"""
RAY = """\
if [ "$1" = get-auth-token ]; then echo secret; exit; fi
while [ "$1" != -- ]; do shift; done
shift
exec "$@"
"""
# A driver that runs until it is stopped like the real one.
STOPPABLE = 'trap "exit 143" TERM; touch "$HOME/runs"; while :; do sleep 0.05; done'


class Slurm:
    """An allocation of three nodes with stand-ins."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.commands = StandIns(folder, SEEN)
        self.commands.add("scontrol", 'if [ "$1" = show ]; then printf "n7\\nn8\\nn9\\n"; fi')
        self.commands.add("srun", SRUN)
        self.processes: list[subprocess.Popen[str]] = []

    def has(self, *, driver: str, ray: str = RAY) -> None:
        """Set the scripts of the driver and of Ray."""
        self.commands.add("world-models", driver)
        self.commands.add("ray", ray)

    def start(self, **variables: str) -> subprocess.Popen[str]:
        allocation = {
            "SLURM_JOB_ID": "42", "SLURM_JOB_NODELIST": "n[7-9]", "SLURM_JOB_NUM_NODES": "3",
            "SLURM_CPUS_ON_NODE": "16",
        }  # fmt: skip
        process = subprocess.Popen(
            ["bash", str(SCRIPT), *RUN],
            cwd=self._folder,
            env=self.commands.environment(**allocation, **variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def run(self, **variables: str) -> int:
        """Run the script to its end; returns its exit code."""
        process = self.start(**variables)
        self.output, _ = process.communicate(timeout=DEADLINE_S)
        return process.returncode

    def await_file(self, name: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not (self._folder / name).exists():
            assert time.monotonic() < deadline, f"no {name}"
            time.sleep(0.02)

    def stop(self, process: subprocess.Popen[str], number: signal.Signals) -> int:
        """Send a signal to the script only, as SLURM does; returns its exit code."""
        process.send_signal(number)
        self.output, _ = process.communicate(timeout=DEADLINE_S)
        return process.returncode

    def requeues(self) -> list[list[str]]:
        return [call.words[1:] for call in self.commands.calls("scontrol") if call.words[1] == "requeue"]


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Slurm]:
    allocation = Slurm(tmp_path)
    yield allocation
    for process in allocation.processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the rest of its session
        process.wait()


def directives() -> dict[str, str]:
    """The options in the script's #SBATCH lines."""
    lines = re.findall(r"^#SBATCH --(.+)$", SCRIPT.read_text(), flags=re.MULTILINE)
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def test_script_is_lint_free() -> None:
    assert shellcheck(SCRIPT.read_text()) == ""
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ('$(cat "$STATE/pid")" ||', '$(cat $STATE/pid)" ||', "SC2086"),
        ('nodelist="$first"', "nodelist=$first", "SC2086"),
        ("export RAY_AUTH_TOKEN RAY", "export $RAY_AUTH_TOKEN RAY", "SC2163"),
    ],
)
def test_linter_finds_planted_errors(old: str, new: str, rule: str) -> None:
    text = SCRIPT.read_text()
    assert text.count(old) == 1
    assert rule in shellcheck(text.replace(old, new), "--format=gcc")


def test_sbatch_requests_whole_nodes_and_requeues() -> None:
    options = directives()
    assert options.keys() == SBATCH_OPTIONS
    assert options["signal"].startswith("B:USR1@"), "not SIGTERM: a job that scancel ends must stay ended"
    assert int(options["signal"].partition("@")[2]) >= 60
    assert options["ntasks-per-node"] == "1" and options["mem"] == "0"
    assert options["open-mode"] == "append", "a second start keeps the first one's log"


def test_sbatch_reads_all_of_its_lines() -> None:
    """sbatch stops reading at the first command."""
    lines = SCRIPT.read_text().splitlines()
    commands = [number for number, line in enumerate(lines) if line and not line.startswith("#")]
    assert max(number for number, line in enumerate(lines) if line.startswith("#SBATCH")) < commands[0]
    assert lines[0] == "#!/bin/bash"


def test_ray_starts_on_all_nodes_and_the_driver_on_the_first(slurm: Slurm) -> None:
    slurm.has(driver="exit 0")
    assert slurm.run() == 0, slurm.output
    names = [call.words[:2] if call.words[0] != "srun" else ["srun"] for call in slurm.commands.calls()]
    assert names == [
        ["scontrol", "show"], ["srun"], ["ray", "get-auth-token"], ["srun"], ["ray", "symmetric-run"],
        ["world-models", "run"],
    ]  # fmt: skip
    asked, started = (call.words for call in slurm.commands.calls("srun"))
    assert option(asked, "--nodelist") == "n7" and asked[-2:] == ["hostname", "--ip-address"]
    assert option(started, "--nodes") == option(started, "--ntasks") == "3"
    assert option(started, "--cpus-per-task") == "16", "srun gives a task one CPU otherwise"
    assert {"--no-kill", "--kill-on-bad-exit=0", "--cpu-bind=none"} < set(started)
    assert not slurm.requeues()


def test_ray_has_the_private_address_and_a_token(slurm: Slurm) -> None:
    slurm.has(driver="exit 0")
    slurm.run()
    _, ray = slurm.commands.calls("ray")
    assert option(ray.words, "--address") == "10.1.2.3:6379", "neither loopback nor IPv6"
    assert option(ray.words, "--min-nodes") == "3" and option(ray.words, "--num-cpus") == "16"
    assert option(ray.words, "--temp-dir") == "/tmp/ray-42", "/tmp/ray may be another user's"
    (driver,) = slurm.commands.calls("world-models")
    wanted = {
        "RAY_ADDRESS": "10.1.2.3:6379", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "secret",
        "RAY_worker_niceness": "0", "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    assert ray.environment == driver.environment == wanted
    assert not any("secret" in word for call in slurm.commands.calls() for word in call.words), "ps shows words"


def test_ray_knows_the_options(slurm: Slurm) -> None:
    slurm.has(driver="exit 0")
    slurm.run()
    _, ray = (call.words for call in slurm.commands.calls("ray"))
    own = parse_ray_command(shlex.join(ray))
    assert own["address"] == "10.1.2.3:6379" and own["min_nodes"] == 3
    passed_on = [word for word in ray[: ray.index("--")] if word.startswith(("--num-cpus", "--temp-dir"))]
    for where in (["--head", "--port=6379"], ["--address=10.1.2.3:6379"]):
        options = parse_ray_command(shlex.join(["ray", "start", *where, *passed_on]))
        assert options["num_cpus"] == 16 and options["temp_dir"] == "/tmp/ray-42"
    assert after(ray, "--")[:2] == ["bash", "-c"]


def test_driver_gets_the_arguments_and_workers_get_all_nodes(slurm: Slurm) -> None:
    slurm.has(driver="exit 0")
    slurm.run()
    (driver,) = slurm.commands.calls("world-models")
    options = make_parser().parse_args(driver.words[1:])
    assert (options.command, options.preset, options.run_dir) == ("run", "tiny", "/shared/runs/tiny")
    config = load_config(options.preset, options.override)
    assert config.seed == 2
    assert config.execution.workers_on == ["head", "gpu-nodes"]
    own = load_config(options.preset, [*options.override, "execution.workers_on=[]"])
    assert own.execution.workers_on == [], "a later -o overrides it"


@pytest.mark.parametrize("code", [0, 1, 2, 3, 143])
def test_job_has_the_exit_code_of_the_driver(slurm: Slurm, code: int) -> None:
    slurm.has(driver=f"exit {code}")
    assert slurm.run() == code
    assert slurm.requeues() == []


def test_time_limit_stops_the_driver_and_requeues_the_job(slurm: Slurm) -> None:
    slurm.has(driver=STOPPABLE)
    process = slurm.start()
    slurm.await_file("runs")
    assert slurm.stop(process, signal.SIGUSR1) == 143
    assert slurm.requeues() == [["requeue", "42"]]
    assert slurm.commands.calls()[-1].words[:2] == ["scontrol", "requeue"], "after the driver has ended"


def test_requeued_job_runs_the_same_command(slurm: Slurm) -> None:
    slurm.has(driver=STOPPABLE)
    process = slurm.start()
    slurm.await_file("runs")
    slurm.stop(process, signal.SIGUSR1)
    slurm.commands.add("world-models", "exit 0")
    assert slurm.run() == 0
    first, second = slurm.commands.calls("world-models")
    assert first == second
    assert len(slurm.requeues()) == 1


def test_cancelled_or_preempted_job_stops_the_driver_without_a_requeue(slurm: Slurm) -> None:
    """SLURM itself requeues a preempted job; a cancelled one must stay cancelled."""
    slurm.has(driver=STOPPABLE)
    process = slurm.start()
    slurm.await_file("runs")
    assert slurm.stop(process, signal.SIGTERM) == 143
    assert slurm.requeues() == []


@pytest.mark.parametrize("code", [0, 1, 3])
def test_job_that_ends_by_itself_is_not_requeued(slurm: Slurm, code: int) -> None:
    slurm.has(driver=STOPPABLE.replace("143", str(code)))
    process = slurm.start()
    slurm.await_file("runs")
    assert slurm.stop(process, signal.SIGUSR1) == code
    assert slurm.requeues() == []


def test_time_limit_during_ray_startup_requeues_the_job(slurm: Slurm) -> None:
    waits = 'touch "$HOME/starts"; while :; do sleep 0.05; done'
    slurm.has(driver="exit 0", ray=f'if [ "$1" = get-auth-token ]; then echo secret; exit; fi\n{waits}')
    process = slurm.start()
    slurm.await_file("starts")
    assert slurm.stop(process, signal.SIGUSR1) == 128 + signal.SIGTERM
    assert slurm.requeues() == [["requeue", "42"]]
    assert slurm.commands.calls("world-models") == []


def test_failed_ray_start_fails_the_job(slurm: Slurm) -> None:
    """`ray symmetric-run` then ends with 0."""
    slurm.has(driver="exit 0", ray="echo secret")
    assert slurm.run() == 1
    assert slurm.commands.calls("world-models") == []


def test_nothing_starts_without_an_address(slurm: Slurm) -> None:
    slurm.has(driver="exit 0")
    assert slurm.run(ADDRESSES="127.0.1.1 fe80::1") == 2
    assert "HEAD_IP" in slurm.output
    assert slurm.commands.calls("ray") == []


def test_given_address_is_used(slurm: Slurm) -> None:
    slurm.has(driver="exit 0")
    assert slurm.run(HEAD_IP="10.5.5.5") == 0
    assert len(slurm.commands.calls("srun")) == 1
    assert slurm.commands.calls("world-models")[0].environment["RAY_ADDRESS"] == "10.5.5.5:6379"
