"""The typed, strict schema of a run.

Every key is of one of three kinds:

- *identity* (the default): it changes results. Part of what makes a run the same run; a change on an existing run is
  refused with a diff.
- *growable*: it says how far to go. On an existing run it may only grow; ``null`` means without limit.
- *runtime*: where and how fast it runs. Free to change.

Defaults are the paper's (arXiv 1803.10122 and its published code) wherever the paper has a value.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Kind = Literal["identity", "growable", "runtime"]


def growable(default: Any, **constraints: Any) -> Any:
    """A field that may only grow on an existing run."""
    return Field(default, json_schema_extra={"kind": "growable"}, **constraints)


def runtime(default: Any, **constraints: Any) -> Any:
    """A field that no result depends on."""
    return Field(default, json_schema_extra={"kind": "runtime"}, **constraints)


class Section(BaseModel):
    """Base of every section: unknown keys and loose types are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class EnvConfig(Section):
    """The environment, the same in every stage."""

    id: str = Field("CarRacing-v3", description="an environment of pipeline/envs/registry.py, or module:Class")
    view: Literal["playfield", "full"] = Field(
        "playfield", description="playfield: the frame without the status bar (the paper); full: the whole frame"
    )
    rendering: Literal["texture", "gymnasium"] = Field(
        "texture", description="how frames are drawn: from a texture of the track, or by Gymnasium, 50 times slower"
    )
    max_episode_steps: int = Field(1000, ge=2, description="steps after which an episode is truncated")
    action_repeat: int = Field(
        1,
        ge=1,
        description="steps that an action is held for; the agent sees the last one's frame. Lengths of episodes are in "
        "steps of the environment all the same, but mdnrnn.window is in actions",
    )
    domain_randomize: bool = Field(False, description="random colours of road, background and grass, per track")

    def actions_in(self, steps: int) -> int:
        """How often the agent acts in so many steps of the environment."""
        return -(-steps // self.action_repeat)


class SeedRange(Section):
    """Track seeds ``start <= seed < stop``."""

    start: int = Field(ge=0)
    stop: int = Field(ge=1, le=2**31)

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if self.stop <= self.start:
            raise ValueError(f"empty seed range: start {self.start} must be below stop {self.stop}")
        return self

    @property
    def size(self) -> int:
        return self.stop - self.start


_TRACKS = {
    "training": {"start": 1_000_000, "stop": 2_000_000_000},
    "validation": {"start": 100_000, "stop": 200_000},
    "test": {"start": 0, "stop": 100_000},
}


class TracksConfig(Section):
    """Three disjoint ranges of track seeds: fitness, choosing a controller, the reported score."""

    training: SeedRange = SeedRange(**_TRACKS["training"])
    validation: SeedRange = SeedRange(**_TRACKS["validation"])
    test: SeedRange = SeedRange(**_TRACKS["test"])

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: Any) -> Any:
        """One end of a range may be given alone: the other stays at its default."""
        if not isinstance(values, dict):
            return values
        return {k: {**_TRACKS[k], **v} if k in _TRACKS and isinstance(v, dict) else v for k, v in values.items()}

    @model_validator(mode="after")
    def _disjoint(self) -> Self:
        ranges = [("training", self.training), ("validation", self.validation), ("test", self.test)]
        for i, (name_a, a) in enumerate(ranges):
            for name_b, b in ranges[i + 1 :]:
                if a.start < b.stop and b.start < a.stop:
                    raise ValueError(
                        f"{name_a} tracks [{a.start}, {a.stop}) overlap {name_b} tracks [{b.start}, {b.stop}): "
                        "a score on tracks that were trained on means nothing, so the three ranges must be disjoint"
                    )
        return self


class CollectConfig(Section):
    """Stage 1: episodes of a random policy, written to shards."""

    policy: Literal["brownian", "white", "random-controller"] = Field(
        "random-controller",
        description="brownian: a random walk of the action, dt 1/50; white: independent actions; "
        "random-controller: random V, M and C weights each episode, the paper's",
    )
    episodes: int = Field(10_000, ge=2)
    episode_steps: int = Field(1000, ge=2, description="an episode is cut after so many steps")
    exploring_starts: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the episodes that begin anywhere on the road, at a random offset, heading and speed",
    )
    episodes_per_shard: int = Field(10, ge=1)


