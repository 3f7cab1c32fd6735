"""A trained agent to load in Python: it acts in the game itself, and dreams.

agent = Agent.load("runs/laptop")
env = gymnasium.make("CarRacing-v3")
observation, _ = env.reset(seed=1)
agent.reset()
action = agent.act(observation)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from pipeline.base import seeding
from pipeline.base.arrays import Array, Frames
from pipeline.config.agent import RolloutsConfig
from pipeline.config.schema import RunConfig
from pipeline.data.frames import FRAME_SHAPE
from pipeline.data.trained_agent import TrainedAgent
from pipeline.envs.actions import Actions
from pipeline.envs.observations import frame_of, rows_of
from pipeline.envs.registry import traits_of
from pipeline.models.controller import ControllerBatch, ControllerShape, join_features
from pipeline.models.forward import make_encoder, make_rnn_step, sample_z
from pipeline.models.precision import Precision
from pipeline.models.steered_dream import Imagined, Moment, SteeredDream, imagined
from pipeline.storage.run_dir import as_run_dir, open_store


class Agent:
    """V, M and a controller, for one episode or for several in step.

    The agent takes the observations of the game itself, such as Gymnasium's CarRacing-v3, and returns the actions that
    the game takes. Call ``reset(seed)`` with the track's seed, and ``act`` for every observation.

    On a test track the return then equals that of ``world-models evaluate`` to the bit, under these conditions:

    - The evaluation drew with Gymnasium: ``evaluate.rendering`` is ``gymnasium``, the default.
    - ``env.action_repeat`` is 1. The evaluation sums the rewards of one action first, which rounds otherwise.
    - The game has the evaluation's arguments and step limit: ``env.max_episode_steps``, for CarRacing-v3 1,000.
    - V's encoder computed in float32 there (``rollouts.precision``), and does here (``precision="float32"``).
    - Both ran on one kind of CPU, with the same versions of the libraries.

    With ``env.action_repeat`` above 1 an action is held: ``act`` returns the same one for that number of calls.

    Args:
        trained: Weights and controllers of a run.
        controller: Name of the controller: ``best`` or ``mean``; None for the best.
        precision: Number format of V's encoder, as the key ``rollouts.precision``; None for the run's own.
        batch_size: Rows of a forward pass; None for the run's own ``rollouts.micro_batch``, as in the evaluation.
        own_frames: Whether observations are the frames of the pipeline's environment, (64, 64, 3), which repeats
            actions itself.

    Raises:
        ConfigError: There is no such controller, or this CPU does not support the precision.

    Attributes:
        config: Config of the run.
        action_space: Space of the actions.
    """

    def __init__(
        self,
        trained: TrainedAgent,
        controller: str | None = None,
        precision: Precision | None = None,
        *,
        batch_size: int | None = None,
        own_frames: bool = False,
    ) -> None:
        self.config: RunConfig = trained.config
        self._trained = trained
        self._actions: Actions = traits_of(self.config.env).actions
        self.action_space: gymnasium.Space[Any] = self._actions.space
        agent = self.config.agent
        if precision is not None:
            rollouts = RolloutsConfig.model_validate({**agent.rollouts.model_dump(), "precision": precision})
            agent = replace(agent, rollouts=rollouts)
        self._agent, self._batch_size = agent, batch_size or agent.rollouts.micro_batch
        self._own_frames = own_frames
        self._repeat = 1 if own_frames else self.config.env.action_repeat
        self._encoder = make_encoder(agent, trained.vae_weights, self._batch_size)
        self._rnn_step = make_rnn_step(agent, trained.mdnrnn_weights, self._batch_size, self._actions.size)
        self._shape = ControllerShape.of_agent(agent, self._actions.size)
        self._parameters = trained.controller(controller)
        self._samples = agent.controller.z == "sample"
        self._vae: Any = None  # V with its decoder, in torch, when a picture is wanted
        self._mdnrnn: Any = None  # M with its heads, in torch, when a dream is wanted
        self._seed: int | Sequence[int] | None = None
        self._single = True
        self._count: int | None = None
        self._allocate(1)
        self.reset()

    @classmethod
    def load(
        cls,
        run: str | Path,
        controller: str | None = None,
        precision: Precision | None = None,
        *,
        own_frames: bool = False,
    ) -> Agent:
        """Load the agent of a run.

        Args:
            run: Folder of the run, ``s3://bucket/prefix``, or ``pretrained:NAME``.
            controller: See the class.
            precision: See the class.
            own_frames: See the class.

        Raises:
            ConfigError: There is no such controller, or this CPU does not support the precision.
            StorageError: There is no such run, or it has not evolved yet.
            DamagedDataError: Weights are missing or changed.
        """
        return cls(TrainedAgent.read(open_store(as_run_dir(str(run)))), controller, precision, own_frames=own_frames)

    def reset(self, seed: int | Sequence[int] | None = None, rows: Sequence[int] | None = None) -> None:
        """Begin episodes.

        Args:
            seed: Seed of the episode, as the game's own ``reset(seed=...)`` takes it, for the noise with which z is
                sampled; one for each row, or that of the first row, whose successors get the next ones. None for
                noise that differs each time.
            rows: Rows of a batch that begin, by index; None for all, and the next ``act`` sets their number.

        Raises:
            ValueError: A row does not exist, or the number of seeds is not that of the rows.
        """
        if rows is None:
            self._seed, self._count = seed, None
            return
        if self._count is None or not all(0 <= row < self._count for row in rows):
            raise ValueError(f"rows {list(rows)}: the agent acts in {self._count or 0} episodes")
        for row, each in zip(rows, _seeds(seed, len(rows)), strict=True):
            self._begin(row, each)

    def act(self, observation: Any, taken: Any = None) -> Any:
        """Choose the action for an observation, or for a batch of them.

        Args:
            observation: Observation of the game, see ``pipeline.envs.observations.frame_of``; or a batch of them: a
                list, an array (N, H, W, 3), or a Dict of such arrays, as Gymnasium's vector environments return it.
            taken: Action that somebody else takes in place of the controller's, or a batch of them: M's state follows
                it. While an action is held, only that one. None for the controller's own.

        Returns:
            Action that the game takes; for a batch an array of N of them.

        Raises:
            ValueError: The observation is no image of the game, the number of rows has changed since ``reset``, the
                actions taken are no actions, are not one for each row, or differ from held actions, or the controller's
                output is not finite.
        """
        observations = rows_of(observation)
        self._single = observations is None
        each_row = [observation] if observations is None else observations
        frames = each_row if self._own_frames else [frame_of(each, self.config.env) for each in each_row]
        if self._count is None:
            self._allocate(len(frames))
        if len(frames) != self._count:
            raise ValueError(f"{len(frames)} observations for {self._count} episodes: call reset() first")
        for row, frame in enumerate(frames):
            self._frames[row] = frame
        due = self._calls[: self._count] % self._repeat == 0
        vectors = self._vectors(taken, due)
        if due.any():
            self._advance(due, vectors)
        self._calls[: self._count] += 1
        native = [self._actions.native(action) for action in self._chosen[: self._count]]
        return native[0] if self._single else np.stack(native)

    @property
    def z(self) -> Array:
        """Latents that the controller saw last, (Z,) float32; (N, Z) for a batch."""
        return self._last(self._z)

    @property
    def h(self) -> Array:
        """Hidden state of M that the controller saw last, (H,) float32; (N, H) for a batch."""
        return self._last(self._h)

    @property
    def c(self) -> Array:
        """Cell state of M that the controller saw last, (H,) float32; (N, H) for a batch."""
        return self._last(self._c)

    @property
    def action(self) -> Array:
        """Action of the last ``act`` as M sees it, (A,) float32; (N, A) for a batch."""
        return self._last(self._chosen)

    @property
    def frame(self) -> Frames:
        """Frame that V saw last, (64, 64, 3) uint8 RGB; (N, 64, 64, 3) for a batch."""
        return self._last(self._frames)

    def reconstruct(self) -> Frames:
        """V's picture of ``z``, (64, 64, 3) uint8 RGB; (N, 64, 64, 3) for a batch."""
        decoded = self.decode(np.atleast_2d(self.z))
        return decoded[0] if self._single else decoded

    def decode(self, z: Array) -> Frames:
        """V's pictures of latents, (N, Z) float32, as (N, 64, 64, 3) uint8 RGB."""
        import torch

        from pipeline.models.vae import output_to_frames
        from pipeline.models.weights import load_vae

        if self._vae is None:
            self._vae = load_vae(self._agent, self._trained.vae_weights).eval()
        with torch.inference_mode():
            return output_to_frames(self._vae.decode(torch.from_numpy(np.ascontiguousarray(z))))

    def dream(
        self,
        steps: int,
        temperature: float = 1.0,
        *,
        samples: int = 1,
        seed: int = 0,
        row: int = 0,
        actions: Array | None = None,
    ) -> Imagined:
        """Continue in a dream from the observation of the last ``act``; the episode itself is not changed.

        Args:
            steps: Steps of each dream.
            temperature: Uncertainty of the dream; 1.0 is M's own density.
            samples: Number of dreams, which differ in their noise.
            seed: Seed of the noise.
            row: Row of a batch.
            actions: Actions to take as M sees them, (steps, A) float32; None for the controller's own in each dream.

        Raises:
            ValueError: As for ``begin_dream``; or there is no step, or not an action for each.
        """
        if steps < 1:
            raise ValueError(f"{steps} steps: expected at least one")
        if actions is not None and np.shape(actions) != (steps, self._actions.size):
            raise ValueError(f"actions {np.shape(actions)}: expected {(steps, self._actions.size)}, one for each step")
        dream = self.begin_dream(temperature, samples=samples, seed=seed, row=row)
        taken = [None] * steps if actions is None else actions
        return imagined([dream.step(action) for action in taken], self.decode)

    def begin_dream(
        self, temperature: float = 1.0, *, samples: int = 1, seed: int = 0, row: int = 0, moment: Moment | None = None
    ) -> SteeredDream:
        """Begin dreams that advance step by step, by the controller or by somebody else; the episode is not changed.

        Args:
            temperature: Uncertainty of the dream; it can change between steps.
            samples: Number of dreams, which differ in their noise.
            seed: Seed of the noise.
            row: Row of a batch.
            moment: Moment to begin at; None for that of the last ``act``.

        Raises:
            ValueError: The agent has not acted yet, there is no such row or no sample, or the temperature is not above
                0.
        """
        from pipeline.models.torch_forward import TorchDreamStep
        from pipeline.models.weights import load_mdnrnn

        if temperature <= 0:
            raise ValueError(f"temperature {temperature} must be above 0")
        if samples < 1:
            raise ValueError(f"{samples} samples: expected at least one")
        if moment is None:
            if self._count is None:
                raise ValueError("a dream begins at an observation: call act() first")
            if not 0 <= row < self._count:
                raise ValueError(f"row {row}: the agent acts in {self._count} episodes, from row 0 on")
        if self._mdnrnn is None:
            self._mdnrnn = load_mdnrnn(self._agent, self._actions.size, self._trained.mdnrnn_weights)
        controllers = self._controllers_of(samples)

        def choose(z: Array, h: Array, c: Array) -> Array:
            return self._actions.squash(controllers.outputs(join_features(self._shape.features, z, h, c)))

        return SteeredDream(
            TorchDreamStep(self._mdnrnn, samples, temperature),
            choose,
            moment or Moment(self._z[row].copy(), self._h[row].copy(), self._c[row].copy()),
            seeds=[seeding.derive(seed, "agent/dream", sample) for sample in range(samples)],
        )

    def _allocate(self, count: int) -> None:
        """Begin ``count`` episodes, with rows for whole micro-batches."""
        seeds = _seeds(self._seed, count)
        slots = -(-count // self._batch_size) * self._batch_size
        self._frames = np.zeros((slots, *FRAME_SHAPE), np.uint8)
        self._z = np.zeros((slots, self._encoder.z_size), np.float32)
        self._noise = np.zeros_like(self._z)
        self._h = np.zeros((slots, self._rnn_step.hidden_size), np.float32)
        self._c, self._next_h, self._next_c = (np.zeros_like(self._h) for _ in range(3))
        self._chosen = np.zeros((slots, self._actions.size), np.float32)
        self._calls = np.zeros(slots, np.int64)
        self._controllers = self._controllers_of(slots)
        self._streams: list[np.random.Generator] = [np.random.default_rng()] * count
        self._count = count
        for row, each in enumerate(seeds):
            self._begin(row, each)

    def _controllers_of(self, rows: int) -> ControllerBatch:
        batch = ControllerBatch(self._shape, rows)
        for row in range(rows):
            batch.set_row(row, self._parameters)
        return batch

    def _begin(self, row: int, seed: int | None) -> None:
        self._next_h[row] = self._next_c[row] = 0
        self._calls[row] = 0
        if seed is None:
            self._streams[row] = np.random.default_rng()
            return
        episode = seed - self.config.tracks.test.start
        # On test tracks the noise is that of the evaluation (``pipeline.evolution.fitness.scored_jobs``).
        purpose, index = ("test/noise", episode) if episode >= 0 else ("agent/noise", seed)
        self._streams[row] = np.random.Generator(np.random.PCG64(seeding.derive(self.config.seed, purpose, index)))

    def _vectors(self, taken: Any, due: NDArray[np.bool_]) -> Array | None:
        """Actions of somebody else as M sees them, with a row for each of the controller's."""
        if taken is None:
            return None
        values = [taken] if self._single else list(taken)
        if len(values) != self._count:
            raise ValueError(f"{len(values)} actions taken in {self._count} episodes: expected one for each")
        vectors = np.zeros_like(self._chosen)
        for row, value in enumerate(values):
            vectors[row] = self._actions.vector(value)
            if not (due[row] or np.array_equal(vectors[row], self._chosen[row])):
                raise ValueError(
                    f"row {row}: the last action is held for {-self._calls[row] % self._repeat} more calls "
                    f"(env.action_repeat {self._repeat}), but {value} was given. Pass the last action or None"
                )
        return vectors

    def _advance(self, due: NDArray[np.bool_], taken: Array | None) -> None:
        """Choose new actions in the rows that are due; the order is the paper's, as in ``RolloutWorker``."""
        chosen = np.flatnonzero(due)
        if self._samples:
            for row in chosen:
                self._streams[row].standard_normal(dtype=np.float32, out=self._noise[row])
        for start in range(0, len(self._frames), self._batch_size):
            rows = slice(start, start + self._batch_size)
            mu, logvar = self._encoder(self._frames[rows])
            z = sample_z(mu, logvar, self._noise[rows]) if self._samples else mu
            h, c = self._next_h[rows].copy(), self._next_c[rows].copy()
            features = join_features(self._shape.features, z, h, c)
            actions = (
                taken[rows] if taken is not None else self._actions.squash(self._controllers.outputs(features, start))
            )
            next_h, next_c = self._rnn_step(z, np.nan_to_num(actions), h, c)
            for row in chosen[(start <= chosen) & (chosen < start + self._batch_size)]:
                at = row - start
                if not np.isfinite(actions[at]).all():
                    raise ValueError(f"the controller's output is not finite in row {row}")
                self._z[row], self._h[row], self._c[row] = z[at], h[at], c[at]
                self._next_h[row], self._next_c[row], self._chosen[row] = next_h[at], next_c[at], actions[at]

    def _last(self, array: NDArray[Any]) -> NDArray[Any]:
        if self._count is None:
            raise ValueError("nothing is seen yet: call act() first")
        return array[0].copy() if self._single else array[: self._count].copy()


def _seeds(seed: int | Sequence[int] | None, count: int) -> Sequence[int | None]:
    """Seed of each row."""
    if seed is None:
        return [None] * count
    if isinstance(seed, int | np.integer):
        return range(int(seed), int(seed) + count)
    if len(seed) != count:
        raise ValueError(f"{len(seed)} seeds for {count} episodes: expected one for each, or the first one's")
    return seed
