"""What S3 refuses, or does not answer: whether another try may help, and what to tell the user."""

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

# All that boto3 raises for a request: urllib3's own errors come through while a body is read.
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

_TRANSIENT_STATUS = {408, 409, 412, 429, 500, 502, 503, 504}  # 409 and 412: of a create that crossed another request
_TRANSIENT_CODES = {"RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded"}
_CLOCK_CODES = {"RequestTimeTooSkewed", "RequestExpired"}
_CREDENTIAL_CODES = {
    "400",  # the answer to a HEAD has no body that could say more
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
_TOLERATED_SKEW_S = 900  # S3's own

_GO_ON = "Nothing that was committed is touched: the same command goes on from it."


def public(text: str) -> str:
    """Text without the user and password that an endpoint's URL may hold."""
    return re.sub(r"//[^/@\s]*@", "//", text)


def status(error: Any) -> int:
    """The HTTP status of a refusal."""
    number: int = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return number


def code(error: Any) -> str:
    """S3's name for a refusal; the status once more where the answer had no body."""
    name: str = error.response.get("Error", {}).get("Code", "")
    return name


def kind(error: Exception) -> str:
    """A failure in two words: status and code of a refusal, or the name of what there was instead of an answer."""
    if not isinstance(error, ClientError):
        return type(error).__name__
    return f"{status(error)} {code(error)}" if code(error) != str(status(error)) else code(error)


def transient(error: Exception, *, reached: bool) -> bool:
    """Whether another try may be answered.

    Args:
        error: one of ``FAILURES``.
        reached: whether the server has answered before: then it is there, whatever the network says now.
    """
    if not isinstance(error, ClientError):
        return isinstance(error, _UNANSWERED) and (reached or _lasting_trouble(error) is None)
    return status(error) in _TRANSIENT_STATUS or code(error) in _TRANSIENT_CODES


def no_credentials(what: str, error: Exception) -> StorageError:
    """There are no credentials to sign with."""
    # A program that was to print credentials may have printed them among its errors.
    retrieval = isinstance(error, exceptions.CredentialRetrievalError)
    detail = type(error).__name__ if retrieval else str(error).rstrip(".")
    return StorageError(
        f"cannot {what}: there are no AWS credentials to use ({detail}). Set AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give the machine a role; every node of a cluster needs them. "
        "Then run the same command again."
    )


def explained(error: Exception, what: str, bucket: str, endpoint: str, tries: int) -> StorageError:
    """What a failure means, where it was, and what to do.

    Args:
        error: one of ``FAILURES``.
        what: was asked for: "read s3://...".
        bucket, endpoint: where.
        tries: how many there were.
    """
    if isinstance(error, _UNANSWERED):
        lasting = _lasting_trouble(error) if tries == 1 else None
        trouble, advice = lasting or _passing_trouble(error)
        tried = "" if lasting else f"; {tries} tries"
        return StorageError(f"cannot {what}: {endpoint} {trouble} ({kind(error)}{tried}). {advice}. {_GO_ON}")
    if isinstance(error, NO_CREDENTIALS):
        return no_credentials(what, error)
    if not isinstance(error, ClientError):
        return StorageError(f"cannot {what}: {public(str(error))}")
    if code(error) in _CLOCK_CODES or (code(error) in _CREDENTIAL_CODES and _skew_s(error) > _TOLERATED_SKEW_S):
        return StorageError(
            f"cannot {what}: the clock of this machine is {_skew_s(error):.0f} s away from that of {endpoint} "
            f"({kind(error)}). Set the clock. {_GO_ON}"
        )
    if code(error) in _CREDENTIAL_CODES:
        return StorageError(
            f"cannot {what}: {endpoint} refuses the credentials ({kind(error)}). Check AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, or AWS_PROFILE, and AWS_DEFAULT_REGION, and that they allow "
            f"reading, writing, deleting and listing in s3://{bucket}. {_GO_ON}"
        )
    if status(error) == 404:
        return StorageError(
            f"cannot {what}: there is no bucket {bucket} at {endpoint} ({kind(error)}). Create it, or give another "
            "--run-dir or AWS_ENDPOINT_URL_S3."
        )
    if transient(error, reached=True):
        return StorageError(f"cannot {what}: {endpoint} still fails after {tries} tries ({kind(error)}). {_GO_ON}")
    message = error.response.get("Error", {}).get("Message", "no reason given")
    return StorageError(f"cannot {what}: {endpoint} refuses it ({kind(error)}: {public(message)}).")


def _lasting_trouble(error: Exception) -> tuple[str, str] | None:
    """Why no answer to a request can come, and what to do; None where one may come yet."""
    causes = [*_causes(error)]
    said = " ".join(map(str, causes))
    if any(isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_NONAME for cause in causes):
        return "is not found: no machine has this name", "Check AWS_ENDPOINT_URL_S3 and AWS_DEFAULT_REGION"
    if "CERTIFICATE_VERIFY_FAILED" in said:
        return "shows a certificate that is not trusted here", "Give its authority as AWS_CA_BUNDLE; check the clock"
    if "WRONG_VERSION_NUMBER" in said:
        return "does not speak TLS", "Check AWS_ENDPOINT_URL_S3: does it begin with http://?"
    if "Invalid header" in said:  # as http.client says it
        credentials = "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN"
        return "cannot be asked: a header is malformed", f"Check {credentials} for spaces and line ends"
    return None


def _passing_trouble(error: Exception) -> tuple[str, str]:
    """Why there is no answer to a request yet, and what to do."""
    causes = [*_causes(error)]
    if any(isinstance(cause, exceptions.ProxyConnectionError | ProxyError) for cause in causes):
        return "is not reached through the proxy", "Check HTTPS_PROXY, HTTP_PROXY and NO_PROXY"
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return "is not found: the name service does not answer", "Check the network"
    if any(isinstance(cause, ConnectionRefusedError) for cause in causes):
        return "refuses connections: nobody listens there", "Check that the server is up, and AWS_ENDPOINT_URL_S3"
    return "does not answer as it should", "Check the network and AWS_ENDPOINT_URL_S3"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and all that it came from: libraries keep what they caught in several places."""
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
    """How far this machine's clock is from that of the server which gave an answer."""
    date = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    return abs(time.time() - parsedate_to_datetime(date).timestamp()) if date else 0.0