class VaeConfig(Section):
    """Stage 2: the VAE (V). Paper section A.2; learning rate, batch and tolerance from its code."""

    z_size: int = Field(32, ge=1)
    learning_rate: float = Field(1e-4, gt=0)
    batch_size: int = Field(100, ge=1)
    epochs: int = Field(10, ge=1)
    kl_tolerance: float = Field(0.5, ge=0, description="free bits: nats per latent dimension below which KL is free")
    validation_fraction: float = Field(0.05, gt=0, lt=0.9, description="share of the episodes held out")
    max_validation_frames: int = Field(10_000, ge=1)
    shuffle_frames: int = Field(50_000, ge=1, description="frames in memory at a time, shuffled among themselves")
    patience: int | None = Field(None, ge=1, description="epochs without a better held-out loss before stopping early")
    precision: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bfloat16 where it is native")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(2, ge=1, description="CPU threads; an identity key, because their number changes bits")
    log_every_steps: int = runtime(20, ge=1)
    checkpoint_every_s: float = runtime(60.0, gt=0)


class EncodeConfig(Section):
    """Stage 3: frames to latents."""

    batch_size: int = Field(64, ge=1, description="an identity key: a row's bits depend on the batch size")


class MdnRnnConfig(Section):
    """Stage 4: the MDN-RNN (M). Paper section A.3."""

    init: Literal["trained", "random"] = Field(
        "trained", description="random: left as initialised, the published ablation"
    )
    hidden_size: int = Field(256, ge=1)
    mixtures: int = Field(5, ge=1)
    mixture: Literal["factored", "joint"] = Field(
        "factored", description="factored: a mixture per latent dimension (the paper); joint: one over the whole z"
    )
    log_sigma_min: float = Field(-7.0, description="lower bound of log sigma, so that the likelihood is bounded")
    log_sigma_max: float = Field(7.0)
    window: int = Field(999, ge=2, description="steps in a training window")
    learning_rate: float = Field(1e-3, gt=0)
    batch_size: int = Field(100, ge=1)
    epochs: int = Field(20, ge=1)
    gradient_clip: float = Field(1.0, gt=0, description="each gradient element is clipped to +- this (the paper)")
    reward_weight: float = Field(0.0, ge=0, description="0: no reward head")
    done_weight: float = Field(0.0, ge=0, description="0: no done head; the paper's Doom model weighs it 10")
    validation_fraction: float = Field(0.05, gt=0, lt=0.9)
    shuffle_frames: int = Field(200_000, ge=1, description="latents in memory at a time, shuffled in windows")
    patience: int | None = Field(None, ge=1)
    precision: Literal["auto", "float32", "bfloat16"] = Field("auto", description="of the LSTM; the heads are float32")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(2, ge=1)
    log_every_steps: int = runtime(20, ge=1)
    checkpoint_every_s: float = runtime(60.0, gt=0)

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Self:
        if self.log_sigma_min >= self.log_sigma_max:
            raise ValueError(f"log_sigma_min {self.log_sigma_min} must be below log_sigma_max {self.log_sigma_max}")
        return self


class ControllerConfig(Section):
    """The controller (C). Paper section A.4: tanh(W [z, h] + b)."""

    features: Literal["z", "zh", "zch"] = "zh"
    hidden_size: int = Field(0, ge=0, description="0: linear; otherwise one tanh layer of so many units")
    bias: bool = True
    z: Literal["sample", "mu"] = Field("sample", description="what the controller sees of the encoding")


class RolloutsConfig(Section):
    """How a worker drives: several environments in lockstep, the networks in micro-batches of one fixed size."""

    micro_batch: int = Field(4, ge=1, le=256, description="an identity key: a row's bits depend on the batch size")
    engine: Literal["openvino", "torch"] = Field("openvino", description="what computes the networks while driving")
    precision: Literal["auto", "float32", "bfloat16", "int8"] = Field(
        "auto", description="of V's encoder while driving and encoding; auto: the fastest that is native"
    )
    lanes: int = runtime(8, ge=1, description="environments that one worker steps in lockstep")


class EpisodesFrom(Section):
    """Another number of episodes per candidate from a generation on."""

    generation: int = Field(ge=2)
    episodes: int = Field(ge=1)


class SigmaFrom(Section):
    """Another step size from a generation on; CMA-ES goes on from it."""

    generation: int = Field(ge=2)
    sigma: float = Field(ge=1e-12, le=1e6)


