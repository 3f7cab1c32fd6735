"""cluster/kuberay/, as Kubernetes, the KubeRay operator and Ray's autoscaler read them.

The custom resource definitions are KubeRay's own, ``ray.io_rayclusters.yaml`` and ``ray.io_rayjobs.yaml``, in the
folder that the environment variable KUBERAY_CRDS names, or in ``shared/kuberay-crds`` next to the repository.
"""

from __future__ import annotations

import os
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray._common.runtime_env_uri import Protocol, parse_uri
from ray._private import ray_constants
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

from actors.placement import WORKERS_LABEL
from pipeline.cli.main import make_parser
from pipeline.config.presets import load_config
from tests.cluster_files.documents import (
    ROOT,
    Keys,
    closed,
    filled_in,
    load,
    ray_option_problems,
    schema_problems,
    unnoticed_typos,
    with_value,
)

FILES = {kind: ROOT / "cluster" / "kuberay" / f"{kind.lower()}.yaml" for kind in ("RayCluster", "RayJob")}
CRDS = Path(os.environ.get("KUBERAY_CRDS") or ROOT.parent / "shared" / "kuberay-crds")
needs_crds = pytest.mark.skipif(
    not CRDS.is_dir(), reason=f"KubeRay's CRDs are not in {CRDS}: set KUBERAY_CRDS to a folder that has them"
)


@cache
def crd_schema(kind: str) -> Any:
    crd = load(CRDS / f"ray.io_{kind.lower()}s.yaml")
    assert crd["spec"]["names"]["kind"] == kind
    (version,) = [version for version in crd["spec"]["versions"] if version["name"] == "v1"]
    schema = closed(version["schema"]["openAPIV3Schema"])
    schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
    schema["properties"] |= {
        "apiVersion": {"const": f"{crd['spec']['group']}/v1"},
        "kind": {"const": kind},
        "metadata": template_metadata(schema),  # the same everywhere in Kubernetes; a CRD does not describe it
    }
    return schema


def template_metadata(schema: Any) -> Any:
    """The schema of metadata, from a pod template."""
    spec = schema["properties"]["spec"]["properties"]
    cluster = spec["rayClusterSpec"]["properties"] if "rayClusterSpec" in spec else spec
    return cluster["headGroupSpec"]["properties"]["template"]["properties"]["metadata"]


def cluster_spec(document: Any) -> Any:
    return document["spec"]["rayClusterSpec"] if document["kind"] == "RayJob" else document["spec"]


def groups(document: Any) -> list[Any]:
    """The head's group, then the workers'."""
    spec = cluster_spec(document)
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def problems(document: Any) -> list[str]:
    """All errors of a resource that can be found without Kubernetes."""
    found = schema_problems(document, crd_schema(document["kind"]) if "kind" in document else False)
    if not found:
        for group in groups(document):
            for name, value in group["rayStartParams"].items():
                found += ray_option_problems(f"ray start --{name}={value}")
    return found


def free(path: Keys) -> bool:
    """Keys with free names: the user's own, and names of resources and labels."""
    return any(holder in path[:-1] for holder in ("annotations", "limits", "labels", "nodeSelector"))


