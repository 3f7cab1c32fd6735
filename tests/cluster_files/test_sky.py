"""cluster/sky.yaml: its fields against SkyPilot's, and the effect of its commands on each node.

SkyPilot itself is not installed: it wants an older click than the project's. ``sky_schema.json`` says from which
version its fields were taken.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import botocore.session
import pytest

from pipeline.cli.main import make_parser
from pipeline.config.presets import load_config
from tests.cluster_files.documents import (
    ROOT,
    Keys,
    filled_in,
    load,
    parse_ray_command,
    schema_problems,
    unnoticed_typos,
    with_value,
)
from tests.cluster_files.stand_ins import Call, StandIns, after, option, shellcheck

FILE = ROOT / "cluster" / "sky.yaml"
SCHEMA = json.loads((Path(__file__).parent / "sky_schema.json").read_text())
IPS = "10.1.0.4\n10.1.0.5\n10.1.0.6\n10.1.0.7"

# Options of `docker run`, as docker is not installed here.
DOCKER_OPTIONS = {
    "--rm", "--init", "--network", "--shm-size", "--ulimit", "--entrypoint", "--volume", "--workdir", "--env", "--gpus",
}  # fmt: skip
CREDENTIALS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "RAY_AUTH_TOKEN"}
INSIDE = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_worker_niceness", "AWS_REGION")


def problems(task: Any) -> list[str]:
    """All errors of a task that can be found offline."""
    found = schema_problems(task, SCHEMA)
    commands = f"{task.get('setup')}\n{task.get('run')}"
    for name in [*task.get("envs", {}), *task.get("secrets", {})]:
        if not re.search(rf"\b{name}\b", commands):
            found.append(f"nothing uses {name}")
    run_instances = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    if task.get("resources", {}).get("instance_type") not in run_instances.members["InstanceType"].enum:
        found.append("AWS has no such instance type")
    return found


class Node:
    """One machine of a job, with stand-ins for docker and, in the container, for Ray and Python."""

    def __init__(self, folder: Path, task: Any) -> None:
        self._folder, self._task = folder, task
        self.commands = StandIns(folder, INSIDE)
        self.commands.add("docker", '[ "$1" = pull ] || exit "${DOCKER_EXIT:-0}"')

    def run(self, *, rank: int = 0, gpus: int = 0, **variables: str) -> int:
        """Run the task's commands; returns their exit code."""
        environment = self.commands.environment(
            **self._task["envs"],
            RAY_AUTH_TOKEN="secret",
            SKYPILOT_NODE_IPS=IPS,
            SKYPILOT_NODE_RANK=str(rank),
            SKYPILOT_NUM_NODES="4",
            SKYPILOT_NUM_GPUS_PER_NODE=str(gpus),
            **variables,
        )
        for name in ("setup", "run"):
            code = subprocess.run(["bash", "-c", self._task[name]], cwd=self._folder, env=environment, check=False)
            if code.returncode != 0:
                break
        return code.returncode

    def container(self) -> Call:
        """The call of `docker run`."""
        _, run = self.commands.calls("docker")
        return run


def container_environment(words: list[str], outside: dict[str, str]) -> dict[str, str]:
    """Variables in the container, as docker sets them by ``--env``."""
    found = {}
    for word in words:
        if word.startswith("--env="):
            name, given, value = word.removeprefix("--env=").partition("=")
            if given or name in outside:
                found[name] = value if given else outside[name]
    return found


@pytest.fixture
def task() -> Any:
    return load(FILE)


@pytest.fixture
def node(tmp_path: Path, task: Any) -> Node:
    return Node(tmp_path, task)


def inside(folder: Path, container: Call, task: Any, *, rank: int, ray: str, driver: str) -> tuple[int, StandIns]:
    """Run the command of a node's container; returns its exit code and its stand-ins."""
    words = container.words
    outside = {**task["envs"], "RAY_AUTH_TOKEN": "secret", "SKYPILOT_NUM_NODES": "4", "SKYPILOT_NODE_RANK": str(rank)}
    folder = folder / "container"
    folder.mkdir()
    commands = StandIns(folder, INSIDE)
    commands.add("ray", ray)
    commands.add("python", driver)
    variables = container_environment(words, outside)
    script = after(words, task["envs"]["IMAGE"])[2].replace("/tmp/began", f"{folder}/began")
    done = subprocess.run(["bash", "-c", script], env=commands.environment(**variables), check=False)
    return done.returncode, commands


ON_HEAD = 'while [ "$1" != -- ]; do shift; done; shift; "$@"'


def test_shipped_file_is_valid(task: Any) -> None:
    assert problems(task) == []


def test_typo_in_any_key_is_found(task: Any) -> None:
    assert unnoticed_typos(task, problems, lambda path: False) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("num_nodes",), "4"),
        (("num_nodes",), 0),
        (("resources", "infra"), "asw/us-west-2"),
        (("resources", "instance_type"), "c7a.5xlarge"),
        (("resources", "use_spot"), "yes"),
        (("resources", "job_recovery", "recover_on_exit_codes"), [143, 256]),
        (("resources", "job_recovery", "recover_on_exit_codes"), [137]),
        (("envs", "OPTIONS"), 3),
        (("run",), ["echo"]),
    ],
)
def test_wrong_values_are_found(task: Any, path: Keys, value: Any) -> None:
    assert problems(with_value(task, path, value))


