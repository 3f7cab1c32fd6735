"""A cluster that requires a token and whose nodes hold secrets: a job needs the token, and no secret leaks."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.head import Head
from tests.cluster.test_submit import SMALL, job_in
from tests.conftest import BUCKET
from tests.e2e import command
from tests.s3_server import S3Server

TOKEN = secrets.token_hex(32)


@pytest.fixture
def head(s3_url: str) -> Iterator[Head]:
    """A head with the storage's secrets in its environment, like a pod."""
    with Head(token=TOKEN) as head:
        yield head


def test_job_needs_the_token_and_shows_no_secret(head: Head, s3_url: str, s3_server: S3Server) -> None:
    shorter = ("-o", "evolve.generations=2")
    arguments = ("submit", *SMALL, *shorter, "--run-dir", s3_url, "--address", head.jobs, "--follow")
    another = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    for wrong in ({"RAY_AUTH_MODE": "disabled"}, another):
        code, output = command.run(*arguments, environment=wrong)
        assert code == 1, output
        assert f"the job server at {head.jobs} wants a token" in output
        assert "Traceback" not in output
    assert head.get("/api/jobs/") == []

    code, output = command.run(*arguments, environment={"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN})
    assert code == 0, output
    assert "on one test track, too few for a score" in output

    (job,) = head.get("/api/jobs/")
    assert job["submission_id"] == job_in(output)
    texts = command.texts([head.folder])
    texts |= {Path(key): body for key, body in _objects(s3_server)}
    texts |= {Path("the job"): json.dumps(job), Path("its output"): output}
    assert sum(s3_url in text for text in texts.values()) > 2, "the search finds existing text"
    hidden = [TOKEN, s3_server.environment["AWS_SECRET_ACCESS_KEY"]]
    assert [str(path) for path, text in texts.items() if any(secret in text for secret in hidden)] == []


def _objects(server: S3Server) -> Iterator[tuple[str, str]]:
    for page in server.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
        for found in page.get("Contents", []):
            body = server.client.get_object(Bucket=BUCKET, Key=found["Key"])["Body"].read()
            yield found["Key"], body.decode(errors="replace")
