"""cluster/aws.yaml and cluster/gcp.yaml, as `ray up` and its autoscaler read them."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from functools import cache
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import ray.autoscaler
from botocore.model import Shape
from botocore.validate import ParamValidator
from ray._private import ray_constants
from ray.autoscaler._private.docker import docker_start_cmds
from ray.autoscaler.sdk import get_docker_host_mount_location
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig

from actors.placement import WORKERS_LABEL
from tests.cluster_files.dockerfile import DOCKERFILE
from tests.cluster_files.documents import (
    ROOT,
    Keys,
    closed,
    filled_in,
    load,
    parse_ray_command,
    ray_option_problems,
    schema_problems,
    unnoticed_typos,
    with_value,
    words_and_environment,
)

CLOUDS = ("aws", "gcp")
# Options of `docker run`, as docker is not installed here.
DOCKER_OPTIONS = {"--entrypoint", "--env", "--gpus", "--ulimit"}
WORKERS = ("cpu-spot", "gpu")


def path_of(cloud: str) -> Path:
    return ROOT / "cluster" / f"{cloud}.yaml"


@cache
def ray_schema() -> Any:
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    schema = closed(schema)
    schema["properties"]["metadata"].pop("additionalProperties", None)  # the user's own
    return schema


@cache
def run_instances() -> Shape:
    return botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape


@cache
def gce_instance() -> Any:
    """Compute Engine's API description as a JSON schema of an instance."""

    def converted(described: Any) -> Any:
        if "$ref" in described:
            return {"$ref": f"#/definitions/{described['$ref']}"}
        result = {key: described[key] for key in ("type", "enum") if key in described}
        if described.get("format") in ("int64", "uint64"):  # in JSON either a number or a string
            result = {"type": ["integer", "string"]}
        if "items" in described:
            result["items"] = converted(described["items"])
        if "additionalProperties" in described:
            result["additionalProperties"] = converted(described["additionalProperties"])
        if "properties" in described:
            result["properties"] = {name: converted(value) for name, value in described["properties"].items()}
        return closed(result) if result.get("type") == "object" else result

    api = json.loads(files("googleapiclient.discovery_cache.documents").joinpath("compute.v1.json").read_text())
    return {"$ref": "#/definitions/Instance", "definitions": {k: converted(v) for k, v in api["schemas"].items()}}


def enum_problems(value: Any, shape: Shape, where: str) -> list[str]:
    """Values that AWS does not know; botocore itself checks only types."""
    if shape.type_name == "structure":
        inner = [(value[name], member, f"{where}.{name}") for name, member in shape.members.items() if name in value]
    elif shape.type_name == "list":
        inner = [(item, shape.member, f"{where}[{index}]") for index, item in enumerate(value)]
    else:
        known = getattr(shape, "enum", [])
        return [f"{where}: {value!r} is none of AWS's"] if known and value not in known else []
    return [problem for arguments in inner for problem in enum_problems(*arguments)]


def node_problems(cloud: str, node_config: Any, where: str) -> list[str]:
    """The errors of a node_config by the cloud's own description of a machine."""
    if cloud == "gcp":
        return schema_problems(node_config, gce_instance(), where)
    report = ParamValidator().validate({"MinCount": 1, "MaxCount": 1, **node_config}, run_instances())
    if report.has_errors():
        return [f"{where}: {report.generate_report()}"]
    return enum_problems(node_config, run_instances(), where)


def problems(config: Any) -> list[str]:
    """All errors of a cluster's config that can be found offline."""
    if refused := schema_problems(config, ray_schema()):
        return refused
    try:
        AutoscalingConfig(config, skip_content_hash=True)
    except Exception as error:  # any error of Ray's own checks
        return [f"Ray: {error!r}"]
    found = []
    options = [*config["docker"]["run_options"]]
    for name, node_type in config["available_node_types"].items():
        found += node_problems(config["provider"]["type"], node_type["node_config"], name)
        options += node_type.get("docker", {}).get("worker_run_options", [])
    found += [f"docker: {option}" for option in options if option.partition("=")[0] not in DOCKER_OPTIONS]
    for command in config["head_start_ray_commands"] + config["worker_start_ray_commands"]:
        found += ray_option_problems(command) if words_and_environment(command)[0][0] == "ray" else []
    return found


