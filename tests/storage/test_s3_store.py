"""The S3 store, beyond the contract of every store. The server is a real one."""

from __future__ import annotations

import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest

from pipeline.base.errors import AlreadyExistsError, ConfigError, StorageError
from pipeline.bench.storage import emptied
from pipeline.storage import s3_client
from pipeline.storage.s3 import S3Store
from tests.conftest import BUCKET
from tests.s3_server import S3Server
from tests.storage.proxy import wait_until

# ---- the URL


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("s3://my-bucket", "s3://my-bucket"),
        ("s3://my-bucket/", "s3://my-bucket"),
        ("s3://my.bucket/runs/one", "s3://my.bucket/runs/one"),
        ("s3://my-bucket/runs/one/", "s3://my-bucket/runs/one"),
    ],
)
def test_url_names_a_bucket_and_an_optional_prefix(url: str, where: str) -> None:
    assert S3Store(url).locate() == where
    assert S3Store(url).locate("a/k.bin") == f"{where}/a/k.bin"


@pytest.mark.parametrize(
    "url",
    ["s3://", "s3:///runs", "s3://ab", "s3://My-Bucket/x", "s3://a_b_c", "s3://-abc", "s3://a..b", "s3://abc:90/x"],
)
def test_invalid_bucket_name_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="bucket"):
        S3Store(url)


@pytest.mark.parametrize("url", ["s3://abc//x", "s3://abc/x//y", "s3://abc/./x", "s3://abc/x/../y"])
def test_ambiguous_prefix_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="prefix"):
        S3Store(url)


def test_credentials_in_the_url_are_refused_and_not_shown() -> None:
    with pytest.raises(ConfigError, match="AWS_SECRET_ACCESS_KEY") as caught:
        S3Store("s3://me:hunter2@abc/x")
    assert "hunter2" not in str(caught.value)


# ---- objects


def test_a_bench_of_a_bucket_leaves_nothing_there(s3_url: str, s3_store: S3Store) -> None:
    s3_store.write("run/config.yaml", b"1")
    with pytest.raises(KeyboardInterrupt), emptied(f"{s3_url}/bench") as store:
        store.write("rollouts/shard", b"2")
        assert s3_store.list() == ["bench/rollouts/shard", "run/config.yaml"]
        raise KeyboardInterrupt
    assert s3_store.list() == ["run/config.yaml"]


def test_keys_without_a_prefix_are_those_of_the_bucket(s3_server: S3Server, s3_url: str) -> None:
    s3_server.create_bucket("whole-bucket")
    store = S3Store("s3://whole-bucket")
    store.write("a/k", b"1")
    assert store.list() == store.list("a/") == ["a/k"]
    assert s3_server.client.get_object(Bucket="whole-bucket", Key="a/k")["Body"].read() == b"1"


def test_runs_with_similar_prefixes_do_not_see_each_other(s3_url: str) -> None:
    one, other = S3Store(f"{s3_url}/run"), S3Store(f"{s3_url}/run2")
    one.write("k", b"1")
    other.write("k2", b"2")
    assert one.list() == ["k"]
    assert other.list() == ["k2"]
    assert S3Store(s3_url).list("run") == ["run/k", "run2/k2"]


def test_folder_marker_of_a_console_is_not_listed(s3_store: S3Store, client: Any) -> None:
    s3_store.write("folder/k", b"1")
    for folder in ("", "folder/", "empty/"):
        client.put_object(Bucket=BUCKET, Key=f"{s3_store.prefix}/{folder}", Body=b"")
    assert s3_store.list() == s3_store.list("folder/") == ["folder/k"]


def test_names_with_url_escapes_are_kept(s3_store: S3Store) -> None:
    keys = sorted(["a b", "a+b", "a%20b", "ä&ö=?", "#1", "~x", "(1)'\""])
    for key in keys:
        s3_store.write(key, key.encode())
    assert s3_store.list() == keys
    assert [s3_store.read(key) for key in keys] == [key.encode() for key in keys]


def test_list_over_several_pages_is_complete(s3_store: S3Store, client: Any) -> None:
    keys = [f"k/{number:04d}" for number in range(1005)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: client.put_object(Bucket=BUCKET, Key=f"{s3_store.prefix}/{key}", Body=b""), keys))
    assert s3_store.list() == keys
    assert s3_store.list("k/100") == keys[1000:]


def test_large_object_is_read_back_unchanged(s3_store: S3Store) -> None:
    data = bytes(range(251)) * 80_000
    s3_store.write("big", data)
    assert s3_store.read("big") == data


