"""Shards: columns and types of the row contract, read back to the bit; damage is always detected."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import fields, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.base.errors import DamagedDataError
from pipeline.data.artifacts import shard_name
from pipeline.data.episodes import Episode, LatentEpisode
from pipeline.data.shards import (
    DESCRIPTION_KEY,
    episode_steps,
    episodes_to_bytes,
    latents_to_bytes,
    read_episodes,
    read_frames,
    read_latents,
)
from pipeline.storage.local import LocalStore
from pipeline.storage.manifest import Record, commit, read_records
from pipeline.storage.store import Store

LENGTHS = [7, 1, 12]


def episode(identity: int, steps: int, *, action_size: int = 3) -> Episode:
    rng = np.random.default_rng([identity, steps])
    return Episode(
        id=identity,
        track=identity + 1_999_000_000,
        frames=rng.integers(0, 256, (steps, 64, 64, 3), np.uint8),
        actions=rng.standard_normal((steps, action_size), np.float32),
        rewards=rng.standard_normal(steps, np.float32),
        terminated=np.arange(steps) == steps - 1,
        truncated=rng.random(steps) < 0.5,
        final_frame=rng.integers(0, 256, (64, 64, 3), np.uint8),
    )


def latents(identity: int, steps: int, *, z_size: int = 5) -> LatentEpisode:
    rng = np.random.default_rng([identity, steps, 1])
    source = episode(identity, steps)
    return LatentEpisode(
        identity,
        source.track,
        rng.standard_normal((steps, z_size), np.float32),
        rng.standard_normal((steps, z_size), np.float32),
        source.actions,
        source.rewards,
        source.terminated,
        source.truncated,
    )


EPISODES = [episode(30 + i, steps) for i, steps in enumerate(LENGTHS)]
LATENTS = [latents(30 + i, steps) for i, steps in enumerate(LENGTHS)]


def committed(store: Store, data: bytes) -> Record:
    return commit(store, "rollouts", shard_name(0), data, episodes=[[e.id, len(e)] for e in EPISODES])


def assert_same(a: Episode | LatentEpisode, b: Episode | LatentEpisode) -> None:
    """Check equality to the bit, including types and shapes."""
    assert type(a) is type(b)
    for field in fields(a):
        left, right = getattr(a, field.name), getattr(b, field.name)
        if field.name in ("id", "track"):
            assert left == right
            continue
        assert (left.dtype, left.shape) == (right.dtype, right.shape), field.name
        assert left.tobytes() == right.tobytes(), field.name


def test_episodes_are_read_back_to_the_bit_in_order(store: Store) -> None:
    record = committed(store, episodes_to_bytes(EPISODES))
    for written, read in zip(EPISODES, read_episodes(store, record), strict=True):
        assert_same(written, read)


def test_latents_are_read_back_to_the_bit_in_order(store: Store) -> None:
    record = committed(store, latents_to_bytes(LATENTS))
    for written, read in zip(LATENTS, read_latents(store, record), strict=True):
        assert_same(written, read)


@settings(max_examples=25, deadline=None)
@given(
    values=st.lists(st.floats(width=32), min_size=6, max_size=6),
    flags=st.lists(st.booleans(), min_size=2, max_size=2),
    identity=st.integers(0, 2**62),
)
def test_all_floats_and_flags_are_read_back(
    tmp_path_factory: pytest.TempPathFactory, values: list[float], flags: list[bool], identity: int
) -> None:
    store = LocalStore(tmp_path_factory.mktemp("run"))
    numbers = np.array(values, np.float32)
    written = replace(
        episode(identity, 1, action_size=5),
        actions=numbers[None, :5],
        rewards=numbers[5:],
        terminated=np.array(flags[:1]),
        truncated=np.array(flags[1:]),
    )
    (read,) = read_episodes(store, committed(store, episodes_to_bytes([written])))
    assert_same(written, read)


def test_non_contiguous_arrays_are_written_correctly(store: Store) -> None:
    whole = episode(1, 20)
    rows = ("frames", "actions", "rewards", "terminated", "truncated")
    thinned = replace(whole, **{name: getattr(whole, name)[::2] for name in rows}, final_frame=whole.final_frame[::-1])
    (read,) = read_episodes(store, committed(store, episodes_to_bytes([thinned])))
    assert_same(read, replace(thinned, frames=thinned.frames.copy()))


def test_frames_are_read_only_for_the_wanted_episodes(store: Store) -> None:
    record = committed(store, episodes_to_bytes(EPISODES))
    frames = list(read_frames(store, [record], {30, 32, 99}))
    assert [len(f) for f in frames] == [7, 12]
    assert frames[0].tobytes() == EPISODES[0].frames.tobytes()
    assert frames[1].tobytes() == EPISODES[2].frames.tobytes()
    assert frames[1].shape == (12, 64, 64, 3)
    assert list(read_frames(store, [record], set())) == []


def test_same_episodes_give_the_same_bytes() -> None:
    assert episodes_to_bytes(EPISODES) == episodes_to_bytes(EPISODES)
    assert latents_to_bytes(LATENTS) == latents_to_bytes(LATENTS)


def test_episode_steps_come_from_the_record_only(store: Store) -> None:
    record = committed(store, episodes_to_bytes(EPISODES))
    store.delete(record.key)
    assert list(episode_steps(read_records(store, "rollouts")[shard_name(0)]).items()) == [(30, 7), (31, 1), (32, 12)]


# ---- the file itself, by pyarrow alone


def opened(data: bytes) -> pq.ParquetFile:
    return pq.ParquetFile(io.BytesIO(data))


def test_schema_of_frame_shards_follows_the_row_contract() -> None:
    schema = opened(episodes_to_bytes(EPISODES)).schema_arrow
    assert [(field.name, field.type) for field in schema] == [
        ("episode_id", pa.int64()),
        ("step", pa.int32()),
        ("track", pa.int64()),
        ("frame", pa.binary(12288)),
        ("action", pa.list_(pa.float32(), 3)),
        ("reward", pa.float32()),
        ("terminated", pa.bool_()),
        ("truncated", pa.bool_()),
        ("final_frame", pa.binary()),
    ]


def test_schema_of_latent_shards_follows_the_row_contract() -> None:
    schema = opened(latents_to_bytes(LATENTS)).schema_arrow
    assert [(field.name, field.type) for field in schema] == [
        ("episode_id", pa.int64()),
        ("step", pa.int32()),
        ("track", pa.int64()),
        ("mu", pa.list_(pa.float32(), 5)),
        ("logvar", pa.list_(pa.float32(), 5)),
        ("action", pa.list_(pa.float32(), 3)),
        ("reward", pa.float32()),
        ("terminated", pa.bool_()),
        ("truncated", pa.bool_()),
    ]


@pytest.mark.parametrize("data", [episodes_to_bytes(EPISODES), latents_to_bytes(LATENTS)], ids=["frames", "latents"])
def test_each_episode_is_one_zstd_row_group_with_steps_from_0(data: bytes) -> None:
    file = opened(data)
    assert file.num_row_groups == len(LENGTHS)
    for group, (identity, steps) in enumerate(zip((30, 31, 32), LENGTHS, strict=True)):
        meta = file.metadata.row_group(group)
        assert meta.num_rows == steps
        assert {meta.column(i).compression for i in range(meta.num_columns)} == {"ZSTD"}
        table = file.read_row_group(group)
        assert table["episode_id"].to_pylist() == [identity] * steps
        assert table["step"].to_pylist() == list(range(steps))


def test_episode_longer_than_a_default_row_group_has_one_row_group() -> None:
    steps = 1_100_000  # pyarrow's default row group has 1,048,576 rows at most
    vectors, flags = np.zeros((steps, 1), np.float32), np.zeros(steps, np.bool_)
    long = LatentEpisode(1, 2, vectors, vectors, vectors, vectors[:, 0], flags, flags)
    assert opened(latents_to_bytes([long])).num_row_groups == 1


def test_frame_is_row_major_rgb_for_any_reader() -> None:
    pixels = np.zeros((1, 64, 64, 3), np.uint8)
    pixels[0, 2, 5] = (10, 20, 30)  # row 2, column 5
    written = replace(episode(0, 1), frames=pixels)
    frame = opened(episodes_to_bytes([written])).read()["frame"][0].as_py()
    at = (2 * 64 + 5) * 3
    assert frame[at : at + 3] == bytes([10, 20, 30])
    assert sum(frame) == 60


def test_only_the_last_row_has_the_frame_after_the_last_action() -> None:
    table = opened(episodes_to_bytes(EPISODES)).read()
    last = np.cumsum(LENGTHS) - 1
    for row, value in enumerate(table["final_frame"].to_pylist()):
        expected = EPISODES[list(last).index(row)].final_frame.tobytes() if row in last else None
        assert value == expected, row


def test_shard_metadata_describes_how_to_read_the_rows() -> None:
    frames = json.loads(opened(episodes_to_bytes(EPISODES)).metadata.metadata[DESCRIPTION_KEY.encode()])
    assert (frames["frame"]["shape"], frames["frame"]["dtype"]) == ([64, 64, 3], "uint8")
    for name in ("action", "track", "step", "reward", "terminated", "truncated", "frame", "final_frame"):
        assert name in frames["rows"]
    assert "numpy.frombuffer(frame, 'uint8').reshape(64, 64, 3)" in frames["read"]
    latents = json.loads(opened(latents_to_bytes(LATENTS)).metadata.metadata[DESCRIPTION_KEY.encode()])
    assert "mu and logvar" in latents["rows"]


def test_metadata_warns_that_numpy_bytes_drop_trailing_zeros() -> None:
    dark = np.zeros((1, 64, 64, 3), np.uint8)
    dark[0, 0, 0] = 255
    column = opened(episodes_to_bytes([replace(episode(0, 1), frames=dark)])).read()["frame"]
    assert len(np.array(column.to_pylist(), "S12288")[0]) == 3  # the reason for the warning in the metadata
    read = np.frombuffer(column[0].as_py(), "uint8").reshape(64, 64, 3)
    np.testing.assert_array_equal(read, dark[0])


# ---- damage


def test_changed_shard_is_refused_with_its_file_name(store: Store) -> None:
    data = episodes_to_bytes(EPISODES)
    record = committed(store, data)
    middle = len(data) // 2
    for damaged in (data[:-1], data[:middle], b"", data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]):
        store.write(record.key, damaged)
        with pytest.raises(DamagedDataError) as error:
            list(read_episodes(store, record))
        assert store.locate(record.key) in str(error.value)


def test_missing_shard_is_refused_with_its_file_name(store: Store) -> None:
    record = committed(store, latents_to_bytes(LATENTS))
    store.delete(record.key)
    with pytest.raises(DamagedDataError, match="is missing") as error:
        next(read_latents(store, record))
    assert store.locate(record.key) in str(error.value)


def as_if_committed(record: Record, data: bytes) -> Record:
    """A record of changed bytes, as if they were damaged in memory before the commit."""
    return replace(record, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def test_page_checksums_find_damage_that_the_record_includes(store: Store) -> None:
    """For bytes damaged before their commit, only the checksums inside the file show the damage."""
    data = latents_to_bytes(LATENTS)
    record = committed(store, data)
    column = opened(data).metadata.row_group(2).column(3)
    assert column.path_in_schema.startswith("mu")
    at = column.data_page_offset + column.total_compressed_size - 3  # in the body of the column's last page
    damaged = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    store.write(record.key, damaged)
    with pytest.raises(DamagedDataError, match=r"CRC|checksum") as error:
        list(read_latents(store, as_if_committed(record, damaged)))
    assert store.locate(record.key) in str(error.value)


@pytest.mark.parametrize("damaged", [b"", b"PAR1", b"not Parquet at all, whatever its checksum says"])
def test_file_that_is_not_parquet_is_refused_with_its_name(store: Store, damaged: bytes) -> None:
    record = committed(store, latents_to_bytes(LATENTS))
    store.write(record.key, damaged)
    with pytest.raises(DamagedDataError) as error:
        list(read_latents(store, as_if_committed(record, damaged)))
    assert store.locate(record.key) in str(error.value)


def test_readers_use_the_record_and_not_the_folder_listing(store: Store) -> None:
    record = committed(store, episodes_to_bytes(EPISODES))
    store.write("rollouts/data/shard-00001-0123456789ab.parquet", episodes_to_bytes([episode(99, 3)]))
    store.write("rollouts/data/shard-00000-ffffffffffff.parquet", b"an upload that was never finished")
    records = read_records(store, "rollouts")
    assert list(records.values()) == [record]
    assert [e.id for r in records.values() for e in read_episodes(store, r)] == [30, 31, 32]