def free(path: Keys) -> bool:
    """Keys with free names: the user's own, paths, and names of resources, labels and node types."""
    if path[0] == "available_node_types":
        return path[1:] in (("cpu-spot",), ("gpu",)) or path[2:-1] in (("resources",), ("labels",))
    return path[0] in ("metadata", "file_mounts") and len(path) > 1


@pytest.fixture(params=CLOUDS)
def cloud(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def config(cloud: str) -> Any:
    return load(path_of(cloud))


def test_shipped_files_are_valid(config: Any) -> None:
    assert problems(config) == []


def test_typo_in_any_key_is_found(config: Any) -> None:
    assert unnoticed_typos(config, problems, free) == []


@pytest.mark.parametrize(
    ("cloud", "path", "value"),
    [
        ("aws", ("head_node_type",), "haed"),
        ("aws", ("max_workers",), "17"),
        ("aws", ("available_node_types", "cpu-spot", "max_workers"), 1.5),
        ("aws", ("available_node_types", "cpu-spot", "node_config", "InstanceType"), "c7a.5xlarge"),
        ("aws", ("available_node_types", "cpu-spot", "node_config", "InstanceMarketOptions", "MarketType"), "spto"),
        ("aws", ("available_node_types", "head", "node_config", "MetadataOptions"), "required"),
        ("aws", ("available_node_types", "gpu", "docker", "worker_run_options", 0), "--gpu=all"),
        ("aws", ("docker", "run_options", 1), "--evn=RAY_AUTH_MODE=token"),
        ("aws", ("head_start_ray_commands", 1), "ray start --haed"),
        ("aws", ("worker_start_ray_commands", 0), "ray stpo"),
        ("gcp", ("available_node_types", "cpu-spot", "node_config", "scheduling", "provisioningModel"), "SPTO"),
        ("gcp", ("available_node_types", "gpu", "node_config", "scheduling"), [{"onHostMaintenance": "TERMINATE"}]),
        ("gcp", ("available_node_types", "head", "node_config", "disks", 0, "boot"), "yes"),
        ("gcp", ("available_node_types", "head", "resources", "CPU"), -1),
        ("gcp", ("provider", "availability_zone"), ["us-central1-a"]),
    ],
)
def test_wrong_values_are_found(config: Any, path: Keys, value: Any) -> None:
    assert problems(with_value(config, path, value))


def test_user_settings_are_in_one_block_at_the_top(cloud: str, config: Any) -> None:
    text = path_of(cloud).read_text()
    assert text.count("FILL_IN") == filled_in(text).count("FILL_IN") == json.dumps(config["metadata"]).count("FILL_IN")
    assert next(iter(config)) == "metadata"


def test_head_runs_no_work_and_workers_are_autoscaled(config: Any) -> None:
    node_types = AutoscalingConfig(config, skip_content_hash=True).get_node_type_configs()
    assert config["head_node_type"] == "head"
    assert node_types["head"].resources == {"CPU": 0}
    assert {name: node_types[name].min_worker_nodes for name in WORKERS} == {"cpu-spot": 0, "gpu": 0}
    most = {name: node_types[name].max_worker_nodes for name in WORKERS}
    assert most["cpu-spot"] > 1 == most["gpu"]
    assert config["max_workers"] == sum(most.values())


def test_only_rollout_nodes_are_spot_and_labelled_so(config: Any) -> None:
    for name, node_type in config["available_node_types"].items():
        node = node_type["node_config"]
        spot = node.get("InstanceMarketOptions") == {"MarketType": "spot"}
        spot |= node.get("scheduling", {}).get("provisioningModel") == "SPOT"
        assert spot == (name == "cpu-spot")
        if name != "head":
            not_for_workers = {WORKERS_LABEL: "no"} if name == "gpu" else {}
            market = {"ray.io/market-type": "spot" if spot else "on-demand"}
            assert node_type["labels"] == market | not_for_workers


def test_dashboard_and_job_server_listen_on_loopback(config: Any) -> None:
    (start,) = [command for command in config["head_start_ray_commands"] if "ray start" in command]
    options = parse_ray_command(start)
    assert options["head"] and options["dashboard_host"] == "127.0.0.1"
    assert options["autoscaling_config"] == "~/ray_bootstrap_config.yaml"


def test_workers_have_ordinary_priority(config: Any) -> None:
    """At Ray's default, nice 15, they starve if other programs are busy."""
    (start,) = [command for command in config["worker_start_ray_commands"] if "ray start" in command]
    assert words_and_environment(start) == (
        ["ray", "start", "--address=$RAY_HEAD_IP:6379"], {ray_constants.RAY_WORKER_NICENESS: "0"}
    )  # fmt: skip


def test_containers_start_with_a_shell_a_token_and_the_gpu(config: Any) -> None:
    """Checked on Ray's own command for a node of each type."""
    for name in config["available_node_types"]:
        docker = AutoscalingConfig(config, skip_content_hash=True).get_docker_config(name)
        command = shlex.split(
            docker_start_cmds(
                config["auth"]["ssh_user"],
                docker["image"],
                config["file_mounts"],
                docker["container_name"],
                docker["run_options"] + docker.get("worker_run_options", []),
                config["cluster_name"],
                DOCKERFILE.environment["HOME"],
                "docker",
            )
        )
        image = command.index(config["metadata"]["image"])
        assert command[image + 1 :] == ["bash"]
        assert {"--entrypoint=", "--env=RAY_AUTH_MODE=token"} < set(command[:image])
        assert ("--gpus=all" in command[:image]) == (name == "gpu")
        volumes = (volume.split(":") for flag, volume in pairwise(command) if flag == "-v")
        mounts = {inside: outside for outside, inside in volumes}
        host = get_docker_host_mount_location(config["cluster_name"])
        assert mounts[f"{DOCKERFILE.environment['HOME']}/.ray/auth_token"] == f"{host}/~/.ray/auth_token"


def test_container_can_read_its_files_and_the_ssh_key_stays_private(tmp_path: Path) -> None:
    """SSH refuses a private key that others can read: the head would reach no worker."""
    config = load(path_of("gcp"))
    mounted = tmp_path / config["cluster_name"] / "~"
    modes = {".ray/auth_token": 0o644, ".aws/credentials": 0o644, "ray_bootstrap_key.pem": 0o600}
    for name in modes:
        path = mounted / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(0o600)
    (mounted / ".aws").chmod(0o700)
    host = get_docker_host_mount_location(config["cluster_name"])
    for command in config["initialization_commands"]:
        assert str(Path(host).parent) in command
        here = command.replace(str(Path(host).parent), str(tmp_path))
        subprocess.run(["bash", "-c", here], check=True, env={"HOME": "/nowhere", "PATH": os.environ["PATH"]})
    assert {name: (mounted / name).stat().st_mode & 0o777 for name in modes} == modes
    assert (mounted / ".aws").stat().st_mode & 0o777 == 0o755


def test_nothing_is_installed_on_nodes(config: Any) -> None:
    merged = AutoscalingConfig(config, skip_content_hash=True).get_raw_config_mutable()
    assert merged["head_setup_commands"] == merged["worker_setup_commands"] == []


def test_spot_notices_are_watched(config: Any) -> None:
    (watch,) = [command for command in config["worker_start_ray_commands"] if "cluster.spot" in command]
    assert watch == config["worker_start_ray_commands"][-1], "the watcher finds its node by the running Ray"
    assert watch.startswith("PYTHONPATH=/app nohup ") and watch.endswith("&"), (
        "the sources are in /app, and Ray's set-up continues"
    )


def test_disks_are_in_the_zone_of_the_cluster() -> None:
    config = load(path_of("gcp"))
    for node_type in config["available_node_types"].values():
        for disk in node_type["node_config"]["disks"]:
            zone = disk["initializeParams"]["diskType"].split("/")[1]
            assert zone == config["provider"]["availability_zone"]
