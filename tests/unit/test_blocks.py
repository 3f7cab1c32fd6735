"""The shuffled stream: nearly every item once per epoch, and the same items after a skip."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.storage.manifest import Record
from pipeline.training.blocks import BlockStream
from pipeline.training.held_out import draw_held_out

Items = NDArray[np.int64]


def make_records(shards: Sequence[Sequence[int]]) -> dict[str, Record]:
    """Shards of episodes with these numbers of steps; episodes are numbered across shards."""
    records, episode = {}, 0
    for index, lengths in enumerate(shards):
        episodes = [[episode + i, steps] for i, steps in enumerate(lengths)]
        episode += len(lengths)
        name = f"shard-{index}"
        records[name] = Record(name, name, 0, "", rows=sum(lengths), info={"episodes": episodes})
    return records


class ItemBlock:
    """A block whose items encode their episode and step."""

    def __init__(self, records: Sequence[Record], left_out: frozenset[int] = frozenset()) -> None:
        self.items = np.array(
            [
                1000 * episode + step
                for record in records
                for episode, steps in record.info["episodes"]
                if episode not in left_out
                for step in range(steps)
            ],
            np.int64,
        )

    def arrange(self, order: NDArray[np.int64], batch_size: int) -> NDArray[np.int64]:
        assert len(order) % batch_size == 0
        return order

    def batch(self, items: NDArray[np.int64]) -> Items:
        return self.items[items]


def make_stream(
    records: Mapping[str, Record], left_out: frozenset[int] = frozenset(), **changes: Any
) -> BlockStream[Items]:
    arguments: dict[str, Any] = {"batch_size": 4, "block_items": 20, "seed": 1, "purpose": "test", **changes}
    return BlockStream(
        records,
        items_of=lambda episode, steps: 0 if episode in left_out else steps,
        load=lambda block, seed: ItemBlock(block, left_out),
        **arguments,
    )


def epoch_of(stream: BlockStream[Items], epoch: int = 0, skip: int = 0) -> list[list[int]]:
    return [batch.tolist() for batch in stream.batches(epoch, skip)]


SHARDS = [[5, 3], [9], [2, 2, 7], [6], [1, 8], [11]]
RECORDS = make_records(SHARDS)
ALL = set(ItemBlock(list(RECORDS.values())).items.tolist())

_DATA = st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=4), min_size=1, max_size=8)


@settings(deadline=None, max_examples=80)
@given(
    shards=_DATA,
    batch_size=st.integers(1, 9),
    block_items=st.integers(1, 60),
    left_out=st.frozensets(st.integers(0, 9)),
)
def test_epoch_has_each_item_once_except_the_remainder_of_each_block(
    shards: list[list[int]], batch_size: int, block_items: int, left_out: frozenset[int]
) -> None:
    records = make_records(shards)
    stream = make_stream(records, left_out, batch_size=batch_size, block_items=block_items)
    wanted = set(ItemBlock(list(records.values()), left_out).items.tolist())
    batches = epoch_of(stream)
    seen = [item for batch in batches for item in batch]
    assert len(seen) == len(set(seen))
    assert set(seen) <= wanted
    assert len(batches) == stream.num_batches(0)

    blocks = stream.blocks(0)
    assert sum(block.num_items for block in blocks) == len(wanted)
    shards_used = [record.name for block in blocks for record in block.records]
    assert len(shards_used) == len(set(shards_used)), "a shard is in one block"
    dropped = 0
    for block in blocks:
        largest = max(ItemBlock([record], left_out).items.size for record in block.records)
        assert block.num_items <= max(block_items, largest), (
            "a block is no larger than requested, unless it is a single shard"
        )
        assert len(block.records) == 1 or block.num_items <= block_items
        if block.num_items >= batch_size:
            dropped += block.num_items % batch_size
    assert len(seen) == len(wanted) - dropped
    assert all(0 < len(batch) <= batch_size for batch in batches)
    assert all(ItemBlock([record], left_out).items.size for block in blocks for record in block.records)


@settings(deadline=None, max_examples=60)
@given(shards=_DATA, batch_size=st.integers(1, 9), block_items=st.integers(1, 60), data=st.data())
def test_skipping_gives_the_same_items_as_reading_from_the_start(
    shards: list[list[int]], batch_size: int, block_items: int, data: st.DataObject
) -> None:
    stream = make_stream(make_records(shards), batch_size=batch_size, block_items=block_items)
    whole = epoch_of(stream, epoch=3)
    skip = data.draw(st.integers(0, len(whole)))
    assert epoch_of(stream, 3, skip) == whole[skip:]


def test_skipping_does_not_read_skipped_blocks() -> None:
    loads: list[list[str]] = []

    def load(records: Sequence[Record], seed: int) -> ItemBlock:
        loads.append([record.name for record in records])
        return ItemBlock(records)

    stream = BlockStream(
        RECORDS, items_of=lambda _, steps: steps, load=load, batch_size=4, block_items=20, seed=1, purpose="test"
    )
    blocks = stream.blocks(0)
    assert len(blocks) > 2
    list(stream.batches(0, skip=blocks[0].num_batches + 1))
    assert loads == [[record.name for record in block.records] for block in blocks[1:]]


def test_epochs_seeds_and_purposes_shuffle_differently() -> None:
    orders = [
        epoch_of(make_stream(RECORDS), 0),
        epoch_of(make_stream(RECORDS), 1),
        epoch_of(make_stream(RECORDS, seed=2), 0),
        epoch_of(make_stream(RECORDS, purpose="other"), 0),
    ]
    flat = [tuple(item for batch in order for item in batch) for order in orders]
    assert len(set(flat)) == 4
    blocks = {tuple(tuple(r.name for r in b.records) for b in make_stream(RECORDS).blocks(e)) for e in range(8)}
    assert len(blocks) > 4, "the blocks combine other shards in each epoch"


def test_items_of_a_block_are_shuffled_again_each_epoch() -> None:
    stream = make_stream(make_records([[40]]))
    assert epoch_of(stream, 0) != epoch_of(stream, 1)


def test_items_are_shuffled_within_a_block_and_batches_mix_its_shards() -> None:
    (batch, *_) = epoch_of(make_stream(make_records([[50], [50]]), batch_size=20, block_items=100))
    assert batch != sorted(batch)
    assert {item // 1000 for item in batch} == {0, 1}


def test_items_dropped_with_a_remainder_appear_in_other_epochs() -> None:
    stream = make_stream(RECORDS)
    first = {item for batch in epoch_of(stream, 0) for item in batch}
    assert first < ALL
    seen = {item for epoch in range(20) for batch in epoch_of(stream, epoch) for item in batch}
    assert seen == ALL


def test_block_smaller_than_a_batch_gives_one_smaller_batch() -> None:
    assert [len(batch) for batch in epoch_of(make_stream(make_records([[3]]), batch_size=10))] == [3]


def test_load_seed_depends_on_epoch_and_block_but_not_on_the_pass() -> None:
    seeds: list[int] = []

    def load(records: Sequence[Record], seed: int) -> ItemBlock:
        seeds.append(seed)
        return ItemBlock(records)

    stream = BlockStream(
        RECORDS, items_of=lambda _, steps: steps, load=load, batch_size=4, block_items=12, seed=1, purpose="test"
    )
    for epoch in (0, 1, 0):
        list(stream.batches(epoch))
    count = len(stream.blocks(0))
    assert seeds[:count] == seeds[-count:]
    assert len(set(seeds)) == len(seeds) - count


def test_stream_is_the_same_in_another_process() -> None:
    code = (
        "from tests.unit.test_blocks import *\n"
        "print(hashlib.sha256(repr([epoch_of(make_stream(RECORDS), e) for e in range(3)]).encode()).hexdigest())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        env={"PYTHONHASHSEED": "5"},
        capture_output=True,
        text=True,
        check=True,
    )
    here = repr([epoch_of(make_stream(RECORDS), e) for e in range(3)])
    assert done.stdout.strip() == hashlib.sha256(here.encode()).hexdigest()


def test_exactly_one_block_is_read_ahead() -> None:
    loaded = threading.Semaphore(0)
    loads: list[int] = []

    def load(records: Sequence[Record], seed: int) -> ItemBlock:
        loads.append(len(loads))
        loaded.release()
        return ItemBlock(records)

    stream = BlockStream(
        RECORDS, items_of=lambda _, steps: steps, load=load, batch_size=1, block_items=1, seed=1, purpose="test"
    )
    sizes = [block.num_batches for block in stream.blocks(0)]
    assert len(sizes) == 6
    batches = stream.batches(0)
    for index, size in enumerate(sizes):
        for _ in range(size):
            next(batches)
        # While the block at ``index`` is used, only the next one is read.
        while len(loads) < min(index + 2, len(sizes)):
            assert loaded.acquire(timeout=60)
        assert len(loads) == min(index + 2, len(sizes))
    assert next(batches, None) is None


def test_read_error_reaches_the_reader() -> None:
    def load(records: Sequence[Record], seed: int) -> ItemBlock:
        raise OSError("the disk is gone")

    stream = BlockStream(
        RECORDS, items_of=lambda _, steps: steps, load=load, batch_size=4, block_items=20, seed=1, purpose="test"
    )
    with pytest.raises(OSError, match="the disk is gone"):
        next(stream.batches(0))


# ---- held-out episodes


@given(
    episodes=st.lists(st.integers(0, 10**6), min_size=2, max_size=60, unique=True),
    fraction=st.floats(0.01, 0.9),
    data=st.data(),
)
def test_held_out_draw_is_distinct_and_independent_of_the_order(
    episodes: list[int], fraction: float, data: st.DataObject
) -> None:
    held_out = draw_held_out(episodes, fraction, 1, "purpose")
    assert len(set(held_out)) == len(held_out) == round(len(episodes) * fraction)
    assert set(held_out) <= set(episodes)
    assert draw_held_out(data.draw(st.permutations(episodes)), fraction, 1, "purpose") == held_out


def test_held_out_draw_differs_by_seed_and_purpose() -> None:
    drawn = [draw_held_out(range(100), 0.1, *stream) for stream in ((1, "a"), (2, "a"), (1, "b"))]
    assert len({tuple(d) for d in drawn}) == 3
