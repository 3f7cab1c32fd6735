"""The answers of the clouds' metadata services, from stand-ins that are real HTTP servers."""

from __future__ import annotations

import pytest

from cluster.metadata import Aws, Gcp, MetadataError, Notice
from pipeline.base.errors import ConfigError
from tests.metadata_server import AwsServer, GcpServer

WHEN = 1_900_000_120.0  # 2030-03-17T17:48:40Z


def test_expired_token_is_renewed(aws: AwsServer) -> None:
    cloud = Aws()
    assert cloud.notice() is None
    aws.expire()
    aws.interrupt("stop", WHEN)
    notice = cloud.notice()
    assert notice is not None
    assert notice.deadline_s == WHEN


def test_service_that_refuses_every_token_is_an_error_after_one_retry(aws: AwsServer) -> None:
    aws.faults = [(200, "token"), (401, ""), (200, "token"), (401, "")]
    with pytest.raises(MetadataError, match=r"answered 401 for spot/instance-action"):
        Aws().notice()
    assert len(aws.asked) == 4


def test_rebalance_recommendation_is_a_notice_only_on_request(aws: AwsServer) -> None:
    aws.documents["events/recommendations/rebalance"] = '{"noticeTime": "2026-11-23T06:00:00Z"}'
    assert Aws().notice() is None
    assert Aws(rebalance=True).notice() == Notice(
        "AWS has recommended since 2026-11-23T06:00:00Z to leave this spot instance", None
    )
    aws.interrupt("terminate", WHEN)
    notice = Aws(rebalance=True).notice()
    assert notice is not None
    assert notice.deadline_s == WHEN


def test_gcp_migration_is_no_notice(gcp: GcpServer) -> None:
    gcp.values["maintenance-event"] = "MIGRATE_ON_HOST_MAINTENANCE"
    assert Gcp().notice() is None


def test_invalid_answer_of_gcp_is_an_error(gcp: GcpServer) -> None:
    gcp.values["preempted"] = "<html>"
    with pytest.raises(MetadataError, match=r"answered '<html>' for preempted"):
        Gcp().notice()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("<html>", r"'<html>' has no action and time"),
        ("[1]", r"has no action and time"),
        ('{"action": "stop"}', r"has no action and time"),
        ('{"action": "stop", "time": "soon"}', r"'soon' is not a UTC time"),
        ('{"action": "stop", "time": "2026-11-23T06:00:00"}', r"is not a UTC time"),
    ],
)
def test_invalid_notice_of_aws_is_an_error(aws: AwsServer, body: str, said: str) -> None:
    aws.documents["spot/instance-action"] = body
    with pytest.raises(MetadataError, match=said):
        Aws().notice()


def test_page_in_place_of_a_token_is_an_error(aws: AwsServer) -> None:
    aws.faults = [(200, "<html>\n</html>\n")]
    with pytest.raises(MetadataError, match="does not answer"):
        Aws().notice()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", "127.0.0.1:80"),
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", "https://127.0.0.1"),
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:port"),
        ("GCE_METADATA_HOST", "http://127.0.0.1"),
    ],
)
def test_invalid_address_is_refused_with_the_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=rf"^{variable} gives the address "):
        Aws() if variable.startswith("AWS") else Gcp()


def test_address_may_end_with_a_slash(aws: AwsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"{aws.environment[aws.variable]}/")
    assert Aws().notice() is None
