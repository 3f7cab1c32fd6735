"""``world-models watch``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.base.errors import ConfigError
from pipeline.cli.arguments import FORMATTER, READ_HELP, above_zero, run_dir, seed

if TYPE_CHECKING:
    from pipeline.cli.arguments import Commands

_EXAMPLES = """\
examples:
  world-models watch pretrained:carracing --out drive.mp4        an agent that comes with the package
  world-models watch runs/laptop                                 the first test track, into laptop-0.mp4
  world-models watch runs/laptop --track 17 --dream              M's dream of the same drive beside it
  world-models watch s3://bucket/laptop --out drive.mp4
"""
_PICTURES_PER_SECOND = 25


def add_parser(commands: Commands) -> None:
    """Add ``watch``."""
    text = "write a video of an episode: the scene, what V sees, V's reconstruction, and M's dream"
    command = commands.add_parser(
        "watch",
        help=text,
        description=f"{text}.\nThe video is H.264 in MP4. On a test track the return is that of the evaluation.\n"
        "Nothing is written to the run.",
        epilog=_EXAMPLES,
        formatter_class=FORMATTER,
    )
    command.add_argument("run_dir", metavar="RUN", type=run_dir, help=READ_HELP)
    command.add_argument("--track", type=seed, metavar="SEED", help="track seed (default: the first test track)")
    command.add_argument(
        "--dream", action="store_true", help="show M's dream of the same drive, begun again every 50 actions"
    )
    command.add_argument(
        "--temperature", type=above_zero, default=1.0, metavar="T", help="uncertainty of the dream (default: 1.0)"
    )
    command.add_argument("--out", type=Path, metavar="FILE", help="file of the video (default: NAME-SEED.mp4)")
    command.set_defaults(perform=_watch)


def _watch(options: argparse.Namespace) -> int:
    from collections.abc import Iterator
    from fractions import Fraction

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.base.progress import Progress, Update
    from pipeline.data.trained_agent import TrainedAgent
    from pipeline.envs.registry import traits_of
    from pipeline.rollouts.video import encode_video
    from pipeline.storage.run_dir import open_store
    from pipeline.view.episode import Shot, episode_shots

    store = open_store(options.run_dir)
    trained = TrainedAgent.read(store)
    config = trained.config
    track = config.tracks.test.start if options.track is None else options.track
    out: Path = options.out or Path(f"{config.name}-{track}.mp4")
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {out.absolute().parent}")
    actions_per_second = traits_of(config.env).steps_per_second / config.env.action_repeat
    every = max(1, round(actions_per_second / _PICTURES_PER_SECOND))
    seen: list[Shot] = []
    with Progress("watch", "step") as show:

        def pictures() -> Iterator[NDArray[np.uint8]]:
            for shot in episode_shots(
                trained, track, dream=options.dream, every=every, temperature=options.temperature
            ):
                show(Update(shot.steps, config.env.max_episode_steps, {"return": f"{shot.episode_return:.1f}"}))
                seen[:] = [shot]
                yield shot.picture

        video = encode_video(pictures(), Fraction(actions_per_second / every).limit_denominator(1000))
    partial = out.with_name(f".{out.name}.part")
    partial.write_bytes(video)
    partial.replace(out)
    (last,) = seen
    print(f"return {last.episode_return:.1f} in {last.steps} steps on track {track}: {out}")
    return 0
