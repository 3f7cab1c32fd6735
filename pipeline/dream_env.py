"""A run's dream as a Gymnasium environment, in which any agent can be trained.

``gymnasium.make("pipeline.dream_env:WorldModels/Dream-v0", run="runs/takecover-laptop")`` makes one dream, and
``gymnasium.make_vec`` many in one batch. Observations are the inputs of the run's controller, or letters of z, h and c.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from pipeline.base.arrays import Array
from pipeline.base.errors import ConfigError
from pipeline.config.consistency import check_heads
from pipeline.config.evolution import DreamConfig
from pipeline.data.artifacts import MDNRNN, mdnrnn_weights, vae_weights
from pipeline.data.rounds import latest_round, vae_folder
from pipeline.envs.registry import traits_of
from pipeline.evolution.pools import read_starts
from pipeline.models.forward import make_dream_step
from pipeline.models.vae import output_to_frames
from pipeline.models.weights import load_vae
from pipeline.rollouts.dreaming import DreamGame
from pipeline.storage.run_dir import open_store
from pipeline.storage.saved_config import saved_config

ID = "WorldModels/Dream-v0"


class Dreams:
    """The dreams of a run, many in lockstep: the shared part of both environments below.

    Args:
        run: Run directory, a folder or ``s3://bucket/prefix``. The latest round whose M is trained is dreamt.
        count: Number of dreams.
        observe: Letters z, h and c, in the order of the observation; None for the inputs of the run's controller.
        keys: Keys of the section ``dream`` to set, such as ``temperature``, ``start``, ``reward`` or ``max_steps``.

    Attributes:
        observation_space: Space of one observation, a Box of (F,) float32.
        actions: Actions of the environment that is dreamt.
        steps: Steps of each dream so far, (count,) int64.

    Raises:
        ConfigError: A key is unknown or has an invalid value, or the run's M is untrained, or predicts no rewards
            or ends.
        StorageError: There is no run, or its M is not trained.
    """

    def __init__(self, run: str | Path, count: int, observe: str | None, keys: dict[str, Any]) -> None:
        store = open_store(str(run))
        config = saved_config(store)
        at = latest_round(config.rounds, store, MDNRNN)
        v = vae_weights(store, vae_folder(config.rounds, at))
        m = mdnrnn_weights(store, at.folder(MDNRNN))
        self.observe = observe or config.controller.features
        if not self.observe or set(self.observe) - set("zhc"):
            raise ConfigError(f"observe = {observe!r}: expected letters of z, h and c, such as 'zh'")
        try:
            dream = DreamConfig.model_validate({**config.dream.model_dump(), **keys})
            check_heads(dream, config.mdnrnn)
        except ValueError as error:
            raise ConfigError(f"{store.locate()}: {error}") from error
        if without_effect := keys.keys() & {"device", "micro_batch", "lanes"}:
            raise ConfigError(f"{sorted(without_effect)[0]} has no effect here: all dreams are one batch on the CPU")
        self.actions, self.max_steps = traits_of(config.env).actions, dream.max_steps
        self.steps_per_second = traits_of(config.env).steps_per_second / config.env.action_repeat
        step = make_dream_step(config.agent, m, count, self.actions.size, dream.temperature)
        self._game = DreamGame(step, dream, read_starts(config, store, at, dream.start), count)
        self._vae = load_vae(config.agent, v).eval()
        self.steps = np.zeros(count, np.int64)
        sizes = {"z": config.vae.z_size, "h": config.mdnrnn.hidden_size, "c": config.mdnrnn.hidden_size}
        size = sum(sizes[name] for name in self.observe)
        self.observation_space = spaces.Box(-np.inf, np.inf, (size,), np.float32)

    def begin(self, slot: int, rng: np.random.Generator) -> None:
        """Begin a dream whose start and noise are drawn from ``rng``."""
        self._game.begin(slot, np.random.Generator(np.random.PCG64(int(rng.integers(2**63)))))
        self.steps[slot] = 0

    def observations(self) -> Array:
        """Observations of all dreams, (count, F) float32."""
        return self._game.features(self.observe, len(self.steps))

    def step(self, actions: Sequence[Any]) -> tuple[Array, NDArray[np.bool_], NDArray[np.bool_]]:
        """Act once in each dream.

        Args:
            actions: Values of the action space, one for each dream.

        Returns:
            Rewards, (count,) float32; whether M predicts an end, and whether the limit cuts the dream, (count,) bool.
        """
        rewards, ended = self._game.step(np.stack([self.actions.vector(action) for action in actions]))
        self.steps += 1
        return rewards.copy(), ended.copy(), (self.steps >= self.max_steps) & ~ended

    def decode(self, slots: slice) -> NDArray[np.uint8]:
        """V's decoded pictures of dreams, (N, 64, 64, 3) uint8 RGB."""
        import torch

        with torch.inference_mode():
            return output_to_frames(self._vae.decode(torch.from_numpy(self._game.dream.z[slots].copy())))


