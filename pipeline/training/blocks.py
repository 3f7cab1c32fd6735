"""Shuffled streaming of a data set that does not fit in memory.

An epoch shuffles the shards, cuts that order into *blocks* of about ``block_items`` items, and shuffles the items
within each block. One block is in memory while the next is read. Everything is a function of (seed, epoch, block), so
a checkpoint only needs the step number, and resuming in the middle of an epoch reads a single block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.base.seeding import derive, generator
from pipeline.data.shards import episode_steps
from pipeline.data.streaming import StorageWait, background_threads
from pipeline.storage.manifest import Record

Batch = TypeVar("Batch", covariant=True)


class LoadedBlock(Protocol[Batch]):
    """A block in memory."""

    def arrange(self, order: NDArray[np.int64], batch_size: int) -> NDArray[np.int64]:
        """Arrange items so that the items of a batch fit together.

        Args:
            order: Items in random order, a whole number of batches, (N,) int64.
            batch_size: Items per batch.

        Returns:
            The same items in another order, (N,) int64.
        """

    def batch(self, items: NDArray[np.int64]) -> Batch:
        """Create the batch of some items.

        Args:
            items: Indices of the items, each below the block's number of items, (B,) int64.
        """


@dataclass(frozen=True)
class Block:
    """Shards whose items are shuffled together.

    Attributes:
        records: Records of the shards.
        num_items: Number of items, without those of left-out episodes.
        num_batches: Number of full batches. The remaining items are dropped; they differ between epochs.
    """

    records: Sequence[Record]
    num_items: int
    num_batches: int


class BlockStream(Generic[Batch]):
    """Endless, shuffled, seekable stream of batches.

    Args:
        records: Records of all shards by name.
        items_of: Function from (episode ID, steps) to the episode's number of items; 0 leaves the episode out.
        load: Function that reads a block, given its records and a seed for choices that differ between epochs.
        batch_size: Items per batch; a block with fewer items is one smaller batch.
        block_items: Approximate number of items in memory at a time. A shard is never split.
        seed: Seed of the run.
        purpose: Name of the stream; part of the seeds that it derives.

    Attributes:
        waiting: Time spent waiting for batches in this session, in seconds.
    """

    def __init__(
        self,
        records: Mapping[str, Record],
        *,
        items_of: Callable[[int, int], int],
        load: Callable[[Sequence[Record], int], LoadedBlock[Batch]],
        batch_size: int,
        block_items: int,
        seed: int,
        purpose: str,
    ) -> None:
        self.waiting = StorageWait()
        self._records = list(records.values())
        self._counts = [
            sum(items_of(episode, steps) for episode, steps in episode_steps(record).items())
            for record in self._records
        ]
        self._load = load
        self._batch_size = batch_size
        self._block_items = block_items
        self._seed = seed
        self._purpose = purpose

    def blocks(self, epoch: int) -> list[Block]:
        """Plan the blocks of an epoch, without reading any data."""
        order = generator(self._seed, f"{self._purpose}/shards", epoch).permutation(len(self._records))
        groups: list[list[int]] = []
        held = 0
        for index in order:
            count = self._counts[index]
            if not count:
                continue
            if not groups or held + count > self._block_items:
                groups.append([])
                held = 0
            groups[-1].append(int(index))
            held += count
        return [self._block(group) for group in groups]

    def _block(self, group: Sequence[int]) -> Block:
        items = sum(self._counts[index] for index in group)
        return Block([self._records[index] for index in group], items, max(1, items // self._batch_size))

    def num_batches(self, epoch: int) -> int:
        """Number of batches in an epoch."""
        return sum(block.num_batches for block in self.blocks(epoch))

    def batches(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, without the first ``skip``; the next block is read while one is used."""
        wanted: list[tuple[int, Block, int]] = []
        for index, block in enumerate(self.blocks(epoch)):
            if skip < block.num_batches:
                wanted.append((index, block, skip))
            skip = max(0, skip - block.num_batches)
        with background_threads(1) as reader:

            def read(position: int):  # type: ignore[no-untyped-def]
                index, block, _ = wanted[position]
                return reader.submit(self._load, block.records, derive(self._seed, self._purpose, epoch, index))

            ahead = read(0) if wanted else None
            for position, (index, block, first) in enumerate(wanted):
                assert ahead is not None
                loaded = self.waiting.result(ahead)
                ahead = read(position + 1) if position + 1 < len(wanted) else None
                order = generator(self._seed, f"{self._purpose}/items", epoch, index).permutation(block.num_items)
                size = min(self._batch_size, block.num_items)
                order = loaded.arrange(order[: block.num_batches * size], size)
                for number in range(first, block.num_batches):
                    yield loaded.batch(order[number * size : (number + 1) * size])
