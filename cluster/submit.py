"""``world-models submit``: submits a run as a job to a Ray cluster. Needs no torch."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

from aiohttp import ClientError
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from pipeline.base.errors import SUBMIT_AGAIN, ClusterError, ConfigError
from pipeline.base.ray_environment import STOP_WAIT
from pipeline.config.presets import dump, load_config, preset_names
from pipeline.config.schema import ExecutionConfig
from pipeline.config.study import StudyConfig, config_of, dump_study, is_study, load_study
from pipeline.storage.pretrained import folder_of_pretrained
from pipeline.storage.run_dir import check_lasting

logger = logging.getLogger(__name__)

SOURCES = ("actors", "cluster", "configs", "pipeline")

# Storage settings that a job gets from this environment. No secrets: everyone who can see the job can read the values.
STORAGE_SETTINGS = ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_MAX_ATTEMPTS")
# Names of secrets, but not of files that hold secrets, and not words that only begin like one (KEYBOARD).
_SECRET = re.compile(
    r"(SECRET|TOKEN(?!IZER)|PASSW|PASSPHRASE|CREDENTIAL|KEY(?!BOARD))(?!.*_(FILE|PATH)$)", re.IGNORECASE
)

# Seconds from SIGTERM to SIGKILL; Ray's default is 3. A driver needs less, unless its storage hangs.
STOP_GRACE_S = 30

# Ray's loggers that report packages and web sockets.
_CHATTY = ("ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging")

# Seconds that a new head may need until it can start jobs, and its error until then.
_AGENT_READY_S = 60.0
_RETRY_S = 1.0
_NO_AGENT = "No available agent"

_OWN_CONFIG = "submitted.yaml"  # config of a job without preset, including the overrides
_RUN_DIR, _ACTIVE = "run_dir", (JobStatus.PENDING, JobStatus.RUNNING)
_DEFAULT_ADDRESS = "http://127.0.0.1:8265"


@dataclass(frozen=True)
class ClusterJob:
    """A job to submit to the cluster.

    Attributes:
        name: Submission ID.
        entrypoint: Command line of the driver.
        environment: Environment variables of the driver and all workers; no secrets.
        run_dir: Location of the run.
        config: Config or study as YAML, which is sent with the sources; None for a preset of the project.
    """

    name: str
    entrypoint: str
    environment: Mapping[str, str]
    run_dir: str
    config: str | None


def make_job(
    preset: str,
    overrides: Sequence[str],
    run_dir: str,
    variables: Sequence[str],
    environment: Mapping[str, str],
    *,
    reuse: Sequence[str] = (),
    varied: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
) -> ClusterJob:
    """Make a job, after all checks that need no cluster.

    Args:
        preset: Preset or config file, see ``load_config``; or a study, see ``load_study``.
        overrides: Overrides, see ``load_config``.
        run_dir: ``s3://`` URL, or absolute path that exists on every node.
        variables: Further environment variables of the job, ``NAME`` (with its value here) or ``NAME=VALUE``.
        environment: Environment of this process.
        reuse: Other runs, to whose equal stages the job refers; locations as for ``run_dir``.
        varied: Keys with their values, which are the arms of a study, see ``load_study``.
        seeds: Seeds of a study's arms, see ``load_study``.

    Returns:
        The job.

    Raises:
        ConfigError: An argument is invalid. The message names it and the reason.
    """
    check_lasting(run_dir)
    for location in reuse:
        check_lasting(location, "--reuse")
    if is_study(preset) or varied or seeds:
        if reuse:
            raise ConfigError(f"--reuse {reuse[0]}: the runs of a study share stages by themselves")
        study = load_study(preset, overrides, varied, seeds)
        return _study_job(study, run_dir, _environment(variables, environment))
    config = load_config(preset, overrides)
    _require_ray(config.execution)
    if preset in preset_names():
        arguments = ["run", preset, "--run-dir", run_dir]
        for override in overrides:
            arguments += ["-o", override]
        own = None
    else:
        arguments, own = ["run", _OWN_CONFIG, "--run-dir", run_dir], dump(config)
    for location in reuse:
        arguments += ["--reuse", location]
    return ClusterJob(
        name=_unique(config.name),
        entrypoint=f"python -m pipeline {shlex.join(arguments)}",
        environment=_environment(variables, environment),
        run_dir=run_dir,
        config=own,
    )


def _study_job(study: StudyConfig, run_dir: str, environment: Mapping[str, str]) -> ClusterJob:
    for arm in study.arms:
        _require_ray(config_of(study, arm, study.seeds[0]).execution)
    return ClusterJob(
        name=_unique(study.name),
        entrypoint=f"python -m pipeline {shlex.join(['study', _OWN_CONFIG, '--run-dir', run_dir])}",
        environment=environment,
        run_dir=run_dir,
        config=dump_study(study),
    )


def _require_ray(execution: ExecutionConfig) -> None:
    if execution.executor != "ray":
        raise ConfigError(f"execution.executor is {execution.executor!r}: on a cluster it has to be 'ray'")


def _unique(name: str) -> str:
    """Submission ID of a new job."""
    return f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid4().hex[:6]}"


def _environment(variables: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    chosen = {name: environment[name] for name in STORAGE_SETTINGS if name in environment}
    for variable in variables:
        name, given, value = variable.partition("=")
        if _SECRET.search(name):
            raise ConfigError(
                f"--env {name}: everyone who can see the job can read its variables, so they must not hold a secret. "
                "Give the nodes their own credentials (an instance role, a service account, a file that "
                "AWS_SHARED_CREDENTIALS_FILE names on them), and pass the profile: --env AWS_PROFILE=NAME"
            )
        if not given and name not in environment:
            raise ConfigError(f"--env {name}: it is not set here; set it with --env {name}=VALUE")
        chosen[name] = value if given else environment[name]
    for name, value in chosen.items():
        if urlsplit(value).password:
            raise ConfigError(
                f"{name} holds a password, which everyone who can see the job could read: remove the password"
            )
    return {**chosen, "PYTHONUNBUFFERED": "1", STOP_WAIT: str(STOP_GRACE_S)}


class Jobs:
    """The job server of a cluster.

    Args:
        address: Address of the cluster's dashboard. None: ``RAY_API_SERVER_ADDRESS``, or by default
            ``http://127.0.0.1:8265``.

    Raises:
        ConfigError: The address is not an HTTP URL.
        ClusterError: No job server answers there, or it refuses the token.
    """

    def __init__(self, address: str | None) -> None:
        self.address = address or os.environ.get("RAY_API_SERVER_ADDRESS") or _DEFAULT_ADDRESS
        if not self.address.startswith(("http://", "https://")):
            raise ConfigError(
                f"--address {self.address}: expected the address of the cluster's job server, http://HOST:8265 "
                "(for a remote cluster, forwarded by `ray dashboard cluster.yaml` or `kubectl port-forward`)"
            )
        for name in _CHATTY:
            logging.getLogger(name).setLevel(logging.WARNING)
        # In Ray, these variables take precedence over the address argument.
        for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
            os.environ.pop(name, None)
        try:
            self._client = JobSubmissionClient(self.address)
        except AuthenticationError as error:
            raise ClusterError(
                f"the job server at {self.address} wants a token: {str(error).partition(chr(10))[0]}. Set "
                "RAY_AUTH_MODE=token, and put the cluster's token into ~/.ray/auth_token or RAY_AUTH_TOKEN"
            ) from error
        except (ConnectionError, RuntimeError) as error:
            raise ClusterError(
                f"no job server answers at {self.address}: {error} Check that the cluster is up and its port is "
                "forwarded (`ray dashboard cluster.yaml`). If it needs a token, set RAY_AUTH_MODE=token and the token."
            ) from error

    def submit(self, job: ClusterJob) -> None:
        """Submit a job, with the sources.

        Raises:
            ConfigError: Another job of the cluster already has this run.
            ClusterError: The job server refuses the job.
        """
        active_jobs = [other for other in self._all_of(job.run_dir) if other.status in _ACTIVE]
        if active_jobs:
            raise ConfigError(
                f"{job.run_dir} is in use by job {active_jobs[0].submission_id}, {active_jobs[0].status.lower()}\n"
                + self.directions(active_jobs[0].submission_id or "", job.run_dir)
            )
        with tempfile.TemporaryDirectory(prefix="world-models-") as folder:
            stage_sources(job, Path(folder))
            try:
                self._submit_with_retries(job, folder)
            except RuntimeError as error:
                raise ClusterError(
                    f"the job server at {self.address} did not take the job: {error} If no agent is available, another "
                    "Ray of the head's machine uses the agent's port; dashboard_agent.log in the head's logs says so. "
                    "`ray start --head --dashboard-agent-listen-port=0` lets the agent choose a free port."
                ) from error

    def _submit_with_retries(self, job: ClusterJob, folder: str) -> None:
        """Submit a job, with retries while the agent of a new head, which starts jobs, is not ready."""
        deadline = time.monotonic() + _AGENT_READY_S
        said = False
        while True:
            # No resources: Ray then runs the driver on the head, which is not a spot machine.
            try:
                self._client.submit_job(
                    entrypoint=job.entrypoint,
                    submission_id=job.name,
                    runtime_env={"working_dir": folder, "env_vars": dict(job.environment)},
                    metadata={_RUN_DIR: job.run_dir},
                )
                return
            except RuntimeError as error:
                if _NO_AGENT not in str(error) or time.monotonic() >= deadline:
                    raise
            if not said:
                logger.warning(
                    "the job server at %s has no agent yet to start the job: trying again for up to %.0f s",
                    self.address, _AGENT_READY_S,
                )  # fmt: skip
                said = True
            time.sleep(_RETRY_S)

    def follow(self, name: str, run_dir: str) -> int:
        """Print a job's output until the job ends.

        Args:
            name: Submission ID.
            run_dir: Location of the run.

        Returns:
            Exit code of the driver.

        Raises:
            ClusterError: The job server no longer answers.
        """

        async def show() -> None:
            async for lines in self._client.tail_job_logs(name):
                print(lines, end="", flush=True)

        try:
            asyncio.run(show())
            job = self._client.get_job_info(name)
            while job.status in _ACTIVE:  # the output ends before the job does
                time.sleep(0.2)
                job = self._client.get_job_info(name)
        except (RuntimeError, OSError, ClientError) as error:
            raise ClusterError(
                f"the job server at {self.address} no longer answers ({error or type(error).__name__}). As long as the "
                f"head is up, the job continues without this terminal:\n{self.directions(name, run_dir)}"
            ) from error
        if job.status == JobStatus.SUCCEEDED:
            return 0
        why = (job.message or "").partition("\n")[0].partition(", last available logs")[0]
        print(f"world-models: job {name} {job.status.lower()}: {why}", file=sys.stderr)
        return job.driver_exit_code or 1

    def directions(self, name: str, run_dir: str) -> str:
        """Commands that follow, show, stop and resume a job."""
        where = f"--address {self.address}"
        return (
            f"  follow  ray job logs {where} --follow {name}\n"
            f"  status  world-models status {shlex.quote(run_dir)}\n"
            f"  stop    ray job stop {where} {name}\n"
            f"  resume  {SUBMIT_AGAIN}: it resumes from the completed work"
        )

    def _all_of(self, run_dir: str) -> list[JobDetails]:
        return [job for job in self._client.list_jobs() if (job.metadata or {}).get(_RUN_DIR) == run_dir]


def stage_sources(job: ClusterJob, folder: Path) -> None:
    """Copy the sources and the config that the job needs into a folder."""
    root = Path(__file__).parent.parent
    # No job needs the agents of the package, which are large.
    ignored = shutil.ignore_patterns("__pycache__", folder_of_pretrained().name)
    for package in SOURCES:
        shutil.copytree(root / package, folder / package, ignore=ignored)
    if job.config is not None:
        (folder / _OWN_CONFIG).write_text(job.config)


def submit(job: ClusterJob, address: str | None, *, follow: bool) -> int:
    """Submit a job, and print how to follow, stop and resume it; returns the exit code."""
    jobs = Jobs(address)
    jobs.submit(job)
    print(f"job {job.name} at {jobs.address}: {job.entrypoint}\n{jobs.directions(job.name, job.run_dir)}", flush=True)
    if not follow:
        return 0
    try:
        return jobs.follow(job.name, job.run_dir)
    except KeyboardInterrupt:
        print(f"\nworld-models: the job continues without this terminal\n{jobs.directions(job.name, job.run_dir)}")
        return 130
