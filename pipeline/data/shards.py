"""Shards: Parquet files of whole episodes, with one row per step and one row group per episode.

A shard is built in memory and the store moves it as bytes: pyarrow never opens a path or a stream.
"""

from __future__ import annotations

import io
import json
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.data.episodes import Episode, LatentEpisode
from pipeline.data.frames import FRAME_SHAPE, FRAME_SIZE
from pipeline.data.streaming import read_ahead
from pipeline.storage.manifest import Record
from pipeline.storage.parquet import read_row_groups
from pipeline.storage.store import Store

_ROW = (
    "A row is one action of an episode, which is driven on track. An episode's rows are one row group, in the order of "
    "step. reward is what the action earned; terminated and truncated say whether the episode ended with it."
)
_FRAMES = {
    "rows": f"{_ROW} frame is what the agent saw when it chose the action. final_frame is what followed the episode's "
    "last action, and null in all rows but the last.",
    "frame": {"shape": FRAME_SHAPE, "dtype": "uint8", "layout": "row-major RGB"},
    "read": "numpy.frombuffer(frame, 'uint8').reshape(64, 64, 3). Of numpy's own bytes type (S12288), as of Hugging "
    "Face datasets with_format('numpy'), trailing zeros are lost: take the column as Python bytes or as Arrow.",
}
_LATENTS = {
    "rows": f"{_ROW} mu and logvar are V's of the frame that the agent saw when it chose the action, in the same row "
    "of the shard of frames of the same name.",
}
# Key of these descriptions in the metadata of a Parquet file. Their text is part of the bytes of every shard.
DESCRIPTION_KEY = "world_models"


def _vectors(array: NDArray[np.float32]) -> pa.Array:
    """Convert a (T, N) float32 array to a fixed_size_list<float32>[N] column."""
    return pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), array.shape[1])


