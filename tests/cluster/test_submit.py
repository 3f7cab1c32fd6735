"""Runs as jobs of a real cluster: submitted, stopped, submitted again, and sent without secrets."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from psutil import Process
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from cluster import submit
from pipeline.base.errors import ClusterError, ConfigError
from pipeline.base.failpoints import VARIABLE, WORKER_VARIABLE
from pipeline.config.identity import code_version
from pipeline.config.presets import dump, load_config
from pipeline.config.study import load_study
from pipeline.stages.table import STAGES
from pipeline.storage.layout import CONFIG
from pipeline.storage.local import LocalStore
from pipeline.storage.manifest import read_records
from pipeline.studies.plan import trials_of
from tests.cluster.head import Head, free_ports
from tests.cluster.many_nodes import ManyNodes
from tests.e2e import command

BEFORE_EVOLVE = STAGES[:4]
GENERATIONS = 6
# An even smaller version of the preset `smoke`, with the real CarRacing.
SMALL = ("smoke", *(part for setting in (
    "execution.executor=ray", "execution.workers=1", "vae.epochs=1", "mdnrnn.epochs=1", "evaluate.episodes=1",
    f"evolve.generations={GENERATIONS}", "evolve.validate_every=3",
) for part in ("-o", setting)))  # fmt: skip

_VERSION = re.compile(r"code version (\S+),")


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with Head() as head:
        yield head


@pytest.fixture
def client(head: Head, monkeypatch: pytest.MonkeyPatch) -> JobSubmissionClient:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return JobSubmissionClient(head.jobs)


def job_in(output: str) -> str:
    (name,) = re.findall(r"^job (\S+) at http", output, re.MULTILINE)
    return str(name)


def end(client: JobSubmissionClient, name: str) -> None:
    """Stop a job and wait for its end."""
    while not client.get_job_status(name).is_terminal():
        client.stop_job(name)
        time.sleep(0.2)


def frozen_process(head: Head, client: JobSubmissionClient, name: str) -> Process:
    """Wait until a process of a job has stopped at its failpoint."""
    while not (frozen := command.frozen_below(head.pid)):
        assert not client.get_job_status(name).is_terminal(), client.get_job_logs(name)
        time.sleep(0.1)
    (process,) = frozen
    return process


def stop_frozen(head: Head, client: JobSubmissionClient, name: str) -> None:
    """Stop a job at the failpoint of its driver, and wait for its end."""
    driver = frozen_process(head, client, name)
    client.stop_job(name)
    while not command.has_pending(driver.pid, signal.SIGTERM):
        time.sleep(0.1)
    driver.resume()
    while not client.get_job_status(name).is_terminal():
        time.sleep(0.1)


def test_stopped_and_resubmitted_job_gives_the_same_bits(
    head: Head, client: JobSubmissionClient, tmp_path: Path
) -> None:
    straight, folder = tmp_path / "straight", tmp_path / "run"
    code, output = command.run("run", *SMALL, "--run-dir", str(straight), "-o", "execution.executor=in-process")
    assert code == 0, output
    # The stages before the evolution are complete already; in test_secured.py, a job runs them.
    for stage in BEFORE_EVOLVE:
        shutil.copytree(straight / stage.prefix, folder / stage.prefix)
    shutil.copy(straight / CONFIG, folder)

    arguments = ("submit", *SMALL, "--run-dir", str(folder), "--address", head.jobs)
    # The job freezes halfway. The option --address must take precedence over the environment.
    halfway = ("--env", f"{VARIABLE}=generation-scored@3:freeze")
    code, output = command.run(*arguments, *halfway, environment={"RAY_ADDRESS": "127.0.0.1:1"})
    assert code == 0, output
    first = job_in(output)
    code, output = command.run(*arguments)
    assert code == 2, output
    assert f"{folder} is in use by job {first}, " in output
    assert f"ray job stop --address {head.jobs} {first}" in output

    stop_frozen(head, client, first)
    assert client.get_job_status(first) == JobStatus.STOPPED
    message = "terminated. Completed work is saved. To resume, submit the same run again"
    assert message in client.get_job_logs(first)
    assert command.checkpointed(folder, "evolution", 2)() and not command.checkpointed(folder, "evolution", 3)()

    code, output = command.run(*arguments, "--follow")
    assert code == 0, output
    assert "evolve: resuming after generation" in output
    assert "on one test track, too few for a score" in output
    assert command.outcome(folder) == command.outcome(straight)
    logs = command.texts([head.folder], "worker-*")
    versions = {version for text in logs.values() for version in _VERSION.findall(text)}
    assert versions == {code_version()}, "each worker logs its code version"


def test_follow_returns_the_exit_code_and_ctrl_c_does_not_stop_the_job(
    head: Head, client: JobSubmissionClient, tmp_path: Path
) -> None:
    (tmp_path / "in-the-way/sessions").mkdir(parents=True)
    (tmp_path / "in-the-way/sessions/000001").touch()  # a file in the place of a folder that the driver creates first
    arguments = ("submit", *SMALL, "--address", head.jobs, "--follow", "--run-dir")
    code, output = command.run(*arguments, str(tmp_path / "in-the-way"))
    assert code == 1, output
    assert re.search(r"world-models: job \S+ failed: .*exit code 1", output)

    # Its worker freezes, so that the job cannot end before the test looks at it.
    following = command.Command(
        *arguments, str(tmp_path / "run"), "--env", f"{WORKER_VARIABLE}=record-created@1:freeze"
    )
    code, output = following.interrupt(signal.SIGINT, lambda: "collect: begins" in following.output())
    assert code == 130, output
    assert "the job continues without this terminal" in output
    assert "Traceback" not in output
    name = job_in(output)
    assert client.get_job_status(name) == JobStatus.RUNNING
    frozen_process(head, client, name).resume()
    end(client, name)


def test_ray_job_submit_works_in_a_clone(head: Head, tmp_path: Path) -> None:
    def job_submit(run_dir: str) -> tuple[int, str]:
        done = subprocess.run(
            ["ray", "job", "submit", "--address", head.jobs, "--working-dir", ".", "--",
             "python", "-m", "pipeline", "collect", *SMALL, "--run-dir", run_dir],
            cwd=command.ROOT, env={**os.environ, "PATH": head.path}, check=False, capture_output=True, text=True,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    code, output = job_submit("runs/tiny")
    assert code != 0, output
    assert "--run-dir runs/tiny: on a cluster this must be s3://bucket/prefix" in output

    planted = command.ROOT / "runs" / f"planted-{token_hex()}"
    planted.parent.mkdir(exist_ok=True)
    planted.touch()
    try:
        code, output = job_submit(str(tmp_path / "run"))
    finally:
        planted.unlink()
    assert code == 0, output
    assert "collect: complete" in output
    assert len(read_records(LocalStore(tmp_path / "run"), "rollouts")) == 3
    # Not `rglob`: it raises if a folder of the running head vanishes meanwhile.
    travelled = {name for _, folders, files in os.walk(head.folder) for name in (*folders, *files)}
    assert {"pipeline", "README.md"} < travelled and travelled.isdisjoint({planted.name, ".git", ".venv"})


def test_lost_head_during_follow_is_an_error_with_the_remedy(tmp_path: Path) -> None:
    with Head() as lost:
        arguments = ("submit", *SMALL, "--run-dir", str(tmp_path / "run"), "--address", lost.jobs, "--follow")
        following = command.Command(*arguments, "--env", f"{VARIABLE}=stage-begun@2:freeze")
        following.wait_until(lambda: "collect: complete" in following.output())
    code, output = following.finish()
    assert code == 1, output
    assert f"the job server at {lost.jobs} no longer answers" in output
    assert "submit the same run again" in output
    assert "Traceback" not in output


def test_nodes_that_share_a_source_folder_are_refused(tmp_path: Path) -> None:
    (dashboard,) = free_ports(1)
    server = {"include_dashboard": True, "dashboard_port": dashboard, "dashboard_agent_listen_port": 0}
    arguments = ("submit", *SMALL, "--address", f"http://127.0.0.1:{dashboard}", "--follow", "--run-dir")
    with (
        TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder,  # Ray may still write
        ManyNodes(num_cpus=2, **server) as cluster,
    ):
        cluster.add(num_cpus=2, temp_dir=folder)
        following = command.Command(*arguments, str(tmp_path / "run"))
        following.wait_until(lambda: "collect: begins" in following.output())
        JobSubmissionClient(f"http://127.0.0.1:{dashboard}").stop_job(job_in(following.output()))
        following.finish()

        cluster.add(num_cpus=2)
        code, output = command.run(*arguments, str(tmp_path / "another"))
        assert code == 2, output
        assert re.search(rf"{cluster.folder}/\S+ on one machine is the folder of several nodes", output)
        assert "--temp-dir" in output
        assert "Traceback" not in output


def no_agent(*_: object, **__: object) -> str:
    raise RuntimeError("Request failed with status code 500: No available agent to submit job, please try again later.")


def test_submit_retries_while_the_agent_of_the_head_starts(
    head: Head, client: JobSubmissionClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    submit_job = JobSubmissionClient.submit_job

    def refuse_twice(self: JobSubmissionClient, **job: Any) -> str:
        asked.append(job["submission_id"])
        return no_agent() if len(asked) < 3 else submit_job(self, **job)

    monkeypatch.setattr(JobSubmissionClient, "submit_job", refuse_twice)
    monkeypatch.setattr(submit, "_RETRY_S", 0.01)
    job = submit.make_job("tiny", [], str(tmp_path / "run"), [], {})
    submit.Jobs(head.jobs).submit(job)
    assert asked == [job.name] * 3
    end(client, job.name)


def test_rejected_job_is_an_error_without_a_traceback(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JobSubmissionClient, "submit_job", no_agent)
    monkeypatch.setattr(submit, "_AGENT_READY_S", 0.0)
    with pytest.raises(ClusterError, match=r"did not take the job: .*No available agent.*agent-listen-port=0"):
        submit.Jobs(head.jobs).submit(submit.make_job("tiny", [], "s3://bucket/x", [], {}))


def test_user_preset_is_sent_and_secrets_are_not(head: Head, client: JobSubmissionClient, tmp_path: Path) -> None:
    # Random values: a literal would appear in the copy of this file that is sent.
    planted = {name: token_hex() for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")}
    preset, folder = tmp_path / "mine.yaml", tmp_path / "run"
    preset.write_text(dump(load_config(SMALL[0], SMALL[2::2])))
    following = command.Command(
        "submit", str(preset), "--run-dir", str(folder), "--address", head.jobs, "--follow", "--env", "AWS_PROFILE",
        "--env", f"{VARIABLE}=stage-begun@2:freeze",
        environment={**planted, "AWS_PROFILE": "runs", "AWS_REGION": "nowhere-1", "AWS_ENDPOINT_URL": "http://x:1"},
    )  # fmt: skip
    following.wait_until(lambda: "collect: complete" in following.output())
    stop_frozen(head, client, job_in(following.output()))
    code, output = following.finish()
    assert code == 1, output
    assert "stopped: Job was intentionally stopped" in output
    job = client.get_job_info(job_in(output))
    assert job.runtime_env is not None
    sent = {"AWS_PROFILE": "runs", "AWS_REGION": "nowhere-1", "AWS_ENDPOINT_URL": "http://x:1"}
    assert sent.items() <= job.runtime_env["env_vars"].items()
    assert job.runtime_env["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] == "30", "Ray's own grace is 3 s"
    texts = command.texts([folder, head.folder])
    assert any("nowhere-1" in text for text in texts.values()), "the search finds existing text"
    for secret in planted.values():
        assert secret not in output + json.dumps(job.dict(), default=str)
        assert [path for path, text in texts.items() if secret in text] == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"run_dir": "runs/x"}, r"--run-dir runs/x: on a cluster this must be s3://"),
        ({"reuse": ["runs/y"]}, r"--reuse runs/y: on a cluster this must be s3://"),
        ({"run_dir": "s3://key:secret@bucket/x"}, r"do not put credentials in a URL"),
        ({"preset": "tiney"}, r"Did you mean tiny"),
        ({"overrides": ["execution.executor=in-process"]}, r"execution.executor is 'in-process'"),
        ({"variables": ["AWS_SECRET_ACCESS_KEY"]}, r"must not hold a secret"),
        ({"variables": ["MY_PASSWORD=x"]}, r"must not hold a secret"),
        ({"variables": ["NOT_SET_HERE"]}, r"NOT_SET_HERE: it is not set here"),
        ({"environment": {"AWS_ENDPOINT_URL": "http://user:secret@host"}}, r"AWS_ENDPOINT_URL holds a password"),
    ],
)
def test_invalid_job_is_refused_before_anything_is_sent(changes: dict[str, Any], said: str) -> None:
    whole: dict[str, Any] = {
        "preset": "tiny",
        "overrides": [],
        "run_dir": "s3://bucket/x",
        "variables": [],
        "environment": {},
    }
    assert submit.make_job(**whole)
    with pytest.raises(ConfigError, match=said) as caught:
        submit.make_job(**{**whole, **changes})
    assert "secret@" not in str(caught.value)


def test_variables_may_name_files_with_secrets() -> None:
    variables = ["AWS_WEB_IDENTITY_TOKEN_FILE=/var/token", "AWS_SHARED_CREDENTIALS_FILE=/etc/aws"]
    assert submit.make_job("tiny", [], "s3://bucket/x", variables, {}).environment["AWS_SHARED_CREDENTIALS_FILE"]


def test_whole_study_is_submitted_as_one_job(tmp_path: Path) -> None:
    job = submit.make_job("ablation", ["vae.epochs=2"], "s3://bucket/x", [], {})
    assert job.name.startswith("ablation-")
    assert job.entrypoint == "python -m pipeline study submitted.yaml --run-dir s3://bucket/x"
    assert job.config is not None
    (tmp_path / "study.yaml").write_text(job.config)
    sent, ours = load_study(str(tmp_path / "study.yaml")), load_study("ablation", ["vae.epochs=2"])
    assert [trial.config for trial in trials_of(sent)] == [trial.config for trial in trials_of(ours)]
    with pytest.raises(ConfigError, match="share stages by themselves"):
        submit.make_job("ablation", [], "s3://bucket/x", [], {}, reuse=["s3://bucket/y"])


def test_arms_and_seeds_of_the_command_line_are_submitted_as_a_study(tmp_path: Path) -> None:
    job = submit.make_job("tiny", [], "s3://bucket/x", [], {}, varied=["mdnrnn.init=trained,random"], seeds=[1, 2])
    assert job.config is not None
    (tmp_path / "study.yaml").write_text(job.config)
    sent = load_study(str(tmp_path / "study.yaml"))
    assert (sent.name, [*sent.arms], sent.seeds) == (
        "tiny-study", ["mdnrnn.init=trained", "mdnrnn.init=random"], [1, 2]
    )  # fmt: skip


@pytest.mark.parametrize("preset", ["tiny", "configs/tiny.yaml"])
def test_job_keeps_the_reused_runs(preset: str) -> None:
    job = submit.make_job(preset, [], "s3://bucket/x", [], {}, reuse=["s3://bucket/y", "/shared/z"])
    assert job.entrypoint.endswith("--reuse s3://bucket/y --reuse /shared/z")


def test_variables_with_similar_words_are_not_secrets() -> None:
    job = submit.make_job("tiny", [], "s3://bucket/x", ["TOKENIZERS_PARALLELISM=false", "KEYBOARD=qwerty"], {})
    assert job.environment["TOKENIZERS_PARALLELISM"] == "false"


def test_commands_in_directions_are_quoted(head: Head, tmp_path: Path) -> None:
    directions = submit.Jobs(head.jobs).directions("job", f"{tmp_path}/my run; rm -r *")
    assert f"world-models status '{tmp_path}/my run; rm -r *'" in directions


def test_missing_token_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: str) -> None:
        raise AuthenticationError("Unauthorized: Missing authentication token\n\nmuch more")

    monkeypatch.setattr(submit, "JobSubmissionClient", refuse)
    with pytest.raises(ClusterError, match=r"wants a token: .*Missing.* RAY_AUTH_MODE=token") as caught:
        submit.Jobs("http://127.0.0.1:1")
    assert "much more" not in str(caught.value)


def test_unreachable_job_server_is_named() -> None:
    code, output = command.run("submit", "tiny", "--run-dir", "s3://bucket/x", "--address", "http://127.0.0.1:1")
    assert code == 1, output
    assert "no job server answers at http://127.0.0.1:1" in output
    assert "Traceback" not in output


def test_only_sources_are_sent(tmp_path: Path) -> None:
    submit.stage_sources(submit.make_job("tiny", [], "s3://bucket/x", [], {}), tmp_path)
    found = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.parts[0] for path in found} == set(submit.SOURCES)
    assert {path.suffix for path in found} <= {".py", ".yaml", ".html", ".css", ".js", ".typed", ".json", ".sh"}
    assert sum((tmp_path / path).stat().st_size for path in found) < 2_000_000
