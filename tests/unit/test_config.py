"""The schema refuses unknown, wrongly typed and impossible values, with the key and the expected value."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.config.schema import RunConfig, SeedRange, TracksConfig
from tests.counting import counting_config

OTHER_TRACKS = {
    "tracks.training": {"start": 1000, "stop": 2000},
    "tracks.validation": {"start": 100, "stop": 150},
    "tracks.test": {"start": 0, "stop": 100},
}


def refused(overrides: dict[str, Any]) -> str:
    """The message of the refusal."""
    with pytest.raises(ValidationError) as error:
        counting_config(overrides)
    (detail,) = error.value.errors()
    return ".".join(map(str, detail["loc"])) + ": " + detail["msg"]


def test_defaults_follow_the_paper() -> None:
    config = RunConfig()
    assert (config.vae.z_size, config.mdnrnn.hidden_size, config.mdnrnn.mixtures) == (32, 256, 5)
    assert (config.vae.learning_rate, config.vae.batch_size, config.vae.kl_tolerance) == (1e-4, 100, 0.5)
    assert (config.mdnrnn.learning_rate, config.mdnrnn.batch_size, config.mdnrnn.gradient_clip) == (1e-3, 100, 1.0)
    assert (config.evolve.population_size, config.evolve.episodes, config.evolve.sigma) == (64, 16, 0.1)
    assert (config.collect.episodes, config.collect.episode_steps, config.mdnrnn.window) == (10_000, 1000, 999)
    assert (config.controller.features, config.controller.z, config.env.view) == ("zh", "sample", "playfield")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"mdnrnn.window": 13}, "mdnrnn.window 13 is longer than any episode"),
        ({"env.action_repeat": 3}, r"mdnrnn.window 6 is longer than any episode \(collect.episode_steps 12, env.act"),
        ({"collect.episode_steps": 17}, "collect.episode_steps 17 is above env.max_episode_steps 16"),
        ({"evolve.episode_steps": 17}, "evolve.episode_steps 17 is above env.max_episode_steps 16"),
        ({"evolve.population_size": 1}, "evolve.population_size: Input should be greater than or equal to 3"),
        ({"mdnrnn.log_sigma_min": 1.0, "mdnrnn.log_sigma_max": 1.0}, "log_sigma_min 1.0 must be below log_sigma_max"),
        ({"vae.validation_fraction": 0.01}, "vae.validation_fraction 0.01 of collect.episodes 10 holds out 0"),
        ({"mdnrnn.validation_fraction": 0.01}, "mdnrnn.validation_fraction 0.01 of collect.episodes 10 holds out 0"),
        ({"collect.episodes": 2, "vae.validation_fraction": 0.8}, "vae.validation_fraction 0.8 of .* holds out 2"),
        (
            {"collect.episodes": 2, "vae.validation_fraction": 0.5, "mdnrnn.validation_fraction": 0.8},
            "mdnrnn.* holds out 2",
        ),
        ({**OTHER_TRACKS, "evaluate.episodes": 101}, r"evaluate.episodes 101 is more than tracks.test holds \(100"),
        ({**OTHER_TRACKS, "evolve.validation_episodes": 51}, "validation_episodes 51 is more than tracks.validation"),
        ({**OTHER_TRACKS, "collect.episodes": 1001}, "collect.episodes 1001 is more than tracks.training holds"),
        ({**OTHER_TRACKS, "tracks.test": {"start": 5, "stop": 5}}, "tracks.test: .*empty seed range"),
        ({**OTHER_TRACKS, "tracks.training": {"start": 6, "stop": 5}}, "tracks.training: .*empty seed range"),
        ({**OTHER_TRACKS, "tracks.test": {"start": 0, "stop": 2**31 + 1}}, "tracks.test.stop"),
        ({"evolve.episodes": 2, "evolve.replayed_tracks": 2}, "evolve.replayed_tracks 2 of 2 episodes .* no new track"),
        (
            {
                "evolve.episodes": 4, "evolve.replayed_tracks": 2,
                "evolve.episodes_from": [{"generation": 3, "episodes": 2}],
            },
            "evolve.replayed_tracks 2 of 2 episodes",
        ),
        (
            {"evolve.episodes": 2, "evolve.replayed_tracks": 1, "evolve.common_tracks": False},
            "evolve.replayed_tracks needs evolve.common_tracks",
        ),
        ({"seed": -1}, "seed"),
        ({"vae.learning_rate": 0.0}, "vae.learning_rate"),
        ({"vae.learning_rate": float("nan")}, "vae.learning_rate"),
        ({"evolve.sigma": float("inf")}, "evolve.sigma"),
        ({"rollouts.micro_batch": 0}, "rollouts.micro_batch"),
        ({"controller.features": "hz"}, "controller.features: Input should be 'z', 'zh' or 'zch'"),
    ],
)  # fmt: skip
def test_impossible_combination_is_refused_with_its_key(overrides: dict[str, Any], said: str) -> None:
    assert re.search(said, refused(overrides), re.DOTALL)


@pytest.mark.parametrize(
    "overrides",
    [
        {"mdnrnn.window": 12},
        {"collect.episode_steps": 16},
        {"evolve.episode_steps": 16},
        {"evolve.population_size": 3},
        {"evolve.episodes": 2, "evolve.replayed_tracks": 1},
        {**OTHER_TRACKS, "evaluate.episodes": 100, "evolve.validation_episodes": 50, "collect.episodes": 1000},
    ],
)
def test_largest_possible_value_is_accepted(overrides: dict[str, Any]) -> None:
    counting_config(overrides)


RANGES = {"training": (1000, 2000), "validation": (100, 200), "test": (0, 100)}


@pytest.mark.parametrize("one", RANGES)
@pytest.mark.parametrize("other", RANGES)
@pytest.mark.parametrize("where", ["first", "last", "inside", "around"])
def test_overlapping_ranges_are_refused(one: str, other: str, where: str) -> None:
    if one == other:
        return
    start, stop = RANGES[other]
    overlapping = {
        "first": (max(0, start - 5), start + 1),
        "last": (stop - 1, stop + 5),
        "inside": (start + 3, start + 4),
        "around": (max(0, start - 1), stop + 1),
    }[where]
    ranges = {name: SeedRange(start=a, stop=b) for name, (a, b) in {**RANGES, one: overlapping}.items()}
    with pytest.raises(ValidationError, match="must be disjoint") as error:
        TracksConfig(**ranges)
    assert one in str(error.value)


def test_adjacent_ranges_are_accepted() -> None:
    tracks = TracksConfig(
        test=SeedRange(start=0, stop=10), validation=SeedRange(start=10, stop=20), training=SeedRange(start=20, stop=30)
    )
    assert tracks.validation.size == 10


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("evolve.population_size", 8.0),
        ("evolve.population_size", "8"),
        ("evolve.population_size", True),
        ("evolve.population_size", None),
        ("vae.learning_rate", "1e-4"),
        ("vae.learning_rate", True),
        ("evolve.common_tracks", 1),
        ("evolve.common_tracks", "yes"),
        ("env.id", 3),
        ("vae", 3),
        ("vae", None),
        ("name", 5),
    ],
)
def test_wrong_type_is_refused_and_not_converted(key: str, value: Any) -> None:
    *_, leaf = key.split(".")
    values = counting_config().model_dump()
    section = values
    for name in key.split(".")[:-1]:
        section = section[name]
    section[leaf] = value
    with pytest.raises(ValidationError) as error:
        RunConfig.model_validate(values)
    assert [".".join(map(str, detail["loc"])) for detail in error.value.errors()] == [key]


def test_integer_is_accepted_as_a_number() -> None:
    assert counting_config({"evolve.sigma": 1}).evolve.sigma == 1.0


def test_config_is_immutable() -> None:
    config = counting_config()
    with pytest.raises(ValidationError, match="frozen"):
        config.evolve.sigma = 3.0  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 3  # type: ignore[misc]