def _matrix(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """Convert a fixed_size_list<float32>[N] column to a (T, N) array."""
    flat = column.combine_chunks()
    return np.array(flat.flatten()).reshape(len(flat), column.type.list_size)


def _steps(episode: Episode | LatentEpisode) -> dict[str, pa.Array]:
    """Columns that shards of frames and of latents have in common."""
    return {
        "episode_id": pa.array(np.full(len(episode), episode.id, np.int64)),
        "step": pa.array(np.arange(len(episode), dtype=np.int32)),
        "track": pa.array(np.full(len(episode), episode.track, np.int64)),
        "action": _vectors(episode.actions),
        "reward": pa.array(episode.rewards),
        "terminated": pa.array(episode.terminated),
        "truncated": pa.array(episode.truncated),
    }


def _write(tables: Iterable[pa.Table], description: Mapping[str, Any]) -> bytes:
    metadata = {DESCRIPTION_KEY: json.dumps(description)}
    sink = io.BytesIO()
    writer = None
    for table in tables:
        if writer is None:
            writer = pq.ParquetWriter(
                sink,
                table.schema.with_metadata(metadata),
                compression="zstd",
                compression_level=1,
                use_dictionary=False,
                write_page_checksum=True,
                write_statistics=["episode_id", "step", "track"],
            )
        writer.write_table(table, row_group_size=max(1, len(table)))
    assert writer is not None, "a shard holds at least one episode"
    writer.close()
    return sink.getvalue()


def episodes_to_bytes(episodes: Iterable[Episode]) -> bytes:
    """Serialise episodes as one shard."""
    columns = ["episode_id", "step", "track", "frame", "action", "reward", "terminated", "truncated", "final_frame"]
    return _write((pa.table(_steps(e) | _frame_columns(e)).select(columns) for e in episodes), _FRAMES)


def _frame_columns(episode: Episode) -> dict[str, pa.Array]:
    frames = pa.py_buffer(np.ascontiguousarray(episode.frames).reshape(-1))
    return {
        "frame": pa.FixedSizeBinaryArray.from_buffers(pa.binary(FRAME_SIZE), len(episode), [None, frames]),
        "final_frame": pa.array([None] * (len(episode) - 1) + [episode.final_frame.tobytes()], pa.binary()),
    }


def latents_to_bytes(episodes: Iterable[LatentEpisode]) -> bytes:
    """Serialise latents as one shard."""
    columns = ["episode_id", "step", "track", "mu", "logvar", "action", "reward", "terminated", "truncated"]
    return _write(
        (pa.table({**_steps(e), "mu": _vectors(e.mu), "logvar": _vectors(e.logvar)}).select(columns) for e in episodes),
        _LATENTS,
    )


def _column(table: pa.Table, name: str) -> NDArray[np.generic]:
    return np.asarray(table[name].to_numpy())


def _fields(table: pa.Table) -> dict[str, Any]:
    """Fields that frames and latents have in common: the inverse of ``_steps``."""
    return {
        "id": int(_column(table, "episode_id")[0]),
        "track": int(_column(table, "track")[0]),
        "actions": _matrix(table["action"]),
        "rewards": _column(table, "reward").astype(np.float32),
        "terminated": _column(table, "terminated").astype(np.bool_),
        "truncated": _column(table, "truncated").astype(np.bool_),
    }


def _frames(table: pa.Table) -> NDArray[np.uint8]:
    chunk = table["frame"].combine_chunks()
    buffer = chunk.buffers()[1]
    flat = np.frombuffer(buffer, np.uint8, count=len(chunk) * FRAME_SIZE, offset=chunk.offset * FRAME_SIZE)
    return flat.reshape(len(chunk), *FRAME_SHAPE)


def episodes_in(data: bytes, where: str) -> Iterator[Episode]:
    """Episodes of a shard, with one in memory at a time.

    Args:
        data: Bytes of the shard.
        where: Path or URL of the shard, for messages.

    Raises:
        DamagedDataError: The shard is damaged.
    """
    for table in read_row_groups(data, where):
        yield Episode(
            **_fields(table),
            frames=_frames(table),
            final_frame=np.frombuffer(table["final_frame"][-1].as_buffer(), np.uint8).reshape(FRAME_SHAPE),
        )


def read_episodes(store: Store, *records: Record) -> Iterator[Episode]:
    """Episodes of shards; the next shards are read ahead."""
    for record, data in read_ahead(store, records):
        yield from episodes_in(data, store.locate(record.key))


def read_frames(store: Store, records: Iterable[Record], wanted: Container[int]) -> Iterator[NDArray[np.uint8]]:
    """Frames of selected episodes; the next shards are read ahead.

    Shards without a selected episode are not read; of the others only two columns are decoded.

    Args:
        store: Store of the run.
        records: Records of the shards.
        wanted: IDs of the selected episodes.

    Yields:
        Frames of one episode, (T, 64, 64, 3) uint8.
    """
    for record, data in read_ahead(store, records_with_episodes(records, wanted)):
        for table in read_row_groups(data, store.locate(record.key), ["episode_id", "frame"]):
            if int(_column(table, "episode_id")[0]) in wanted:
                yield _frames(table)


def read_latents(store: Store, *records: Record) -> Iterator[LatentEpisode]:
    """Latents of shards; the next shards are read ahead."""
    for record, data in read_ahead(store, records):
        yield from latents_in(data, store.locate(record.key))


def latents_in(data: bytes, where: str) -> Iterator[LatentEpisode]:
    """Latents of a shard, with one episode in memory at a time.

    Args:
        data: Bytes of the shard.
        where: Path or URL of the shard, for messages.

    Raises:
        DamagedDataError: The shard is damaged.
    """
    for table in read_row_groups(data, where):
        yield LatentEpisode(
            **_fields(table),
            mu=_matrix(table["mu"]),
            logvar=_matrix(table["logvar"]),
        )


def records_with_episodes(records: Iterable[Record], wanted: Container[int]) -> Iterator[Record]:
    """Records of the shards that hold a selected episode."""
    return (record for record in records if any(episode in wanted for episode in episode_steps(record)))


def episode_steps(record: Record) -> dict[int, int]:
    """Number of steps of each episode by ID, in the order of the shard, from its record alone."""
    return {int(episode): int(steps) for episode, steps in record.info["episodes"]}
