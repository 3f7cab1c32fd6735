"""``bench storage``: speed of shards in a local folder and in a bucket, and the time that stages wait for storage."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from uuid import uuid4

import numpy as np

from pipeline.base import seeding
from pipeline.base.threads import num_threads
from pipeline.bench.measure import BenchResult, Side, compare
from pipeline.bench.table import STORAGE
from pipeline.config.schema import RunConfig
from pipeline.data.artifacts import LATENTS, ROLLOUTS
from pipeline.data.episodes import Episode
from pipeline.data.frames import FRAME_SHAPE
from pipeline.data.rounds import FIRST, shards_of
from pipeline.data.shards import episodes_to_bytes, read_episodes
from pipeline.envs.car_racing import CarRacing
from pipeline.models import weights
from pipeline.rollouts.policies import make_policy
from pipeline.stages.collect import CollectWorker, ShardJob
from pipeline.stages.encode import EncodeJob, EncodeWorker
from pipeline.stages.train_vae import HeldOut, VaeObjective, frame_stream
from pipeline.storage.local import LocalStore
from pipeline.storage.manifest import commit, read_records
from pipeline.storage.run_dir import open_store
from pipeline.storage.store import Store

_STORED_FRAMES = 1000
_RUN = RunConfig.model_validate(
    {
        "collect": {"policy": "brownian", "episodes": 48, "episode_steps": 250, "episodes_per_shard": 4},
        "vae": {"shuffle_frames": 2000},
        "mdnrnn": {"window": 250},
        "rollouts": {"precision": "float32"},  # because int8 refuses an untrained V
    }
)
_TRAINING_STEPS = 30


def bench_storage(seconds: float, bucket: str | None = None) -> BenchResult:
    """Write and read frames: compare raw NumPy files with shards, which are compressed, checksummed and sealed.

    Also measures the share of their time that collecting, encoding and training V wait for storage.

    Args:
        seconds: Seconds to measure each side, all turns together.
        bucket: ``s3://bucket/prefix`` in which the same shards are measured also; None for none. What is written there
            is deleted again.
    """
    frames = _recorded_frames()
    flags = np.zeros(_STORED_FRAMES, np.bool_)
    actions, rewards = np.zeros((_STORED_FRAMES, 3), np.float32), np.zeros(_STORED_FRAMES, np.float32)
    episode = Episode(0, 0, frames, actions, rewards, flags, flags, final_frame=frames[-1])
    with tempfile.TemporaryDirectory() as folder, ExitStack() as opened:
        stores: dict[str, Store] = {"shards, local": LocalStore(Path(folder, "run"))}
        if bucket is not None:
            stores[f"shards, {bucket}"] = opened.enter_context(emptied(f"{bucket}/bench-{uuid4().hex}"))
        raw = Path(folder, "raw.npy")

        def plain() -> int:
            np.save(raw, frames)
            return len(np.load(raw))

        size_bytes = len(episodes_to_bytes([episode]))
        sides = [Side(what, _write_and_read(store, episode)) for what, store in stores.items()]
        with num_threads(1):
            result = compare(
                STORAGE,
                "frames/s written and read",
                Side("numpy files", plain),
                sides[0],
                seconds=seconds,
                threads=1,
                others=sides[1:],
            )
        waits = {what: _waits(store) for what, store in stores.items()}
    bytes_per_frame = size_bytes / _STORED_FRAMES
    rates = {result.ours_what: result.ours, **result.others}
    megabytes = {what: rate * bytes_per_frame / 1e6 for what, rate in rates.items()}
    labels = {what: f"{what} ({megabytes[what]:.0f} MB/s)" for what in rates}
    return replace(
        result,
        ours_what=labels[result.ours_what],
        others={labels[what]: rate for what, rate in result.others.items()},
        more={"bytes_per_frame": bytes_per_frame, "megabytes_per_s": megabytes, "waits_for_storage": waits},
        notes=[
            f"share of each stage's time spent waiting for storage, {what}: "
            + ", ".join(f"{stage} {share:.1%}" for stage, share in shares.items())
            for what, shares in waits.items()
        ],
    )


@contextmanager
def emptied(location: str) -> Iterator[Store]:
    """Open a store, and delete all that is in it at the end."""
    store = open_store(location)
    try:
        yield store
    finally:
        for key in store.list():
            store.delete(key)


def _recorded_frames() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    env = CarRacing(_RUN.env)
    policy = make_policy(_RUN.collect, _RUN.agent, env, seeding.generator(0, "bench"))
    frames = np.empty((_STORED_FRAMES, *FRAME_SHAPE), np.uint8)
    frame = env.reset(0)
    for row in frames:
        row[...] = frame
        frame = env.step(policy.act(frame)).frame
    return frames


def _write_and_read(store: Store, episode: Episode) -> Callable[[], int]:
    names = count()

    def work() -> int:
        name = f"shard-{next(names)}"
        record = commit(
            store, "bench", name, episodes_to_bytes([episode]), rows=len(episode), episodes=[[0, len(episode)]]
        )
        read = sum(len(part) for part in read_episodes(store, record))
        store.delete(record.key)
        return read

    return work


def _waits(store: Store) -> dict[str, float]:
    """Measure the share of their time that stages wait for a store, on the shards of one run."""
    shares = {}
    with num_threads(1):
        collect = CollectWorker(_RUN, store)
        began = time.perf_counter()
        list(collect.run([ShardJob(shard) for shard in shards_of(_RUN, FIRST)]))
        shares["collect"] = collect.waiting.seconds / (time.perf_counter() - began)

        records = read_records(store, ROLLOUTS)
        encode = EncodeWorker(
            _RUN.agent, _RUN.encode.batch_size, store, LATENTS, weights.to_bytes(weights.new_vae(_RUN.agent))
        )
        began = time.perf_counter()
        list(encode.run([EncodeJob(name, record) for name, record in records.items()]))
        shares["encode"] = encode.waiting.seconds / (time.perf_counter() - began)
    with num_threads(_RUN.vae.threads):
        stream = frame_stream(_RUN.agent, store, records, held_out=())
        objective = VaeObjective(_RUN.agent, HeldOut(store, {}, [], 1))
        began = time.perf_counter()
        for step, batch in zip(range(_TRAINING_STEPS), stream.batches(0), strict=False):
            objective.losses(batch, step)["loss"].backward()
            objective.optimizer.step()
        shares["train-vae"] = stream.waiting.seconds / (time.perf_counter() - began)
    return shares