class EvolveConfig(Section):
    """Stage 5: CMA-ES over controllers."""

    population_size: int = Field(64, ge=3, description="of two, CMA-ES cannot learn")
    episodes: int = Field(16, ge=1, description="episodes per candidate; fitness is their mean return")
    episodes_from: list[EpisodesFrom] = Field(
        [], description="episodes per candidate later on: more, once candidates differ by rare failures"
    )
    sigma: float = Field(0.1, ge=1e-12, le=1e6, description="beyond, all candidates act alike")
    sigma_from: list[SigmaFrom] = Field(
        [],
        description="set later on: with many parameters CMA-ES is slow to see that its steps are too long",
    )
    generations: int = growable(1800, ge=1)
    target_return: float | None = growable(None, description="stop once a validation mean reaches it")
    episode_steps: int | None = Field(None, ge=2, description="cut training episodes after so many steps")
    stall_steps: int | None = Field(None, ge=1, description="cut training episodes after so many steps without reward")
    common_tracks: bool = Field(True, description="all candidates of a generation drive the same tracks")
    replayed_tracks: int = Field(
        0, ge=0, description="of a candidate's episodes, so many on tracks met before, the hardest the likeliest"
    )
    replay_window: int = Field(16, ge=1, description="tracks of so many last generations can be met again")
    average_means: int = Field(
        1, ge=1, description="what is validated is the average of so many last CMA means: less noise than one mean"
    )
    validate_every: int = Field(25, ge=1)
    validation_episodes: int = Field(100, ge=1)
    max_seconds: float | None = runtime(None, gt=0, description="ends the session, not the run")
    keep_checkpoints: int = runtime(3, ge=2)

    @field_validator("episodes_from", "sigma_from")
    @classmethod
    def _each_generation_once(cls, changes: list[Any]) -> list[Any]:
        generations = [change.generation for change in changes]
        if twice := sorted({each for each in generations if generations.count(each) > 1}):
            raise ValueError(f"generation {twice[0]} is given twice, and only one of them can hold")
        return changes

    def episodes_at(self, generation: int) -> int:
        """Episodes per candidate in a generation, the first being 1."""
        begun = [change for change in self.episodes_from if change.generation <= generation]
        return max(begun, key=lambda change: change.generation).episodes if begun else self.episodes

    def sigma_at(self, generation: int) -> float | None:
        """The step size that is set before a generation, the first being 1; None where it stays CMA-ES's own."""
        return next((change.sigma for change in self.sigma_from if change.generation == generation), None)

    def episodes_until(self, generation: int) -> int:
        """Episodes per candidate in all generations up to this one."""
        return sum(self.episodes_at(g) for g in range(1, generation + 1))


class EvaluateConfig(Section):
    """Stage 6: test tracks, never selected on, with Gymnasium's own rendering."""

    episodes: int = growable(100, ge=1)
    controllers: Literal["both", "best", "mean"] = Field(
        "both", description="best: the one that validated best; mean: the last generation's"
    )
    rendering: Literal["texture", "gymnasium"] = Field("gymnasium", description="as env.rendering, for these drives")
    film_seconds: float = Field(20.0, gt=0, description="length of the drive shown, at most")


class ExecutionConfig(Section):
    """Where it runs. No result depends on it."""

    executor: Literal["ray", "in-process"] = runtime("ray")
    ray_address: str | None = runtime(None, description="null: a local Ray of its own, or the cluster of RAY_ADDRESS")
    workers: int | None = runtime(
        None, ge=1, description="null: one per core of this machine; on a cluster, as many as there is work for"
    )
    workers_on: list[Literal["head", "gpu-nodes"]] = runtime(
        [], description="nodes that workers may use besides the others; the head is used where it is all there is"
    )
    max_attempts: int = runtime(3, ge=1, description="times a job is tried: it may raise, its worker may die or hang")
    timeout_s: float = runtime(
        900.0,
        gt=0,
        description="a worker that gives no sign of life for so long is given up, and its work is done elsewhere",
    )
    niceness: int = runtime(0, ge=0, le=19, description="of a local Ray's workers; a cluster's: RAY_worker_niceness")
    exact: bool = runtime(True, description="refuse to mix kinds of CPU within a run; false: accept and record it")


