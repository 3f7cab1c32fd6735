"""Sections that describe an agent: its networks, its controller, and how rollouts compute them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

from pydantic import Field, model_validator

from pipeline.config.section import Section, runtime


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
    precision: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bfloat16 where it is faster")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU if there is one")
    threads: int = Field(2, ge=1, description="CPU threads; an identity key, because their number changes bits")
    log_every_steps: int = runtime(20, ge=1, description="training steps from one logged loss to the next")
    checkpoint_every_s: float = runtime(60.0, gt=0, description="seconds from one checkpoint to the next")


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
    patience: int | None = Field(None, ge=1, description="epochs without a better held-out loss before stopping early")
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
        "openvino", description="library that computes the networks in rollouts"
    )
    precision: Literal["auto", "float32", "bfloat16", "int8"] = Field(
        "auto",
        description="number format of V's encoder in rollouts and encoding; auto: int8 with VNNI, else as in vae",
    )
    lanes: int = runtime(8, ge=1, description="environments that one worker steps in lockstep")


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
