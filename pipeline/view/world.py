"""One viewer's world: the environment, the agent, who has the wheel, and M's dream of it. No web, threads or clocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.agent import Agent
from pipeline.base.arrays import Array
from pipeline.data.trained_agent import TrainedAgent
from pipeline.envs.environment import action_names_of
from pipeline.envs.registry import make_environment
from pipeline.models.steered_dream import Dreamt, Moment, SteeredDream
from pipeline.view import controls
from pipeline.view.look_ahead import SAMPLES

Frame = NDArray[np.uint8]
Holder = Literal["controller", "person"]


@dataclass(frozen=True)
class Picture:
    """View of one moment.

    Attributes:
        status: Facts in plain values, for the page.
        scene: Scene for people, (H, W, 3) uint8 RGB; in a dream M's own, (64, 64, 3).
        frame: Frame that V saw last, (64, 64, 3) uint8 RGB.
        reconstruction: V's picture of z, (64, 64, 3) uint8 RGB.
        held: V's picture of the latents that a person holds, (64, 64, 3) uint8 RGB; None if there are none.
        z: Latents, (Z,) float32.
        h: Hidden state of M, (H,) float32.
    """

    status: dict[str, Any]
    scene: Frame
    frame: Frame
    reconstruction: Frame
    held: Frame | None
    z: Array
    h: Array


class World:
    """The game and M's dream of it, with the wheel in the hands of the controller or of a person.

    Args:
        trained: Weights and controllers of a run.

    Attributes:
        agent: Agent, whose M follows the holder of the wheel.
        holder: Holder of the wheel, controller or person.
        track: Seed of the track.
        over: Whether the episode, or the dream, has ended; the next step begins another.
        steps_per_second: Steps of the world per second of the game's own clock: one for each action.

    Raises:
        ConfigError: The environment cannot be made here.
    """

    def __init__(self, trained: TrainedAgent) -> None:
        config = trained.config
        self._env = make_environment(config.env)
        # The agent gets the frames of the pipeline's environment, which are cropped and repeat actions already; and a
        # batch of one costs least.
        self.agent = Agent(trained, batch_size=1, own_frames=True)
        self._actions, self._action_names = self._env.actions, action_names_of(self._env)
        self._ends_at = config.dream.end_probability
        self._repeat = config.env.action_repeat
        self.steps_per_second = self._env.steps_per_second / self._repeat
        self.holder: Holder = "controller"
        self._wheel = controls.at_rest(self._actions, self._action_names)
        self._temperature = 1.0
        self._held: Array | None = None
        self._dreams = self._looks = 0
        self.reset(config.tracks.test.start)

    @property
    def about(self) -> dict[str, Any]:
        """Facts that stay the same, in plain values."""
        config = self.agent.config
        return {
            "environment": config.env.id,
            "run": config.name,
            "controls": controls.describe(self._actions, config.env.id, self._action_names),
            "z_size": config.vae.z_size,
            "hidden_size": config.mdnrnn.hidden_size,
            "steps_per_second": self.steps_per_second,
            "predicts_reward": config.mdnrnn.reward_weight > 0,
            "predicts_end": config.mdnrnn.done_weight > 0,
        }

    def reset(self, track: int) -> None:
        """Begin an episode on a track, awake, and take its first step."""
        self.track = track
        self.agent.reset(track)
        self._frame = self._env.reset(track)
        self.over, self._steps, self._return = False, 0, 0.0
        self._dream: SteeredDream | None = None
        self._dreamt: Dreamt | None = None
        self.step()

    def steer(self, values: Sequence[float]) -> None:
        """Set the action that a person takes while having the wheel.

        Raises:
            ValueError: There are not as many numbers as the action has.
        """
        self._wheel = controls.checked(self._actions, values)

    def hand_to(self, holder: Holder) -> None:
        """Hand the wheel over."""
        self.holder = holder
        self._wheel = controls.at_rest(self._actions, self._action_names)

    @property
    def dreaming(self) -> bool:
        """Whether the steps are M's dream."""
        return self._dream is not None

    def fall_asleep(self) -> None:
        """Continue in M's dream from the present moment; the game stands still."""
        if self._dream is None:
            self._woken_at = self._moment()
            self._begin_dream()

    def wake_up(self) -> None:
        """Resume the game where it stopped."""
        self._dream = self._dreamt = None
        self.over = self._game_over

    @property
    def temperature(self) -> float:
        """Uncertainty of dreams."""
        return self._temperature

    @temperature.setter
    def temperature(self, temperature: float) -> None:
        self._temperature = temperature
        if self._dream is not None:
            self._dream.temperature = temperature

    def hold(self, z: Sequence[float] | None) -> None:
        """Hold latents in place of the agent's, to look at V's picture of them; None to let go.

        Raises:
            ValueError: There are not as many numbers as z has.
        """
        size = self.agent.config.vae.z_size
        if z is not None and len(z) != size:
            raise ValueError(f"latents of {len(z)} numbers: expected {size}")
        self._held = None if z is None else np.asarray(z, np.float32)

    def step(self, see: bool = True) -> None:
        """Take one step, in the game or in the dream; after an end, begin another episode or dream.

        Args:
            see: Whether the scene is drawn: it costs more than the step.
        """
        if self._dream is not None:
            self._step_dream(self._dream)
        elif self.over:
            self.reset(self.track + 1)
        else:
            self._step_game(see)

    def look(self) -> Picture:
        """The present moment, without a step."""
        moment = self._moment()
        z = [moment.z] if self._held is None else [moment.z, self._held]
        reconstruction, *held = self.agent.decode(np.stack(z))
        scene = self._scene if self._dream is None else reconstruction
        return Picture(
            self._status(), scene, self.agent.frame, reconstruction, held[0] if held else None, moment.z, moment.h
        )

    def dream_ahead(self) -> SteeredDream:
        """Dreams that begin at the present moment, for ``look_ahead.look_ahead``; another thread may step them."""
        self._looks += 1
        return self.agent.begin_dream(self._temperature, samples=SAMPLES, seed=self._looks, moment=self._moment())

    def close(self) -> None:
        """Release the environment's resources."""
        self._env.close()

    def _step_game(self, see: bool) -> None:
        taken = controls.value_of(self._actions, self._wheel) if self.holder == "person" else None
        self.agent.act(self._frame, taken)
        if see:  # before the step: the scene is then of the frame that V sees
            self._scene = self._env.render().copy()
        step = self._env.step(self.agent.action)
        self._frame = step.frame
        self._steps += self._repeat  # as the evaluation counts them
        self._return += step.reward
        self.over = step.terminated or step.truncated

    def _begin_dream(self) -> None:
        self._dreams += 1
        self._game_over, self.over = self.over, False
        self._dream_steps, self._dream_return = 0, 0.0
        self._dreamt = None
        self._dream = self.agent.begin_dream(self._temperature, seed=self._dreams, moment=self._woken_at)

    def _step_dream(self, dream: SteeredDream) -> None:
        if self.over:
            self.over = self._game_over
            self._begin_dream()
            return
        self._dreamt = dreamt = dream.step(self._wheel if self.holder == "person" else None)
        self._dream_steps += 1
        if dreamt.reward is not None:
            self._dream_return += float(dreamt.reward[0])
        self.over = dreamt.end_probability is not None and bool(dreamt.end_probability[0] > self._ends_at)

    def _moment(self) -> Moment:
        if self._dream is not None:
            return self._dream.moment
        return Moment(self.agent.z, self.agent.h, self.agent.c)

    def _status(self) -> dict[str, Any]:
        dreamt = self._dreamt
        action = self.agent.action if dreamt is None else dreamt.action[0]
        return {
            "track": self.track,
            "steps": self._steps,
            "return": self._return,
            "holder": self.holder,
            "over": self.over,
            "action": [round(float(each), 3) for each in action],
            "temperature": self._temperature,
            "dream": None
            if self._dream is None
            else {
                "steps": self._dream_steps,
                "return": self._dream_return,
                "reward": None if dreamt is None or dreamt.reward is None else float(dreamt.reward[0]),
                "end_probability": None
                if dreamt is None or dreamt.end_probability is None
                else float(dreamt.end_probability[0]),
            },
        }
