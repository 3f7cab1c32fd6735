"""Store for a run directory in a bucket: ``s3://bucket/prefix``, on S3 or any compatible server.

Credentials, region and endpoint come from the standard AWS environment, files and roles, never from arguments.
"""

from __future__ import annotations

import logging
import os
import random
import re
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from uuid import uuid4

from pipeline.base.errors import AlreadyExistsError, ConfigError, StorageError
from pipeline.storage.store import Guarded

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_WRITE_ID = "write-id"

# Attempts of a request (default of AWS_MAX_ATTEMPTS), and the waits between them, which double each time: about 40 s in
# all, long enough for a server to restart. The first few failures are not logged.
_TRIES = 12
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 10.0
_SILENT_TRIES = 4

_jitter = random.SystemRandom()  # independent of the generators that a run seeds


class S3Store(Guarded):
    """Store whose objects lie under a prefix of a bucket. Create-only writes are conditional puts.

    Every write carries a unique ID. If the response to a create is lost, the retry finds the object that the first
    attempt made; the ID distinguishes it from the object of another writer.

    Temporary failures are retried, up to ``AWS_MAX_ATTEMPTS`` attempts in all. botocore's own retries are off
    (``AWS_RETRY_MODE`` has no effect): all threads of a client share one retry quota, so with sixteen threads each
    gives up after two or three attempts during an outage, and failures while reading a response body are not retried.

    Args:
        url: ``s3://bucket/prefix``; the prefix is optional.
        connect_timeout: Seconds without a connection after which an attempt fails.
        read_timeout: Seconds without a byte after which an attempt fails.

    Raises:
        ConfigError: The URL is invalid.
    """

    def __init__(self, url: str, *, connect_timeout: float = 5.0, read_timeout: float = 15.0) -> None:
        self.bucket, self.prefix = _parse(url)
        self._timeouts = (connect_timeout, read_timeout)
        self._bucket_seen = False
        self._reached = False

    def read(self, key: str) -> bytes:
        """See ``Store.read``."""

        def ask(client: Any) -> bytes:
            try:
                body: bytes = client.get_object(Bucket=self.bucket, Key=self._full(key))["Body"].read()
            except client.exceptions.ClientError as error:
                if not _is_not_found(error):
                    raise
                raise FileNotFoundError(f"{self.locate(key)} does not exist") from error
            return body

        return self._with_retries("read", key, ask)

    def write(self, key: str, data: bytes) -> None:
        """See ``Store.write``."""
        self.require_allowed()
        self._with_retries("write", key, lambda client: self._put(client, key, data, uuid4().hex))

    def create(self, key: str, data: bytes) -> None:
        """See ``Store.create``."""
        self.require_allowed()
        write_id = uuid4().hex

        def ask(client: Any) -> None:
            try:
                self._put(client, key, data, write_id, IfNoneMatch="*")
            except client.exceptions.ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] != 412:
                    raise
                present = self._head(client, key)
                if present is None:
                    raise  # the other object is gone: the next attempt may find the key free
                if present["Metadata"].get(_WRITE_ID) != write_id:
                    raise AlreadyExistsError(f"{self.locate(key)} exists already") from error

        self._with_retries("write", key, ask)

    def delete(self, key: str) -> None:
        """See ``Store.delete``."""
        self.require_allowed()

        def ask(client: Any) -> None:
            try:
                client.delete_object(Bucket=self.bucket, Key=self._full(key))
            except client.exceptions.ClientError as error:
                if not _is_not_found(error):
                    raise

        self._with_retries("delete", key, ask)

    def exists(self, key: str) -> bool:
        """See ``Store.exists``."""
        return self._with_retries("look for", key, lambda client: self._head(client, key)) is not None

    def list(self, prefix: str = "") -> list[str]:
        """See ``Store.list``."""
        above = self._full("")
        request = {"Bucket": self.bucket, "Prefix": above + prefix}
        keys: list[str] = []
        while True:
            page = self._with_retries("list", prefix, lambda client: client.list_objects_v2(**request))
            keys += [entry["Key"].removeprefix(above) for entry in page.get("Contents", ())]
            if not page.get("IsTruncated"):
                break
            request["ContinuationToken"] = page["NextContinuationToken"]
        # A key that ends with a slash is a folder marker of the S3 console.
        return sorted(key for key in keys if key and not key.endswith("/"))

    def locate(self, key: str = "") -> str:
        """See ``Store.locate``."""
        return "/".join(part for part in (f"s3://{self.bucket}", self.prefix, key) if part)

    def age_s(self, key: str) -> float:
        """See ``Store.age_s``."""
        head = self._with_retries("look for", key, lambda client: self._head(client, key))
        if head is None:
            raise FileNotFoundError(f"{self.locate(key)} does not exist")
        date = head["ResponseMetadata"]["HTTPHeaders"].get("date")
        if date is None:
            raise StorageError(f"cannot tell the age of {self.locate(key)}: the response of the server has no date")
        age: float = (parsedate_to_datetime(date) - head["LastModified"]).total_seconds()
        return max(0.0, age)

    def _full(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def _put(self, client: Any, key: str, data: bytes, write_id: str, **condition: str) -> None:
        client.put_object(
            Bucket=self.bucket, Key=self._full(key), Body=data, Metadata={_WRITE_ID: write_id}, **condition
        )

    def _head(self, client: Any, key: str) -> dict[str, Any] | None:
        """Response to a HEAD request for an object; None if there is no object."""
        try:
            head: dict[str, Any] = client.head_object(Bucket=self.bucket, Key=self._full(key))
            return head
        except client.exceptions.ClientError as error:
            if not _is_not_found(error):
                raise
        if not self._bucket_seen:
            # The response to a HEAD has no body, so it does not tell a missing bucket from a missing object.
            client.head_bucket(Bucket=self.bucket)
            self._bucket_seen = True
        return None

    def _with_retries(self, doing: str, key: str, ask: Callable[[Any], _T]) -> _T:
        """Result of ``ask(client)``, retried after temporary failures.

        Args:
            doing: Verb for messages, such as "read".
            key: Key for messages.
            ask: Function that makes the request.

        Raises:
            StorageError: The request failed for good.
            ConfigError: The AWS settings of the environment are invalid.
        """
        # Imported only when needed: the import of boto3 is slow.
        from pipeline.storage import s3_errors
        from pipeline.storage.s3_client import shared_client

        what = f"{doing} {self.locate(key)}"
        client = shared_client(*self._timeouts)
        most, tries = _max_attempts(), 1
        while True:
            try:
                answer = ask(client)
                self._reached = True
                return answer
            except s3_errors.FAILURES as error:
                if tries >= most or not s3_errors.transient(error, reached=self._reached):
                    endpoint = s3_errors.public(client.meta.endpoint_url)
                    raise s3_errors.explained(error, what, self.bucket, endpoint, tries) from error
                wait = min(_FIRST_WAIT_S * 2 ** (tries - 1), _LONGEST_WAIT_S) * _jitter.uniform(0.5, 1.0)
                if tries >= _SILENT_TRIES:
                    logger.warning("cannot %s (%s); trying again in %.1f s", what, s3_errors.kind(error), wait)
            time.sleep(wait)
            self.require_allowed()
            tries += 1


def _is_not_found(error: Any) -> bool:
    """Whether an error response says that there is no such object; a 404 without a body counts."""
    status, code = error.response["ResponseMetadata"]["HTTPStatusCode"], error.response["Error"].get("Code")
    return bool(status == 404 and code != "NoSuchBucket")


def _max_attempts() -> int:
    value = os.environ.get("AWS_MAX_ATTEMPTS") or str(_TRIES)
    if not value.isdecimal() or int(value) == 0:
        raise ConfigError(f"AWS_MAX_ATTEMPTS={value}: must be a whole number of at least 1")
    return int(value)


def _parse(url: str) -> tuple[str, str]:
    """Bucket and prefix of an ``s3://`` URL."""
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    if "@" in bucket:
        raise ConfigError(
            "--run-dir s3://...: do not put credentials in a URL; set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, and give s3://bucket/prefix"
        )
    if not _BUCKET.fullmatch(bucket) or ".." in bucket:
        raise ConfigError(
            f"--run-dir {url}: {bucket!r} is not a valid bucket name (3 to 63 lower-case letters, digits, dots and "
            "hyphens); give s3://bucket/prefix"
        )
    prefix = prefix.rstrip("/")
    if prefix and not {"", ".", ".."}.isdisjoint(prefix.split("/")):
        raise ConfigError(f"--run-dir {url}: the prefix has an empty part, '.' or '..'; give s3://bucket/prefix")
    return bucket, prefix
