"""A run directory in a bucket: ``s3://bucket/prefix``, on S3 or on any server that speaks it.

Credentials, region and endpoint come from the standard AWS environment, files and roles, never from arguments.
"""

from __future__ import annotations

import copy
import logging
import os
import random
import re
import time
from collections.abc import Callable, Sequence
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from uuid import uuid4

from pipeline.base.errors import AlreadyExistsError, ConfigError, StorageError

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_WRITE_ID = "write-id"

# Tries of a request, unless AWS_MAX_ATTEMPTS says otherwise, and the waits between them, each twice as long as the one
# before: about 40 s in all, in which a server may restart. The first few are not worth a word.
_TRIES = 12
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 10.0
_SILENT_TRIES = 4

_jitter = random.SystemRandom()  # takes nothing from the generators that a run seeds


class S3Store:
    """Objects under a prefix of a bucket. Create-only writes are conditional ones.

    Every write carries an id of its own. Where the answer to a create is lost, its repetition meets the object that it
    made itself, and the id tells that from another writer's.

    What fails for a moment is tried again: ``AWS_MAX_ATTEMPTS`` times in all if that is set. botocore's own retrying is
    off (``AWS_RETRY_MODE`` means nothing here). It draws on one quota for all threads of a client, so that sixteen
    threads that meet an outage give up after two or three tries each; and it does not go as far as an answer's body.

    Args:
        url: ``s3://bucket/prefix``; the prefix may be left out.
        connect_timeout, read_timeout: seconds without a connection, or without a byte, after which a try has failed.

    Raises:
        ConfigError: the URL is none.
    """

    session = 0

    def __init__(self, url: str, *, connect_timeout: float = 5.0, read_timeout: float = 15.0) -> None:
        self.bucket, self.prefix = _parse(url)
        self._timeouts = (connect_timeout, read_timeout)
        self._bucket_seen = False
        self._reached = False
        self._look: Callable[[], None] | None = None

    def guarded(self, look: Callable[[], None]) -> S3Store:
        guarded = copy.copy(self)
        guarded._look = look
        return guarded

    def read(self, key: str) -> bytes:
        def ask(client: Any) -> bytes:
            try:
                body: bytes = client.get_object(Bucket=self.bucket, Key=self._full(key))["Body"].read()
            except client.exceptions.ClientError as error:
                if not _says_no_object(error):
                    raise
                raise FileNotFoundError(f"{self.locate(key)} does not exist") from error
            return body

        return self._tried("read", key, ask)

    def write(self, key: str, data: bytes) -> None:
        self._tried("write", key, lambda client: self._put(client, key, data, uuid4().hex))

    def create(self, key: str, data: bytes) -> None:
        write_id = uuid4().hex

        def ask(client: Any) -> None:
            try:
                self._put(client, key, data, write_id, IfNoneMatch="*")
            except client.exceptions.ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] != 412:
                    raise
                present = self._head(client, key)
                if present is None:
                    raise  # what was in the way is gone: the next try may find the key free
                if present["Metadata"].get(_WRITE_ID) != write_id:
                    raise AlreadyExistsError(f"{self.locate(key)} exists already") from error

        self._tried("write", key, ask)

    def grow(self, key: str, data: bytes, present: int) -> None:
        self.write(key, data)  # nothing can be added to an object

    def delete(self, key: str) -> None:
        def ask(client: Any) -> None:
            try:
                client.delete_object(Bucket=self.bucket, Key=self._full(key))
            except client.exceptions.ClientError as error:
                if not _says_no_object(error):
                    raise

        self._tried("delete", key, ask)

    def exists(self, key: str) -> bool:
        return self._tried("look for", key, lambda client: self._head(client, key)) is not None

    def list(self, prefix: str = "") -> list[str]:
        above = self._full("")
        request = {"Bucket": self.bucket, "Prefix": above + prefix}
        keys: list[str] = []
        while True:
            page = self._tried("list", prefix, lambda client: client.list_objects_v2(**request))
            keys += [entry["Key"].removeprefix(above) for entry in page.get("Contents", ())]
            if not page.get("IsTruncated"):
                break
            request["ContinuationToken"] = page["NextContinuationToken"]
        # A key that ends with a slash is the mark that a console leaves for a folder.
        return sorted(key for key in keys if key and not key.endswith("/"))

    def locate(self, key: str = "") -> str:
        return "/".join(part for part in (f"s3://{self.bucket}", self.prefix, key) if part)

    def age_s(self, key: str) -> float:
        head = self._tried("look for", key, lambda client: self._head(client, key))
        if head is None:
            raise FileNotFoundError(f"{self.locate(key)} does not exist")
        date = head["ResponseMetadata"]["HTTPHeaders"].get("date")
        if date is None:
            raise StorageError(f"cannot tell how old {self.locate(key)} is: the server gave its answer no date")
        age: float = (parsedate_to_datetime(date) - head["LastModified"]).total_seconds()
        return max(0.0, age)

    def leftovers(self) -> Sequence[str]:
        return []  # an object is put as a whole or not at all

    def remove_leftover(self, name: str) -> None:
        pass

    def _full(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def _put(self, client: Any, key: str, data: bytes, write_id: str, **condition: str) -> None:
        client.put_object(
            Bucket=self.bucket, Key=self._full(key), Body=data, Metadata={_WRITE_ID: write_id}, **condition
        )

    def _head(self, client: Any, key: str) -> dict[str, Any] | None:
        """What there is to know of an object; None where there is none."""
        try:
            head: dict[str, Any] = client.head_object(Bucket=self.bucket, Key=self._full(key))
            return head
        except client.exceptions.ClientError as error:
            if not _says_no_object(error):
                raise
        if not self._bucket_seen:
            # The answer to a HEAD has no body that could tell a missing bucket from a missing object.
            client.head_bucket(Bucket=self.bucket)
            self._bucket_seen = True
        return None

    def _tried(self, doing: str, key: str, ask: Callable[[Any], _T]) -> _T:
        """What ``ask`` makes of a client, asked again as often as it may help.

        Raises:
            StorageError: it failed for good.
            ConfigError: the AWS settings of the environment cannot be used.
        """
        # Not before they are needed: boto3 takes its time to be imported.
        from pipeline.storage import s3_errors
        from pipeline.storage.s3_client import shared_client

        what = f"{doing} {self.locate(key)}"
        client = shared_client(*self._timeouts)
        most, tries = _most_tries(), 1
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
            if self._look is not None:
                self._look()
            tries += 1


def _says_no_object(error: Any) -> bool:
    """Whether a refusal says that there is no such object, or may say that, having no body."""
    status, code = error.response["ResponseMetadata"]["HTTPStatusCode"], error.response["Error"].get("Code")
    return bool(status == 404 and code != "NoSuchBucket")


def _most_tries() -> int:
    value = os.environ.get("AWS_MAX_ATTEMPTS") or str(_TRIES)
    if not value.isdecimal() or int(value) == 0:
        raise ConfigError(f"AWS_MAX_ATTEMPTS={value}: give a whole number from 1")
    return int(value)


def _parse(url: str) -> tuple[str, str]:
    """Bucket and prefix of an ``s3://`` URL."""
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    if "@" in bucket:
        raise ConfigError(
            "--run-dir s3://...: credentials do not belong in a URL; set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, and give s3://bucket/prefix"
        )
    if not _BUCKET.fullmatch(bucket) or ".." in bucket:
        raise ConfigError(
            f"--run-dir {url}: {bucket!r} cannot be a bucket (3 to 63 lower-case letters, digits, dots and hyphens); "
            "give s3://bucket/prefix"
        )
    prefix = prefix.rstrip("/")
    if prefix and not {"", ".", ".."}.isdisjoint(prefix.split("/")):
        raise ConfigError(f"--run-dir {url}: the prefix has an empty part, '.' or '..'; give s3://bucket/prefix")
    return bucket, prefix
