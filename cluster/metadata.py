"""Termination notices from the metadata services of AWS and GCP."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from http.client import HTTPConnection, HTTPException
from typing import Protocol
from urllib.parse import urlsplit

from pipeline.base.errors import ConfigError

# Address of both services, as a number: a name lookup would have no time limit.
_LINK_LOCAL = "169.254.169.254"

_TIMEOUT_S = 2.0
_MOST_BYTES = 2**16

_AWS_TOKEN_S = 6 * 3600  # the maximum; an expired token is renewed

# GCP gives no time. Minimum notice periods according to its documentation.
_GCP_PREEMPTION_S = 30.0
_GCP_MAINTENANCE_S = 60.0


class MetadataError(Exception):
    """The metadata service gave no usable answer. May be temporary."""


@dataclass(frozen=True)
class Notice:
    """Notice that the cloud takes this machine away.

    Attributes:
        what: Description for people.
        deadline_s: Time of the end, in seconds since the Unix epoch; None if the notice has no time.
    """

    what: str
    deadline_s: float | None


class Cloud(Protocol):
    """A cloud's metadata service, as seen from this machine."""

    name: str

    def notice(self) -> Notice | None:
        """Ask once, for a few seconds at most.

        Returns:
            The notice; None if this machine stays.

        Raises:
            MetadataError: There is no usable answer. The message shows the answer.
        """


class Aws:
    """EC2: spot interruption notices, through version 2 of the service (with tokens).

    Args:
        rebalance: Whether the earlier, vaguer rebalance recommendation also counts as a notice.

    Raises:
        ConfigError: ``AWS_EC2_METADATA_SERVICE_ENDPOINT`` is invalid.
    """

    name = "AWS"

    def __init__(self, *, rebalance: bool = False) -> None:
        variable = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
        self._service = _Service(os.environ.get(variable) or f"http://{_LINK_LOCAL}", variable)
        self._rebalance = rebalance
        self._token: str | None = None

    def notice(self) -> Notice | None:
        """See ``Cloud.notice``."""
        # Neither document exists until there is a notice.
        action = self._document("spot/instance-action")
        if action is not None:
            what, when = _fields(action, "action", "time")
            return Notice(f"AWS will {what} this spot instance at {when}", _seconds(when))
        if self._rebalance:
            recommendation = self._document("events/recommendations/rebalance")
            if recommendation is not None:
                (when,) = _fields(recommendation, "noticeTime")
                return Notice(f"AWS has recommended since {when} to leave this spot instance", None)
        return None

    def _document(self, path: str) -> str | None:
        status, text = self._get(path)
        if status == 401:
            self._token = None
            status, text = self._get(path)
        if status not in (200, 404):
            raise MetadataError(f"{self._service.url} answered {status} for {path}")
        return text if status == 200 else None

    def _get(self, path: str) -> tuple[int, str]:
        if self._token is None:
            lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": str(_AWS_TOKEN_S)}
            status, token = self._service.ask("PUT", "/latest/api/token", lifetime)
            if status != 200:
                raise MetadataError(f"{self._service.url} answered {status} for a token")
            self._token = token
        return self._service.ask("GET", f"/latest/meta-data/{path}", {"X-aws-ec2-metadata-token": self._token})


class Gcp:
    """Compute Engine: preemptions, and host maintenance that ends the machine.

    Raises:
        ConfigError: ``GCE_METADATA_HOST`` is invalid.
    """

    name = "GCP"

    def __init__(self) -> None:
        variable = "GCE_METADATA_HOST"
        self._service = _Service(f"http://{os.environ.get(variable) or _LINK_LOCAL}", variable)

    def notice(self) -> Notice | None:
        """See ``Cloud.notice``."""
        preempted = self._value("preempted")
        if preempted not in ("TRUE", "FALSE"):
            raise MetadataError(f"{self._service.url} answered {preempted[:80]!r} for preempted")
        if preempted == "TRUE":
            return Notice("GCP preempts this machine", time.time() + _GCP_PREEMPTION_S)
        if self._value("maintenance-event") == "TERMINATE_ON_HOST_MAINTENANCE":
            return Notice("GCP ends this machine for host maintenance", time.time() + _GCP_MAINTENANCE_S)
        return None

    def _value(self, name: str) -> str:
        status, text = self._service.ask("GET", f"/computeMetadata/v1/instance/{name}", {"Metadata-Flavor": "Google"})
        if status != 200:
            raise MetadataError(f"{self._service.url} answered {status} for {name}")
        return text.strip()


class _Service:
    """A metadata service at an address, reached without any proxy of the environment."""

    def __init__(self, url: str, variable: str) -> None:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise ConfigError(f"{variable} gives the address {url}: {error}") from error
        if parts.scheme != "http" or not host or parts.path not in ("", "/"):
            raise ConfigError(f"{variable} gives the address {url}, expected http://HOST:PORT")
        self.url = url
        self._host, self._port = host, port

    def ask(self, method: str, path: str, headers: Mapping[str, str]) -> tuple[int, str]:
        """Send a request; returns the status and text of the answer.

        Raises:
            MetadataError: There is no answer.
        """
        connection = HTTPConnection(self._host, self._port, timeout=_TIMEOUT_S)
        try:
            connection.request(method, path, headers=dict(headers))
            response = connection.getresponse()
            return response.status, response.read(_MOST_BYTES).decode()
        except (
            OSError,
            HTTPException,
            ValueError,
        ) as error:  # ValueError: the answer is not text, or the token is invalid
            raise MetadataError(f"{self.url} does not answer: {error!r}") from error
        finally:
            connection.close()


def _fields(text: str, *names: str) -> list[str]:
    try:
        document = json.loads(text)
        return [str(document[name]) for name in names]
    except (ValueError, TypeError, KeyError) as error:
        raise MetadataError(f"{text[:80]!r} has no {' and '.join(names)}") from error


def _seconds(when: str) -> float:
    try:
        return datetime.strptime(when, "%Y-%m-%dT%H:%M:%S%z").timestamp()
    except ValueError as error:
        raise MetadataError(f"{when!r} is not a UTC time") from error
