"""Typed, strict schema of a run.

Every key is of one of three kinds:

- *identity* (the default): the key changes results. A change on an existing run is refused with a diff.
- *growable*: the key is a limit. On an existing run it may only grow; ``null`` means no limit.
- *runtime*: the key decides where and how fast a run executes. It may change at any time.

Defaults are the paper's (arXiv 1803.10122 and its published code) wherever the paper has a value.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from pipeline.base.ray_environment import cluster_address
from pipeline.config.agent import AgentConfig, ControllerConfig, MdnRnnConfig, RolloutsConfig, VaeConfig
from pipeline.config.consistency import check_consistency
from pipeline.config.evolution import ONLY_DREAMS, DreamConfig, EvolveConfig
from pipeline.config.rounds import RoundsConfig
from pipeline.config.section import Section, growable, runtime


class EnvConfig(Section):
    """The environment, the same in every stage."""

    id: str = Field("CarRacing-v3", description="an ID of Gymnasium, module:ID, or module:Class (docs/environments.md)")
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
        description="CarRacing only. How frames are drawn: from a texture of the track, or by Gymnasium, up to "
        "46 times slower",
    )
    max_episode_steps: int = Field(1000, ge=2, description="steps after which an episode is truncated")
    action_repeat: int = Field(
        1,
        ge=1,
        description="steps that each action is held for; the agent sees the frame of the last one. Episode lengths "
        "still count environment steps (the last action in full, even if the episode ends within it); mdnrnn.window "
        "and dream.max_steps count actions",
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


class EncodeConfig(Section):
    """Stage 3: frames to latents."""

    batch_size: int = Field(64, ge=1, description="frames in a batch; an identity key, because it changes bits")


class EvaluateConfig(Section):
    """Stage 6: test tracks, never selected on, with Gymnasium's own rendering."""

    episodes: int = growable(100, ge=1, description="test episodes of each controller")
    controllers: Literal["both", "best", "mean"] = Field(
        "both", description="best: the best on validation; mean: the last CMA mean"
    )
    rendering: Literal["texture", "gymnasium"] = Field("gymnasium", description="as env.rendering, for test episodes")
    film_seconds: float = Field(20.0, gt=0, description="maximum length of the film of a drive")
    agent: str | None = Field(
        None,
        description="agent to evaluate in place of the run's own: a run, or a class as module:Class; the run then "
        "consists of this stage alone (docs/agents.md)",
    )


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

    @property
    def joins_cluster(self) -> bool:
        """Whether the run joins a cluster, by ``ray_address`` or by the environment."""
        return self.executor == "ray" and cluster_address(self.ray_address) is not None


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


class MetricsConfig(Section):
    """Experiment trackers that a run's metrics are published to. No result depends on it."""

    trackers: list[Literal["mlflow", "wandb", "trackio"]] = runtime(
        [],
        description="trackers, each from the extra of its name; addresses and logins come from their own variables",
    )
    project: str = runtime("world-models", min_length=1, description="project, or MLflow's experiment")


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
    dream: DreamConfig = DreamConfig()
    evolve: EvolveConfig = EvolveConfig()
    rounds: RoundsConfig = RoundsConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    execution: ExecutionConfig = ExecutionConfig()
    metrics: MetricsConfig = MetricsConfig()
    storage: StorageConfig = StorageConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_consistency(self)
        return self

    @property
    def agent(self) -> AgentConfig:
        """Sections that describe the agent."""
        return AgentConfig(self.seed, self.vae, self.mdnrnn, self.controller, self.rollouts)

    def in_round(self, number: int) -> RunConfig:
        """Config of a round, the first being 1: in later ones, the keys of ``rounds`` replace those of the stages."""
        if number == 1:
            return self
        rounds, evolve, values = self.rounds, self.evolve, self.model_dump()
        values["vae"] |= {"epochs": max(1, rounds.vae_epochs), "learning_rate": rounds.vae_learning_rate}
        values["mdnrnn"] |= {"epochs": rounds.mdnrnn_epochs, "learning_rate": rounds.mdnrnn_learning_rate}
        values["evolve"] |= {
            "generations": rounds.generations,
            "sigma": rounds.sigma,
            "sigma_from": [],
            "game_from": None,
            "episodes": evolve.episodes_at(evolve.generations),
            "episodes_from": [],
        }
        if evolve.environment == "dream":
            values["evolve"] |= ONLY_DREAMS
        return RunConfig.model_validate(values)

    @property
    def test_env(self) -> EnvConfig:
        """Environment of the test episodes: the run's, drawn as ``evaluate.rendering`` says."""
        return self.env.model_copy(update={"rendering": self.evaluate.rendering})
