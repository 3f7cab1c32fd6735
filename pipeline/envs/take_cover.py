"""TakeCover, as the paper played it: ViZDoom's scenario, one tic a step, one number as the action.

The agent walks left and right along a wall while monsters throw fireballs. It earns 1 for each tic that it survives, of
at most ``env.max_episode_steps`` (2,100 in the paper, 60 s).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import ConfigError
from pipeline.base.extras import import_extra
from pipeline.config.schema import EnvConfig
from pipeline.envs.actions import Actions, BoxActions
from pipeline.envs.engines import starting_engines
from pipeline.envs.environment import Step, configure_headless
from pipeline.envs.frames import to_frame

# Its 64x64 frames look like those of the paper's 640x480, at a tenth of the cost.
_RESOLUTION = "160x120"
# The paper keeps rows 0 to 399 of 480: the rest is the status bar.
_PLAYFIELD = 400 / 480
# The paper asks for 5, which its engine clamps to 4. At 5, random actions score 72; at 4, the paper's 210.
_SKILL = 4
_START_TIC = 14
_THRESHOLD = 1 / 3


class TakeCoverActions(BoxActions):
    """One number: below -1/3 the agent steps to the left, above 1/3 to the right. M sees the number itself."""

    formula = "tanh(x); left below -1/3, right above 1/3"

    def __init__(self) -> None:
        super().__init__([-1.0], [1.0])

    def squash(self, output: NDArray[np.float32]) -> NDArray[np.float32]:
        """Apply tanh."""
        return np.tanh(output)

    def native(self, action: NDArray[np.float32]) -> list[bool]:
        """Convert an action, (1,) float32, to the buttons for right and left."""
        return [bool(action[0] > _THRESHOLD), bool(action[0] < -_THRESHOLD)]

    def vector(self, value: Any) -> NDArray[np.float32]:
        """Convert the number itself, or the buttons for right and left, to an action, (1,) float32."""
        if np.shape(value) == (2,):
            right, left = value
            value = float(right) - float(left)
        return super().vector(value)


class TakeCover:
    """The pipeline's TakeCover environment; see ``pipeline.envs.environment`` for the methods.

    Args:
        config: Section ``env`` of a config. ``options`` may set ``resolution``, such as ``640x480``.

    Attributes:
        draws: Whether steps draw the game. If not, all frames are the first one, for blind policies.

    Raises:
        ConfigError: ViZDoom is not installed, or an option is unknown.
    """

    repeats_actions = True
    steps_per_second = 35.0

    def __init__(self, config: EnvConfig) -> None:
        self.actions: Actions = TakeCoverActions()
        self._max_steps, self._action_repeat = config.max_episode_steps, config.action_repeat
        self._resolution = _resolution(config)
        self._game: Any = None  # started with the first episode
        self._steps = 0
        self.draws = True

    def describe_frames(self) -> dict[str, Any]:
        """See ``Environment``."""
        return {
            "resolution": self._resolution,
            "crop": {"rows": "0 to 5/6 of the height", "columns": "all"},
            "reduced": "by area averaging",
        }

    def reset(self, track: int) -> NDArray[np.uint8]:
        """See ``Environment.reset``."""
        if self._game is None:
            self._game = _start_game(self._resolution, self._max_steps)
        self._game.set_seed(track)
        self._game.new_episode()
        self._steps = 0
        self._screen = self._game.get_state().screen_buffer
        return self._frame()

    def step(self, action: NDArray[np.float32]) -> Step:
        """See ``Environment.step``."""
        count = min(self._action_repeat, self._max_steps - self._steps)
        if not self.draws:
            return self._step_unseen(action, count)
        reward = float(self._game.make_action(self.actions.native(action), count))
        self._steps += count
        state = self._game.get_state()
        if state is not None:  # the engine draws nothing after the end: the last picture stays
            self._screen = state.screen_buffer
        dead = bool(self._game.is_player_dead())
        return Step(self._frame(), reward, dead, not dead and self._steps >= self._max_steps)

    def _step_unseen(self, action: NDArray[np.float32], count: int) -> Step:
        """Step without a new picture, and so without the engine's other news than that the game is over."""
        self._game.set_action(self.actions.native(action))
        reward, dead = 0.0, False
        for _ in range(count):
            self._game.advance_action(1, False)
            reward += 1
            # Only death ends the engine's game: its own limit is one tic beyond ours.
            if dead := bool(self._game.is_episode_finished()):
                break
        self._steps += count
        return Step(self._frame(), reward, dead, not dead and self._steps >= self._max_steps)

    def render(self) -> NDArray[np.uint8]:
        """See ``Environment.render``."""
        return np.asarray(self._screen)

    def close(self) -> None:
        """See ``Environment.close``."""
        if self._game is not None:
            self._game.close()
            self._game = None

    def _frame(self) -> NDArray[np.uint8]:
        return frame_of_screen(self._screen)


def frame_of_screen(screen: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Frame, (64, 64, 3) uint8, of the engine's whole screen, (H, W, 3) uint8: without the status bar."""
    height, width, _ = screen.shape
    return to_frame(screen, [0, round(height * _PLAYFIELD), 0, width])


def _resolution(config: EnvConfig) -> str:
    vizdoom = import_extra("vizdoom", "doom", f"env.id = {config.id!r}")
    unknown = config.options.keys() - {"resolution"}
    resolution = config.options.get("resolution", _RESOLUTION)
    if unknown or not hasattr(vizdoom.ScreenResolution, f"RES_{str(resolution).upper()}"):
        raise ConfigError(
            f"env.options {config.options}: {config.id} takes resolution alone, one of ViZDoom's, such as 160x120, "
            "320x240 or 640x480"
        )
    return str(resolution)


def _start_game(resolution: str, max_steps: int) -> Any:
    import vizdoom

    configure_headless()
    game = vizdoom.DoomGame()
    game.load_config(str(Path(vizdoom.scenarios_path) / "take_cover.cfg"))
    # The paper's settings, which differ from ViZDoom's file.
    game.set_available_buttons([vizdoom.Button.MOVE_RIGHT, vizdoom.Button.MOVE_LEFT])
    game.set_doom_skill(_SKILL)
    game.set_episode_start_time(_START_TIC)
    # Without the engine's own limit, which it would count from another tic.
    game.set_episode_timeout(_START_TIC + max_steps + 1)
    game.set_living_reward(1)
    game.set_render_hud(True)
    game.set_render_crosshair(False)
    game.set_render_weapon(False)
    game.set_render_decals(False)
    game.set_render_particles(False)
    game.set_screen_format(vizdoom.ScreenFormat.RGB24)
    game.set_screen_resolution(getattr(vizdoom.ScreenResolution, f"RES_{resolution.upper()}"))
    game.set_window_visible(False)
    game.set_mode(vizdoom.Mode.PLAYER)
    with starting_engines():
        game.init()
    return game