@pytest.fixture(params=FILES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def document(kind: str) -> Any:
    return load(FILES[kind])


@needs_crds
def test_shipped_files_are_valid(document: Any) -> None:
    assert problems(document) == []


@needs_crds
def test_typo_in_any_key_is_found(document: Any) -> None:
    assert unnoticed_typos(document, problems, free) == []


@needs_crds
@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("RayCluster", ("apiVersion",), "ray.io/v1alpha1"),
        ("RayCluster", ("kind",), "RayJob"),
        ("RayCluster", ("spec", "authOptions", "mode"), "tokne"),
        ("RayCluster", ("spec", "autoscalerOptions", "version"), "v3"),
        ("RayCluster", ("spec", "enableInTreeAutoscaling"), "true"),
        ("RayCluster", ("spec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        ("RayCluster", ("spec", "headGroupSpec", "rayStartParams", "num-cpus"), "none"),
        ("RayCluster", ("spec", "workerGroupSpecs", 0, "maxReplicas"), "16"),
        (
            "RayCluster",
            ("spec", "workerGroupSpecs", 0, "template", "spec", "containers", 0, "resources", "limits", "memory"),
            "26Gii",
        ),
        ("RayCluster", ("spec", "workerGroupSpecs", 1, "template", "spec", "tolerations"), {"key": "nvidia.com/gpu"}),
        ("RayJob", ("spec", "backoffLimit"), "3"),
        ("RayJob", ("spec", "shutdownAfterJobFinishes"), "yes"),
        ("RayJob", ("spec", "runtimeEnvYAML"), {"working_dir": "s3://bucket/code.zip"}),
    ],
)
def test_wrong_values_are_found(document: Any, path: Keys, value: Any) -> None:
    assert problems(with_value(document, path, value))


def test_user_settings_are_in_one_block_at_the_top(kind: str, document: Any) -> None:
    text = FILES[kind].read_text()
    annotations = document["metadata"]["annotations"]
    assert text.count("FILL_IN") == filled_in(text).count("FILL_IN") == len(annotations)
    assert all("FILL_IN" in value for value in annotations.values())
    assert [*document] == ["apiVersion", "kind", "metadata", "spec"]


def test_both_files_describe_the_same_cluster() -> None:
    assert cluster_spec(load(FILES["RayJob"])) == cluster_spec(load(FILES["RayCluster"]))


def test_head_runs_no_work_and_workers_are_autoscaled(document: Any) -> None:
    """Checked with the autoscaler's own reading of the cluster."""
    metadata = {"name": "world-models", "namespace": "default"}
    config = _derive_autoscaling_config_from_ray_cr({"metadata": metadata, "spec": cluster_spec(document)})
    node_types = config["available_node_types"]
    shape = {
        name: (kind["resources"]["CPU"], kind["resources"].get("GPU", 0), kind["min_workers"], kind["labels"])
        for name, kind in node_types.items()
    }
    assert shape == {
        "headgroup": (0, 0, 0, {}),
        "cpu-spot": (15, 0, 0, {"ray.io/market-type": "spot"}),
        "gpu": (8, 1, 0, {"ray.io/market-type": "on-demand", WORKERS_LABEL: "no"}),
    }
    assert node_types["cpu-spot"]["max_workers"] > 1 == node_types["gpu"]["max_workers"]
    assert cluster_spec(document)["autoscalerOptions"]["version"] == "v2"


def test_only_rollout_pods_are_on_spot_nodes(document: Any) -> None:
    wanted = {}
    for group in groups(document):
        affinity = group["template"]["spec"]["affinity"]["nodeAffinity"]
        terms = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        wanted[group.get("groupName", "head")] = [
            [(e["key"], e["operator"], *e["values"]) for e in term["matchExpressions"]] for term in terms
        ]
    on_demand, spot = wanted["head"], wanted["cpu-spot"]
    assert wanted["gpu"] == on_demand and len(on_demand) == 1
    assert {operator for _, operator, _ in on_demand[0]} == {"NotIn"}
    # A node with any of these labels is a spot node, a node without them an on-demand one.
    assert spot == [[(key, "In", value)] for key, _, value in on_demand[0]]
    (toleration,) = groups(document)[1]["template"]["spec"]["tolerations"]
    assert [(toleration["key"], "In", toleration["value"])] in spot


def test_driver_and_rollouts_use_one_kind_of_machine(document: Any) -> None:
    head, spot, gpu = (group["template"]["spec"] for group in groups(document))
    machine = document["metadata"]["annotations"]["machine"]
    assert head["nodeSelector"] == spot["nodeSelector"] == {"node.kubernetes.io/instance-type": machine}
    assert "nodeSelector" not in gpu


def test_tokens_and_credentials_are_references(document: Any) -> None:
    assert cluster_spec(document)["authOptions"] == {"mode": "token"}
    for group in groups(document):
        (container,) = group["template"]["spec"]["containers"]
        assert container["envFrom"] == [{"secretRef": {"name": "world-models-storage"}}]
        assert {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}.isdisjoint(e["name"] for e in container.get("env", []))
        assert container["securityContext"]["runAsNonRoot"] is True


def test_workers_have_ordinary_priority(document: Any) -> None:
    """At Ray's default, nice 15, they starve if other programs are busy."""
    _, *workers = groups(document)
    for group in workers:
        (container,) = group["template"]["spec"]["containers"]
        assert container["env"] == [{"name": ray_constants.RAY_WORKER_NICENESS, "value": "0"}]


def test_no_service_is_reachable_from_outside(document: Any) -> None:
    head = cluster_spec(document)["headGroupSpec"]
    assert not {"serviceType", "headService", "enableIngress", "ingressOptions"} & head.keys()
    assert not any("hostNetwork" in group["template"]["spec"] for group in groups(document))


def test_job_runs_the_preset_of_the_paper_with_its_own_sources() -> None:
    spec = load(FILES["RayJob"])["spec"]
    words = shlex.split(spec["entrypoint"])
    assert words[:3] == ["python", "-m", "pipeline"]
    options = make_parser().parse_args(words[3:])
    assert options.command == "run" and options.run_dir.startswith("s3://")
    assert load_config(options.preset, []).name == "paper"
    runtime_env = yaml.safe_load(spec["runtimeEnvYAML"])
    assert runtime_env.keys() == {"working_dir"}
    protocol, package = parse_uri(runtime_env["working_dir"])
    assert protocol == Protocol.S3 and package.endswith(".zip")
    assert "entrypointNumCpus" not in spec, "the driver runs on the head, which offers no CPU"


def test_job_deletes_its_cluster_at_the_end() -> None:
    spec = load(FILES["RayJob"])["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert 0 < spec["ttlSecondsAfterFinished"] <= 3600