def test_commands_are_lint_free(task: Any, node: Node) -> None:
    node.run()
    script = after(node.container().words, task["envs"]["IMAGE"])[2]
    assert shellcheck(task["setup"]) == shellcheck(task["run"], "--exclude=SC2016") == shellcheck(script) == ""


def test_user_settings_are_in_one_block_at_the_top(task: Any) -> None:
    text = FILE.read_text()
    assert text.count("FILL_IN") == filled_in(text).count("FILL_IN") == json.dumps(task["envs"]).count("FILL_IN")
    assert next(iter(task)) == "envs"


def test_nodes_are_spot_of_one_kind_and_are_replaced(task: Any) -> None:
    resources = task["resources"]
    assert task["num_nodes"] > 1 and resources["use_spot"] is True
    assert resources["instance_type"], "another kind of CPU would be refused after a recovery"
    assert resources["job_recovery"]["recover_on_exit_codes"] == [143]
    assert 0 < resources["job_recovery"]["max_restarts_on_errors"] < 10
    assert task["envs"]["RUN_DIR"].startswith("s3://")


def test_file_holds_no_secret(task: Any) -> None:
    assert task["secrets"] == {"RAY_AUTH_TOKEN": None}
    assert not CREDENTIALS & task["envs"].keys()


@pytest.mark.parametrize("rank", [0, 3])
def test_all_nodes_start_the_same_container(node: Node, task: Any, rank: int) -> None:
    assert node.run(rank=rank) == 0
    pull, run = (call.words[1:] for call in node.commands.calls("docker"))
    assert pull == ["pull", "--quiet", task["envs"]["IMAGE"]]
    options = run[1 : run.index(task["envs"]["IMAGE"])]
    assert run[0] == "run" and {word.partition("=")[0] for word in options} == DOCKER_OPTIONS - {"--gpus"}
    assert option(options, "--network") == "host", "Ray needs the machine's address"
    assert option(options, "--entrypoint") == "", "the entrypoint of the image is the world-models command"
    assert option(options, "--volume").endswith(":/work:ro"), "the sources of the clone"
    environment = container_environment(options, {"RAY_AUTH_TOKEN": "secret"})
    assert environment == {
        "RAY_ADDRESS": "10.1.0.4:6379", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "secret",
        "RAY_worker_niceness": "0", "RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT": "300",
    }  # fmt: skip
    assert not any("secret" in word for word in run), "ps shows words"
    passed_on = {word.removeprefix("--env=") for word in options if word.startswith("--env=")}
    assert passed_on > CREDENTIALS


def test_gpus_are_used_if_available(node: Node) -> None:
    node.run(gpus=1)
    assert "--gpus=all" in node.container().words


@pytest.mark.parametrize("code", [0, 1, 143])
def test_job_has_the_exit_code_of_the_container(node: Node, code: int) -> None:
    assert node.run(DOCKER_EXIT=str(code)) == code


def test_first_node_runs_the_driver(tmp_path: Path, node: Node, task: Any) -> None:
    node.run()
    code, commands = inside(tmp_path, node.container(), task, rank=0, ray=ON_HEAD, driver="exit 0")
    assert code == 0
    ray, driver = commands.calls()
    assert driver.environment["RAY_ADDRESS"] == "10.1.0.4:6379"
    own = parse_ray_command(" ".join(ray.words[: ray.words.index("--")]) + " -- x")
    assert own["address"] == "10.1.0.4:6379" and own["min_nodes"] == 4
    for where in ("--head --port=6379", "--address=10.1.0.4:6379"):
        started = parse_ray_command(f"ray start {where} {ray.words[ray.words.index('--') - 1]}")
        assert started["dashboard_agent_listen_port"] == 0, "SkyPilot's Ray has the usual port"
        assert started["dashboard_host"] in ("127.0.0.1", "localhost")
    assert driver.words[1:3] == ["-m", "pipeline"]
    options = make_parser().parse_args(driver.words[3:])
    assert (options.command, options.preset, options.run_dir) == ("run", "paper", task["envs"]["RUN_DIR"])
    assert load_config(options.preset, options.override).execution.workers_on == ["head", "gpu-nodes"]


def test_second_start_runs_the_same_command(tmp_path: Path, task: Any) -> None:
    words = []
    for start in ("first", "second"):
        (tmp_path / start).mkdir()
        node = Node(tmp_path / start, task)
        node.run()
        _, commands = inside(tmp_path / start, node.container(), task, rank=0, ray=ON_HEAD, driver="exit 143")
        words.append(commands.calls("python")[0].words)
    assert words[0] == words[1]


@pytest.mark.parametrize("code", [1, 2, 143])
def test_container_has_the_exit_code_of_the_driver(tmp_path: Path, node: Node, task: Any, code: int) -> None:
    node.run()
    assert inside(tmp_path, node.container(), task, rank=0, ray=ON_HEAD, driver=f"exit {code}")[0] == code


@pytest.mark.parametrize(("rank", "code"), [(0, 1), (1, 0)])
def test_failed_ray_start_on_the_first_node_fails_the_job(
    tmp_path: Path, node: Node, task: Any, rank: int, code: int
) -> None:
    """`ray symmetric-run` then ends with 0, which is its usual exit code on the other nodes."""
    node.run(rank=rank)
    assert inside(tmp_path, node.container(), task, rank=rank, ray="exit 0", driver="exit 0")[0] == code
