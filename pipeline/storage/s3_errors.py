"""Errors of S3 requests: whether a retry can help, and what to tell the user."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from typing import Any

from botocore import exceptions
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError, ProxyError

from pipeline.base.errors import StorageError

ClientError = exceptions.ClientError

# All errors that boto3 raises for a request, with those of urllib3, which pass through while a body is read.
FAILURES = (ClientError, exceptions.BotoCoreError, ResponseParserError, HTTPError)

_UNANSWERED = (
    exceptions.ConnectionError,
    exceptions.HTTPClientError,
    exceptions.IncompleteReadError,
    ResponseParserError,
    HTTPError,
)
NO_CREDENTIALS = (
    exceptions.CredentialRetrievalError,
    exceptions.MetadataRetrievalError,
    exceptions.NoAuthTokenError,
    exceptions.NoCredentialsError,
    exceptions.PartialCredentialsError,
    exceptions.ProfileNotFound,
    exceptions.SSOError,
    exceptions.TokenRetrievalError,
    exceptions.UnknownCredentialError,
)

_TRANSIENT_STATUS = {408, 409, 412, 429, 500, 502, 503, 504}  # 409 and 412: a create that crossed another request
_TRANSIENT_CODES = {"RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded"}
_CLOCK_CODES = {"RequestTimeTooSkewed", "RequestExpired"}
_CREDENTIAL_CODES = {
    "400",  # the response to a HEAD has no body with details
    "403",
    "AccessDenied",
    "AccountProblem",
    "AllAccessDisabled",
    "ExpiredToken",
    "ExpiredTokenException",
    "Forbidden",
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
    "UnauthorizedAccess",
}
_TOLERATED_SKEW_S = 900  # limit of S3


def public(text: str) -> str:
    """Text without user names and passwords in URLs."""
    return re.sub(r"//[^/@\s]*@", "//", text)


def status(error: Any) -> int:
    """HTTP status of an error response."""
    number: int = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return number


def code(error: Any) -> str:
    """Error code of an error response; the HTTP status if the response has no body."""
    name: str = error.response.get("Error", {}).get("Code", "")
    return name


def kind(error: Exception) -> str:
    """Short name of a failure: status and code of an error response, or else the class of the exception."""
    if not isinstance(error, ClientError):
        return type(error).__name__
    return f"{status(error)} {code(error)}" if code(error) != str(status(error)) else code(error)


def transient(error: Exception, *, reached: bool) -> bool:
    """Whether a retry can succeed.

    Args:
        error: One of ``FAILURES``.
        reached: Whether the server has answered before, so that even a permanent-looking network error can pass.
    """
    if not isinstance(error, ClientError):
        return isinstance(error, _UNANSWERED) and (reached or _permanent_cause(error) is None)
    return status(error) in _TRANSIENT_STATUS or code(error) in _TRANSIENT_CODES


def no_credentials(what: str, error: Exception) -> StorageError:
    """Error for a request without credentials.

    Args:
        what: Request, such as "read s3://...".
        error: One of ``NO_CREDENTIALS``.
    """
    # The error text of a credential program may contain the credentials.
    retrieval = isinstance(error, exceptions.CredentialRetrievalError)
    detail = type(error).__name__ if retrieval else str(error).rstrip(".")
    return StorageError(
        f"cannot {what}: there are no AWS credentials to use ({detail}). Set AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give the machine a role; every node of a cluster needs them",
        resume_after="",
    )


def explained(error: Exception, what: str, bucket: str, endpoint: str, tries: int) -> StorageError:
    """Error that tells what failed, where, why, and what to do.

    Args:
        error: One of ``FAILURES``.
        what: Request, such as "read s3://...".
        bucket: Name of the bucket.
        endpoint: URL of the server.
        tries: Number of attempts.
    """
    if isinstance(error, _UNANSWERED):
        lasting = _permanent_cause(error) if tries == 1 else None
        trouble, advice = lasting or _temporary_cause(error)
        tried = "" if lasting else f"; {tries} tries"
        return StorageError(f"cannot {what}: {endpoint} {trouble} ({kind(error)}{tried}). {advice}", resume_after="")
    if isinstance(error, NO_CREDENTIALS):
        return no_credentials(what, error)
    if not isinstance(error, ClientError):
        return StorageError(f"cannot {what}: {public(str(error))}")
    if code(error) in _CLOCK_CODES or (code(error) in _CREDENTIAL_CODES and _skew_s(error) > _TOLERATED_SKEW_S):
        return StorageError(
            f"cannot {what}: the clock of this machine is {_skew_s(error):.0f} s away from that of {endpoint} "
            f"({kind(error)})",
            resume_after="set the clock",
        )
    if code(error) in _CREDENTIAL_CODES:
        return StorageError(
            f"cannot {what}: {endpoint} refuses the credentials ({kind(error)}). Check AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, or AWS_PROFILE, and AWS_DEFAULT_REGION, and that they allow "
            f"reading, writing, deleting and listing in s3://{bucket}",
            resume_after="",
        )
    if status(error) == 404:
        return StorageError(
            f"cannot {what}: there is no bucket {bucket} at {endpoint} ({kind(error)}). Create it, or set another "
            "--run-dir or AWS_ENDPOINT_URL_S3."
        )
    if transient(error, reached=True):
        return StorageError(
            f"cannot {what}: {endpoint} still fails after {tries} tries ({kind(error)})", resume_after=""
        )
    message = error.response.get("Error", {}).get("Message", "no reason given")
    return StorageError(f"cannot {what}: {endpoint} refuses the request ({kind(error)}: {public(message)}).")


def _permanent_cause(error: Exception) -> tuple[str, str] | None:
    """Permanent cause of a missing response, and what to do; None if a retry can succeed."""
    causes = [*_causes(error)]
    said = " ".join(map(str, causes))
    if any(isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_NONAME for cause in causes):
        return "is not found: no machine has this name", "Check AWS_ENDPOINT_URL_S3 and AWS_DEFAULT_REGION"
    if "CERTIFICATE_VERIFY_FAILED" in said:
        return "has a certificate that is not trusted here", "Set AWS_CA_BUNDLE to its authority; check the clock"
    if "WRONG_VERSION_NUMBER" in said:
        return "does not speak TLS", "Check AWS_ENDPOINT_URL_S3: does it begin with http://?"
    if "Invalid header" in said:  # message of http.client
        credentials = "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN"
        return "cannot be reached: a request header is malformed", f"Check {credentials} for spaces and line ends"
    return None


def _temporary_cause(error: Exception) -> tuple[str, str]:
    """Temporary cause of a missing response, and what to do."""
    causes = [*_causes(error)]
    if any(isinstance(cause, exceptions.ProxyConnectionError | ProxyError) for cause in causes):
        return "is not reached through the proxy", "Check HTTPS_PROXY, HTTP_PROXY and NO_PROXY"
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return "is not found: the name service does not answer", "Check the network"
    if any(isinstance(cause, ConnectionRefusedError) for cause in causes):
        return "refuses connections: no server listens there", "Check that the server is up, and AWS_ENDPOINT_URL_S3"
    return "gives no valid response", "Check the network and AWS_ENDPOINT_URL_S3"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and all its causes, which libraries store in several places."""
    waiting, seen = [error], set[int]()
    while waiting:
        cause = waiting.pop()
        if id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        held = (*cause.args, getattr(cause, "kwargs", {}).get("error"), getattr(cause, "reason", None))
        held += (cause.__cause__, None if cause.__suppress_context__ else cause.__context__)
        waiting += [each for each in held if isinstance(each, BaseException)]


def _skew_s(error: Any) -> float:
    """Difference in seconds between the clocks of this machine and of the server; 0 if the response has no date."""
    date = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    return abs(time.time() - parsedate_to_datetime(date).timestamp()) if date else 0.0