def test_write_resets_the_age_of_an_object(s3_store: S3Store) -> None:
    s3_store.write("k", b"1")
    wait_until(lambda: s3_store.age_s("k") >= 2)
    s3_store.write("k", b"1")
    assert s3_store.age_s("k") < 2


def test_create_fails_if_another_program_wrote_the_key(s3_store: S3Store, client: Any) -> None:
    client.put_object(Bucket=BUCKET, Key=f"{s3_store.prefix}/k", Body=b"another's")
    with pytest.raises(AlreadyExistsError, match="k exists already"):
        s3_store.create("k", b"ours")
    assert s3_store.read("k") == b"another's"


@pytest.mark.parametrize(("writers", "rounds"), [(2, 100), (16, 3)])  # with SeaweedFS, many of them wait for seconds
def test_exactly_one_of_many_concurrent_creates_succeeds(s3_url: str, writers: int, rounds: int) -> None:
    stores = [S3Store(s3_url) for _ in range(writers)]
    barrier = Barrier(writers)

    def create(writer: int) -> list[bool]:
        won = []
        for number in range(rounds):
            barrier.wait()
            try:
                stores[writer].create(f"k/{number}", str(writer).encode())
                won.append(True)
            except AlreadyExistsError:
                won.append(False)
        return won

    with ThreadPoolExecutor(writers) as pool:
        won = list(pool.map(create, range(writers)))
    for number in range(rounds):
        winners = [writer for writer in range(writers) if won[writer][number]]
        assert [str(winner).encode() for winner in winners] == [stores[0].read(f"k/{number}")]


# ---- one client a process


def test_pickled_store_is_small_and_has_no_credentials(s3_server: S3Server, s3_store: S3Store) -> None:
    s3_store.write("k", b"1")
    data = pickle.dumps(s3_store)
    assert len(data) < 500
    assert s3_server.environment["AWS_SECRET_ACCESS_KEY"].encode() not in data
    assert s3_server.environment["AWS_ACCESS_KEY_ID"].encode() not in data
    assert pickle.loads(data).read("k") == b"1"


def test_all_stores_of_a_process_share_one_client(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[float, ...]] = []
    make = s3_client._made_client

    def counted(*timeouts: float) -> Any:
        made.append(timeouts)
        return make(*timeouts)

    monkeypatch.setattr(s3_client, "_clients", {})
    monkeypatch.setattr(s3_client, "_made_client", counted)
    stores = [S3Store(f"{s3_url}/{number % 2}") for number in range(16)]
    barrier = Barrier(len(stores))
    with ThreadPoolExecutor(len(stores)) as pool:
        list(pool.map(lambda store: (barrier.wait(), store.write("k", b"1")), stores))
    pickle.loads(pickle.dumps(stores[0])).read("k")
    assert len(made) == 1
    monkeypatch.setenv("AWS_SESSION_TOKEN", "another")
    with pytest.raises(StorageError):
        stores[0].read("k")
    assert len(made) == 2, "another environment is another client"


def _run(script: str) -> str:
    """The output of a script in a new interpreter."""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_boto3_is_imported_only_by_the_first_request() -> None:
    script = """
import sys
import time
from pipeline.storage.s3 import S3Store
S3Store("s3://abc/x").locate("k")
print(sorted({"boto3", "botocore"} & set(sys.modules)))
"""
    assert _run(script) == "[]\n"


def test_child_forked_during_a_request_creates_its_own_client(s3_url: str) -> None:
    script = f"""
import os, signal, threading
from pipeline.bench.storage import emptied
from pipeline.storage import s3_client
from pipeline.storage.s3 import S3Store

store = S3Store({s3_url!r})
store.write("k", b"1")
stop = threading.Event()
def busy():
    while not stop.is_set():
        store.read("k")
thread = threading.Thread(target=busy)
thread.start()
ends = []
for number in range(8):
    s3_client._lock.acquire()  # as if another thread were creating a client
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        assert store.read("k") == b"1"
        store.create(f"child/{{number}}", b"")
        os._exit(len({{id(client) for client in s3_client._clients.values()}}))
    s3_client._lock.release()
    ends.append(os.waitpid(child, 0)[1])
    store.write("k", b"1")
stop.set()
thread.join()
print([os.waitstatus_to_exitcode(end) for end in ends], len(store.list("child/")))
"""
    assert _run(script) == f"{[2] * 8} 8\n", "the parent's client, which is left alone, and the child's own"
