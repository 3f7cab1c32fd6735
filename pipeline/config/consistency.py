"""Checks of key combinations across the sections of a config."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.config.agent import MdnRnnConfig
    from pipeline.config.evolution import DreamConfig
    from pipeline.config.schema import RunConfig


def check_heads(dream: DreamConfig, mdnrnn: MdnRnnConfig) -> None:
    """Refuse dreams of an M that is not trained, or with rewards that it does not predict.

    Raises:
        ValueError: M is not trained, or lacks the head. The message names the keys, and a remedy.
    """
    if mdnrnn.init == "random":
        raise ValueError(
            "mdnrnn.init 'random' leaves M untrained, and its dreams have nothing to do with the environment: set it "
            "to trained, in a new run if there is an M already"
        )
    if dream.reward == "model" and mdnrnn.reward_weight == 0:
        raise ValueError(
            "dream.reward 'model' needs an M that predicts rewards: set mdnrnn.reward_weight above 0, in a new "
            "run if M is trained already"
        )
    if dream.reward == "survival" and mdnrnn.done_weight == 0:
        raise ValueError(
            "dream.reward 'survival' needs an M that predicts ends, or all dreams have one return: set "
            "mdnrnn.done_weight above 0, in a new run if M is trained already"
        )


def check_consistency(config: RunConfig) -> None:
    """Refuse a config whose keys contradict each other.

    Raises:
        ValueError: Keys contradict each other. The message names them, their values, and a remedy.
    """
    longest = config.env.actions_in(config.collect.episode_steps)
    if config.collect.episode_steps > config.env.max_episode_steps:
        raise ValueError(
            f"collect.episode_steps {config.collect.episode_steps} is above env.max_episode_steps "
            f"{config.env.max_episode_steps}: no episode is that long"
        )
    if config.mdnrnn.window > longest:
        raise ValueError(
            f"mdnrnn.window {config.mdnrnn.window} is longer than any episode (collect.episode_steps "
            f"{config.collect.episode_steps}, env.action_repeat {config.env.action_repeat}): "
            f"choose a window of at most {longest}"
        )
    if config.evolve.episode_steps is not None and config.evolve.episode_steps > config.env.max_episode_steps:
        raise ValueError(
            f"evolve.episode_steps {config.evolve.episode_steps} is above env.max_episode_steps "
            f"{config.env.max_episode_steps}: no episode is that long"
        )
    fewest = min([config.evolve.episodes, *(change.episodes for change in config.evolve.episodes_from)])
    if config.evolve.replayed_tracks >= fewest:
        raise ValueError(
            f"evolve.replayed_tracks {config.evolve.replayed_tracks} of {fewest} episodes per candidate leave no "
            "new track: choose fewer replayed tracks, or more episodes"
        )
    if config.evolve.replayed_tracks and not config.evolve.common_tracks:
        raise ValueError(
            "evolve.replayed_tracks needs evolve.common_tracks: a track's difficulty is measured by the returns of "
            "the whole population"
        )
    for stage, episodes, tracks, key in (
        ("evaluate.episodes", config.evaluate.episodes, config.tracks.test, "tracks.test"),
        (
            "evolve.validation_episodes",
            config.evolve.validation_episodes,
            config.tracks.validation,
            "tracks.validation",
        ),
        ("collect.episodes", config.collect.episodes, config.tracks.training, "tracks.training"),
    ):
        if episodes > tracks.size:
            raise ValueError(f"{stage} {episodes} is more than {key} holds ({tracks.size} tracks)")
    if config.evolve.environment == "dream":
        check_heads(config.dream, config.mdnrnn)
        if (config.evolve.game_from or 0) > config.evolve.generations:
            raise ValueError(
                f"evolve.game_from {config.evolve.game_from} is above evolve.generations {config.evolve.generations}: "
                "no generation would be scored in the environment. Lower it, or set it to null"
            )
        only_dreams = config.evolve.game_from is None
        if config.evolve.replayed_tracks and only_dreams:
            raise ValueError("evolve.replayed_tracks: a dream has no track. Set it to 0, or evolve.environment to game")
        for key in ("episode_steps", "stall_steps"):
            if getattr(config.evolve, key) is not None and only_dreams:
                raise ValueError(
                    f"evolve.{key} has no effect in dreams: set it to null (dream.max_steps limits a dream)"
                )
        if config.evolve.select == "dream" and not only_dreams:
            raise ValueError(
                "evolve.select 'dream' would choose by dreams among generations that evolve.game_from scores in the "
                "environment: set it to game"
            )
        if config.evolve.select == "dream" and config.evolve.target_return is not None:
            raise ValueError(
                "evolve.target_return would be compared with returns in dreams, which a flawed M makes arbitrarily "
                "high: set it to null, or evolve.select to game"
            )
    elif config.evolve.select == "dream" or config.evolve.game_from is not None:
        key = "select 'dream'" if config.evolve.select == "dream" else f"game_from {config.evolve.game_from}"
        raise ValueError(f"evolve.{key} needs evolve.environment 'dream'")
    for section, fraction in (
        ("vae", config.vae.validation_fraction),
        ("mdnrnn", config.mdnrnn.validation_fraction),
    ):
        collected = {"collect.episodes": config.collect.episodes}
        if config.rounds.count > 1:
            collected["rounds.episodes"] = config.rounds.episodes
        for key, count in collected.items():
            held_out = round(count * fraction)
            if not 0 < held_out < count:
                raise ValueError(
                    f"{section}.validation_fraction {fraction} of {key} {count} holds out {held_out} episodes: at "
                    "least one must be held out, and at least one must remain for training"
                )
