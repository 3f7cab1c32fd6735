"""Typed, strict schema of a run.

Every key is of one of three kinds:

- *identity* (the default): the key changes results. A change on an existing run is refused with a diff.
- *growable*: the key is a limit. On an existing run it may only grow; ``null`` means no limit.
- *runtime*: the key decides where and how fast a run executes. It may change at any time.

Defaults are the paper's (arXiv 1803.10122 and its published code) wherever the paper has a value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pipeline.config.consistency import check_consistency

Kind = Literal["identity", "growable", "runtime"]


def growable(default: Any, **constraints: Any) -> Any:
    """Define a field that may only grow on an existing run."""
    return Field(default, json_schema_extra={"kind": "growable"}, **constraints)


def runtime(default: Any, **constraints: Any) -> Any:
    """Define a field that no result depends on."""
    return Field(default, json_schema_extra={"kind": "runtime"}, **constraints)


class Section(BaseModel):
    """Base of every section: unknown keys and loose types are errors, values are immutable."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class EnvConfig(Section):
    """The environment, the same in every stage."""

    id: str = Field("CarRacing-v3", description="an id of Gymnasium, module:Id, or module:Class (docs/environments.md)")
    options: dict[str, Any] = Field({}, description="arguments of gymnasium.make")
    frame_key: str | None = Field(
        None, description="entry of a Dict observation that is the frame; null: the only image, or else render()"
    )
    crop: list[int] | None = Field(
        None,
        min_length=4,
        max_length=4,
        description="part of the image that frames show: first row, row after the last, first column, column after "
        "the last",
    )
    fresh: bool = Field(False, description="a new instance for each episode, where a used one gives other frames")
    view: Literal["playfield", "full"] = Field(
        "playfield",
        description="CarRacing only. playfield: the frame without the status bar (the paper); full: the whole frame",
    )
    rendering: Literal["texture", "gymnasium"] = Field(
        "texture",
        description="CarRacing only. How frames are drawn: from a texture of the track, or by Gymnasium, 50 times "
        "slower",
    )
    max_episode_steps: int = Field(1000, ge=2, description="steps after which an episode is truncated")
    action_repeat: int = Field(
        1,
        ge=1,
        description="steps that each action is held for; the agent sees the frame of the last one. Episode lengths "
        "still count environment steps, but mdnrnn.window counts actions",
    )
    domain_randomize: bool = Field(
        False, description="CarRacing only. Random colours of road, background and grass, per track"
    )

    @field_validator("crop")
    @classmethod
    def _ordered(cls, crop: list[int] | None) -> list[int] | None:
        if crop is not None and not (0 <= crop[0] < crop[1] and 0 <= crop[2] < crop[3]):
            raise ValueError(f"{crop} is no part of an image: expected [top, bottom, left, right], each pair in order")
        return crop

    def actions_in(self, steps: int) -> int:
        """Number of agent actions in a number of environment steps."""
        return -(-steps // self.action_repeat)


class SeedRange(Section):
    """Track seeds ``start <= seed < stop``."""

    start: int = Field(ge=0, description="first seed")
    stop: int = Field(ge=1, le=2**31, description="seed after the last one")

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if self.stop <= self.start:
            raise ValueError(f"empty seed range: start {self.start} must be below stop {self.stop}")
        return self

    @property
    def size(self) -> int:
        """Number of seeds."""
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
        """Fill in the default of the other end if only one end of a range is given."""
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

    policy: Literal["brownian", "white", "repeat", "random-controller"] = Field(
        "random-controller",
        description="brownian: a random walk of the action, dt 1/50; white: independent uniform actions; repeat: a "
        "uniform action, held for 1 to collect.max_repeats actions, the paper's for TakeCover; random-controller: "
        "random V, M and C weights each episode, the paper's for CarRacing",
    )
    max_repeats: int = Field(10, ge=1, description="largest number of actions that policy repeat holds an action for")
    episodes: int = Field(10_000, ge=2, description="episodes to collect")
    episode_steps: int = Field(1000, ge=2, description="maximum steps of a collected episode")
    exploring_starts: float = Field(
        0.0,
        ge=0,
        le=1,
        description="CarRacing only. Fraction of episodes that begin anywhere on the road, at a random offset, heading "
        "and speed",
    )
    episodes_per_shard: int = Field(10, ge=1, description="episodes in one Parquet file")


class VaeConfig(Section):
    """Stage 2: the VAE (V). Paper section A.2; learning rate, batch and tolerance from its code."""

    z_size: int = Field(32, ge=1, description="latent dimensions")
    learning_rate: float = Field(1e-4, gt=0, description="step size of Adam")
    batch_size: int = Field(100, ge=1, description="frames in a training step")
    epochs: int = Field(10, ge=1, description="passes over the frames, at most")
    kl_tolerance: float = Field(0.5, ge=0, description="free bits: nats per latent dimension below which KL is free")
    validation_fraction: float = Field(0.05, gt=0, lt=0.9, description="fraction of episodes held out")
    max_validation_frames: int = Field(10_000, ge=1, description="maximum held-out frames that are evaluated")
    shuffle_frames: int = Field(50_000, ge=1, description="frames in memory at a time, shuffled among themselves")
    patience: int | None = Field(None, ge=1, description="epochs without a better held-out loss before stopping early")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="auto: bfloat16 on a GPU, or on a CPU where it is faster than float32 (AMX, or AMD with AVX-512)",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU if there is one")
    threads: int = Field(2, ge=1, description="CPU threads; an identity key, because their number changes bits")
    log_every_steps: int = runtime(20, ge=1, description="training steps from one logged loss to the next")
    checkpoint_every_s: float = runtime(60.0, gt=0, description="seconds from one checkpoint to the next")


class EncodeConfig(Section):
    """Stage 3: frames to latents."""

    batch_size: int = Field(64, ge=1, description="frames in a batch; an identity key, because it changes bits")


class MdnRnnConfig(Section):
    """Stage 4: the MDN-RNN (M). Paper section A.3."""

    init: Literal["trained", "random"] = Field(
        "trained", description="random: keep the initial weights (a published ablation)"
    )
    hidden_size: int = Field(256, ge=1, description="units of the LSTM")
    mixtures: int = Field(5, ge=1, description="Gaussians in a mixture")
    mixture: Literal["factored", "joint"] = Field(
        "factored", description="factored: a mixture per latent dimension (the paper); joint: one over the whole z"
    )
    log_sigma_min: float = Field(-7.0, description="lower bound of log sigma, which bounds the likelihood")
    log_sigma_max: float = Field(7.0, description="upper bound of log sigma")
    window: int = Field(999, ge=2, description="steps in a training window")
    learning_rate: float = Field(1e-3, gt=0, description="step size of Adam")
    batch_size: int = Field(100, ge=1, description="windows in a training step")
    epochs: int = Field(20, ge=1, description="passes over the latents, at most")
    gradient_clip: float = Field(1.0, gt=0, description="each gradient element is clipped to +- this (the paper)")
    reward_weight: float = Field(0.0, ge=0, description="weight of the loss of rewards; 0: no reward head")
    done_weight: float = Field(0.0, ge=0, description="weight of the loss of ends; 0: no done head")
    done_positive_weight: float = Field(
        1.0, gt=0, description="weight of a step that ends an episode, in that loss (the paper's Doom model: 10)"
    )
    validation_fraction: float = Field(0.05, gt=0, lt=0.9, description="fraction of episodes held out")
    shuffle_frames: int = Field(200_000, ge=1, description="latents in memory at a time, shuffled in windows")
    patience: int | None = Field(None, ge=1, description="as in vae")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="number format of the LSTM; the heads are float32"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU if there is one")
    threads: int = Field(2, ge=1, description="CPU threads; an identity key, because their number changes bits")
    log_every_steps: int = runtime(20, ge=1, description="training steps from one logged loss to the next")
    checkpoint_every_s: float = runtime(60.0, gt=0, description="seconds from one checkpoint to the next")

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Self:
        if self.log_sigma_min >= self.log_sigma_max:
            raise ValueError(f"log_sigma_min {self.log_sigma_min} must be below log_sigma_max {self.log_sigma_max}")
        return self


class ControllerConfig(Section):
    """The controller (C). Paper section A.4: tanh(W [z, h] + b)."""

    features: Literal["z", "zh", "zch"] = Field("zh", description="inputs: z of V, h and c of M")
    hidden_size: int = Field(0, ge=0, description="units of a hidden tanh layer; 0: linear (the paper)")
    bias: bool = Field(True, description="whether layers have biases")
    z: Literal["sample", "mu"] = Field(
        "sample", description="latent that the controller sees: a sample, or the mean mu"
    )


class RolloutsConfig(Section):
    """Rollouts in a worker: several environments in lockstep, networks in micro-batches of one fixed size."""

    micro_batch: int = Field(4, ge=1, le=256, description="rows in a forward pass; an identity key: it changes bits")
    engine: Literal["openvino", "torch"] = Field(
        "openvino", description="format of V's encoder in rollouts and encoding; auto: int8 with VNNI, else as in vae"
    )
    precision: Literal["auto", "float32", "bfloat16", "int8"] = Field(
        "auto",
        description="number format of V's encoder in rollouts and encoding; auto: int8 with VNNI, else as in vae",
    )
    lanes: int = runtime(8, ge=1, description="environments that one worker steps in lockstep")


class EpisodesFrom(Section):
    """Another number of episodes per candidate from a generation on."""

    generation: int = Field(ge=2)
    episodes: int = Field(ge=1)


class SigmaFrom(Section):
    """Another step size from a generation on; CMA-ES continues from it."""

    generation: int = Field(ge=2)
    sigma: float = Field(ge=1e-12, le=1e6)


class EvolveConfig(Section):
    """Stage 5: CMA-ES over controllers."""

    population_size: int = Field(64, ge=3, description="candidates in a generation; CMA-ES needs three")
    episodes: int = Field(16, ge=1, description="episodes per candidate; fitness is their mean return")
    episodes_from: list[EpisodesFrom] = Field(
        [], description="episodes per candidate from later generations on: {generation, episodes}"
    )
    sigma: float = Field(0.1, ge=1e-12, le=1e6, description="initial step size of CMA-ES")
    sigma_from: list[SigmaFrom] = Field(
        [],
        description="step size set before later generations: {generation, sigma}; CMA-ES adapts it slowly",
    )
    generations: int = growable(1800, ge=1, description="generations to evolve")
    target_return: float | None = growable(None, description="stop once a validation mean reaches it; null: never")
    episode_steps: int | None = Field(None, ge=2, description="maximum steps of a training episode; null: whole ones")
    stall_steps: int | None = Field(None, ge=1, description="steps without reward that end a training episode")
    common_tracks: bool = Field(True, description="whether all candidates of a generation get the same tracks")
    replayed_tracks: int = Field(
        0, ge=0, description="episodes of a candidate that are on earlier tracks, harder ones more often"
    )
    replay_window: int = Field(16, ge=1, description="generations whose tracks can be replayed")
    average_means: int = Field(
        1, ge=1, description="last CMA means whose average is validated: less noise than one mean"
    )
    validate_every: int = Field(25, ge=1, description="generations from one validation to the next")
    validation_episodes: int = Field(100, ge=1, description="episodes of a validation")
    max_seconds: float | None = runtime(
        None, gt=0, description="seconds after which the session ends (exit code 3); resume later"
    )
    keep_checkpoints: int = runtime(3, ge=2, description="checkpoints to keep")

    @field_validator("episodes_from", "sigma_from")
    @classmethod
    def _each_generation_once(cls, changes: list[Any]) -> list[Any]:
        generations = [change.generation for change in changes]
        if twice := sorted({each for each in generations if generations.count(each) > 1}):
            raise ValueError(f"generation {twice[0]} is given twice")
        return changes

    def episodes_at(self, generation: int) -> int:
        """Episodes per candidate in a generation, the first being 1."""
        begun = [change for change in self.episodes_from if change.generation <= generation]
        return max(begun, key=lambda change: change.generation).episodes if begun else self.episodes

    def sigma_at(self, generation: int) -> float | None:
        """Step size to set before a generation, the first being 1; None if CMA-ES keeps its own."""
        return next((change.sigma for change in self.sigma_from if change.generation == generation), None)

    def episodes_until(self, generation: int) -> int:
        """Episodes per candidate in all generations up to this one."""
        return sum(self.episodes_at(g) for g in range(1, generation + 1))


class EvaluateConfig(Section):
    """Stage 6: test tracks, never selected on, with Gymnasium's own rendering."""

    episodes: int = growable(100, ge=1, description="test episodes of each controller")
    controllers: Literal["both", "best", "mean"] = Field(
        "both", description="best: the best on validation; mean: the last CMA mean"
    )
    rendering: Literal["texture", "gymnasium"] = Field("gymnasium", description="as env.rendering, for test episodes")
    film_seconds: float = Field(20.0, gt=0, description="maximum length of the film of a drive")


class ExecutionConfig(Section):
    """Execution of the run. No result depends on it."""

    executor: Literal["ray", "in-process"] = runtime("ray", description="in-process: everything in one process")
    ray_address: str | None = runtime(None, description="cluster to join; null: RAY_ADDRESS, or else a local Ray")
    workers: int | None = runtime(
        None, ge=1, description="workers; null: one per core of this machine, on a cluster as many as the work needs"
    )
    workers_on: list[Literal["head", "gpu-nodes"]] = runtime(
        [], description="nodes that workers may also use; the head is used if it is the only node"
    )
    max_attempts: int = runtime(3, ge=1, description="attempts of a job that raises, or whose worker dies or hangs")
    timeout_s: float = runtime(
        900.0,
        gt=0,
        description="seconds without a sign of life after which a worker is killed and its jobs are requeued",
    )
    niceness: int = runtime(
        0, ge=0, le=19, description="nice value of a local Ray's workers; on a cluster: RAY_worker_niceness"
    )
    exact: bool = runtime(True, description="refuse to mix kinds of CPU within a run; false: accept and record it")


class StorageConfig(Section):
    """The run directory. No result depends on it; credentials and endpoints come only from the environment."""

    heartbeat_s: float = runtime(5.0, gt=0, description="seconds from one heartbeat of the driver to the next")
    lease_expiry_s: float = runtime(
        60.0, gt=0, description="seconds of silence after which another driver may take over"
    )

    @model_validator(mode="after")
    def _expiry_beyond_heartbeats(self) -> Self:
        if self.lease_expiry_s < 3 * self.heartbeat_s:
            raise ValueError(
                f"lease_expiry_s {self.lease_expiry_s:g} must be at least three times heartbeat_s "
                f"{self.heartbeat_s:g}: a single late heartbeat must not cost a driver its run"
            )
        return self


@dataclass(frozen=True)
class AgentConfig:
    """The sections that describe an agent: its networks, its controller, and how rollouts compute them.

    Attributes:
        seed: Seed of the run, for initial weights.
    """

    seed: int
    vae: VaeConfig
    mdnrnn: MdnRnnConfig
    controller: ControllerConfig
    rollouts: RolloutsConfig


class RunConfig(Section):
    """A whole run."""

    name: str = runtime("run", pattern=r"^[^/.][^/]*$", description="name of the run (default: that of the YAML file)")
    seed: int = Field(1, ge=0, lt=2**63, description="seed of everything random")
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
    def _consistent(self) -> Self:
        check_consistency(self)
        return self

    @property
    def agent(self) -> AgentConfig:
        """Sections that describe the agent."""
        return AgentConfig(self.seed, self.vae, self.mdnrnn, self.controller, self.rollouts)

    @property
    def test_env(self) -> EnvConfig:
        """Environment of the test episodes: the run's, drawn as ``evaluate.rendering`` says."""
        return self.env.model_copy(update={"rendering": self.evaluate.rendering})