class StorageConfig(Section):
    """The run directory. No result depends on it; credentials and endpoints come from the environment alone."""

    heartbeat_s: float = runtime(5.0, gt=0, description="a driver gives a sign of life so often")
    lease_expiry_s: float = runtime(60.0, gt=0, description="a silent driver is succeeded after so long")

    @model_validator(mode="after")
    def _expiry_beyond_heartbeats(self) -> Self:
        if self.lease_expiry_s < 3 * self.heartbeat_s:
            raise ValueError(
                f"lease_expiry_s {self.lease_expiry_s:g} must be at least three times heartbeat_s "
                f"{self.heartbeat_s:g}: a single late heartbeat must not cost a driver its run"
            )
        return self


class RunConfig(Section):
    """A whole run."""

    name: str = runtime("run", pattern=r"^[^/.][^/]*$", description="by default that of the YAML file")
    seed: int = Field(1, ge=0, lt=2**63)
    env: EnvConfig = EnvConfig()
    tracks: TracksConfig = TracksConfig()
    collect: CollectConfig = CollectConfig()
    vae: VaeConfig = VaeConfig()
    encode: EncodeConfig = EncodeConfig()
    mdnrnn: MdnRnnConfig = MdnRnnConfig()
    controller: ControllerConfig = ControllerConfig()
    rollouts: RolloutsConfig = RolloutsConfig()
    evolve: EvolveConfig = EvolveConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    execution: ExecutionConfig = ExecutionConfig()
    storage: StorageConfig = StorageConfig()

    @model_validator(mode="after")
    def _possible(self) -> Self:
        longest = self.env.actions_in(self.collect.episode_steps)
        if self.collect.episode_steps > self.env.max_episode_steps:
            raise ValueError(
                f"collect.episode_steps {self.collect.episode_steps} is above env.max_episode_steps "
                f"{self.env.max_episode_steps}: no episode is that long"
            )
        if self.mdnrnn.window > longest:
            raise ValueError(
                f"mdnrnn.window {self.mdnrnn.window} is longer than any episode (collect.episode_steps "
                f"{self.collect.episode_steps}, env.action_repeat {self.env.action_repeat}): "
                f"choose a window of at most {longest}"
            )
        if self.evolve.episode_steps is not None and self.evolve.episode_steps > self.env.max_episode_steps:
            raise ValueError(
                f"evolve.episode_steps {self.evolve.episode_steps} is above env.max_episode_steps "
                f"{self.env.max_episode_steps}: no episode is that long"
            )
        fewest = min([self.evolve.episodes, *(change.episodes for change in self.evolve.episodes_from)])
        if self.evolve.replayed_tracks >= fewest:
            raise ValueError(
                f"evolve.replayed_tracks {self.evolve.replayed_tracks} of {fewest} episodes per candidate leave no "
                "new track: choose fewer, or more episodes"
            )
        if self.evolve.replayed_tracks and not self.evolve.common_tracks:
            raise ValueError(
                "evolve.replayed_tracks needs evolve.common_tracks: a track's difficulty is how the whole population "
                "did on it"
            )
        for stage, episodes, tracks, key in (
            ("evaluate.episodes", self.evaluate.episodes, self.tracks.test, "tracks.test"),
            (
                "evolve.validation_episodes",
                self.evolve.validation_episodes,
                self.tracks.validation,
                "tracks.validation",
            ),
            ("collect.episodes", self.collect.episodes, self.tracks.training, "tracks.training"),
        ):
            if episodes > tracks.size:
                raise ValueError(f"{stage} {episodes} is more than {key} holds ({tracks.size} tracks)")
        held_out = round(self.collect.episodes * self.vae.validation_fraction)
        if not 0 < held_out < self.collect.episodes:
            raise ValueError(
                f"vae.validation_fraction {self.vae.validation_fraction} of collect.episodes {self.collect.episodes} "
                f"holds out {held_out} episodes: at least one must be held out and one be left to train on"
            )
        held_out = round(self.collect.episodes * self.mdnrnn.validation_fraction)
        if not 0 < held_out < self.collect.episodes:
            raise ValueError(
                f"mdnrnn.validation_fraction {self.mdnrnn.validation_fraction} of collect.episodes "
                f"{self.collect.episodes} holds out {held_out} episodes: at least one must be held out and one be left"
            )
        return self