class DreamEnv(gymnasium.Env[Array, Any]):  # type: ignore[misc]
    """One dream.

    Args:
        run: See ``Dreams``.
        observe: See ``Dreams``.
        render_mode: ``"rgb_array"`` for V's decoded pictures; None for none.
        **keys: See ``Dreams``.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"]}

    def __init__(
        self, run: str | Path, *, observe: str | None = None, render_mode: str | None = None, **keys: Any
    ) -> None:
        self._dreams = Dreams(run, 1, observe, keys)
        self.metadata = {**type(self).metadata, "render_fps": self._dreams.steps_per_second}  # type: ignore[misc]
        self.observation_space, self.action_space = self._dreams.observation_space, self._dreams.actions.space
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Begin a dream. The same seed and actions give the same dream to the bit."""
        super().reset(seed=seed)
        self._dreams.begin(0, self.np_random)
        return self._dreams.observations()[0], {}

    def step(self, action: Any) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Act. M's predicted end terminates the dream, and the step limit truncates it."""
        rewards, ended, cut = self._dreams.step([action])
        return self._dreams.observations()[0], float(rewards[0]), bool(ended[0]), bool(cut[0]), {}

    def render(self) -> NDArray[np.uint8] | None:
        """V's decoded picture of the present z, (64, 64, 3) uint8 RGB; None without a render mode."""
        return self._dreams.decode(slice(1))[0] if self.render_mode == "rgb_array" else None


class DreamVectorEnv(gymnasium.vector.VectorEnv[Array, Any, NDArray[Any]]):  # type: ignore[misc]
    """Many dreams in one batch of M. A dream that ended begins again with the next step.

    At another number of dreams the bits of a dream may differ.

    Args:
        run: See ``Dreams``.
        num_envs: Number of dreams.
        observe: See ``Dreams``.
        render_mode: See ``DreamEnv``.
        **keys: See ``Dreams``.
    """

    metadata: ClassVar[dict[str, Any]] = {
        "render_modes": ["rgb_array"],
        "autoreset_mode": gymnasium.vector.AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        run: str | Path,
        num_envs: int = 1,
        *,
        observe: str | None = None,
        render_mode: str | None = None,
        **keys: Any,
    ) -> None:
        self._dreams = Dreams(run, num_envs, observe, keys)
        self.metadata = {**type(self).metadata, "render_fps": self._dreams.steps_per_second}  # type: ignore[misc]
        self.num_envs, self.render_mode = num_envs, render_mode
        self.single_observation_space, self.single_action_space = (
            self._dreams.observation_space,
            self._dreams.actions.space,
        )
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._over = np.zeros(num_envs, bool)
        self._streams: list[np.random.Generator] = []

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Begin all dreams.

        Args:
            seed: Seed of the first dream, whose successors get the next ones; or one seed for each. None continues the
                current streams.
            options: Argument of Gymnasium's interface; not used.

        Raises:
            ValueError: The number of seeds is not that of dreams.
        """
        if seed is not None or not self._streams:
            seeds = [None] * self.num_envs if seed is None else seed
            if isinstance(seeds, int | np.integer):
                seeds = range(int(seeds), int(seeds) + self.num_envs)
            if len(seeds) != self.num_envs:
                raise ValueError(f"{len(seeds)} seeds for {self.num_envs} dreams: expected one for each, or one in all")
            self._streams = [np.random.default_rng(each) for each in seeds]
        for slot, stream in enumerate(self._streams):
            self._dreams.begin(slot, stream)
        self._over[:] = False
        return self._dreams.observations(), {}

    def step(
        self, actions: Any
    ) -> tuple[Array, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Act in all dreams; in one that is over, the action is ignored and the reward is 0."""
        rewards, ended, cut = self._dreams.step(list(gymnasium.vector.utils.iterate(self.action_space, actions)))
        again = self._over
        for slot in np.flatnonzero(again):
            self._dreams.begin(int(slot), self._streams[slot])
        rewards[again], ended[again], cut[again] = 0, False, False
        self._over = ended | cut
        return self._dreams.observations(), rewards.astype(np.float64), ended, cut, {}

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """V's decoded pictures, one (64, 64, 3) uint8 RGB for each dream; None without a render mode."""
        return tuple(self._dreams.decode(slice(self.num_envs))) if self.render_mode == "rgb_array" else None


if ID not in gymnasium.registry:
    gymnasium.register(
        ID, entry_point="pipeline.dream_env:DreamEnv", vector_entry_point="pipeline.dream_env:DreamVectorEnv"
    )
