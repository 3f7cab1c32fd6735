"""Configs from a name or a path with overrides, and the error messages."""

from __future__ import annotations

import io
import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base.errors import ConfigError
from pipeline.config.presets import dump, load_config, preset_names, validate
from pipeline.config.schema import RunConfig
from pipeline.config.yaml_text import parse
from tests.counting import counting_config


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "own.yaml"
    file.write_text(dump(counting_config()))
    return file


def read(text: str) -> Any:
    return parse(text, "x").values


def refused(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        load_config(str(path), overrides)
    assert error.value.exit_code == 2
    return str(error.value)


# ---- presets and files


@pytest.mark.parametrize("name", preset_names())
def test_every_shipped_preset_is_valid_and_has_its_own_name(name: str) -> None:
    assert load_config(name).name == name


def test_smoke_is_among_the_presets() -> None:
    assert "smoke" in preset_names()


def test_path_is_read_like_a_preset(path: Path) -> None:
    assert load_config(str(path)) == counting_config()


def test_unknown_preset_is_refused_with_the_nearest_and_all_valid_ones() -> None:
    message = refused(Path("smok"))
    assert "'smok'" in message
    assert "Did you mean smoke?" in message
    assert all(name in message for name in preset_names())


@pytest.mark.parametrize("text", ["", "3", "- a\n- b", "just words"])
def test_a_file_without_keys_is_refused(path: Path, text: str) -> None:
    path.write_text(text)
    assert "must hold keys and values" in refused(path)


def test_binary_file_is_refused_with_its_name(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00\x01")
    assert "own.yaml" in refused(path)


def test_broken_yaml_is_refused_with_file_and_line(path: Path) -> None:
    path.write_text("seed: 1\nvae: {z_size: [}\n")
    message = refused(path)
    assert "own.yaml" in message
    assert "line 2" in message


@pytest.mark.parametrize(
    "text", ["seed: 1\nseed: 2\n", "seed: 1\nseed: 1\n", "vae: {epochs: 1, epochs: 2}\n", "vae: {}\nseed: 1\nvae: {}\n"]
)
def test_duplicate_key_is_refused(path: Path, text: str) -> None:
    path.write_text(text)
    assert "given twice" in refused(path)


@pytest.mark.parametrize("text", ["3: 4\n", "[1, 2]: 4\n", "{a: b}: 4\n", "null: 4\n", "vae: {true: 1}\n"])
def test_key_that_is_no_string_is_refused(path: Path, text: str) -> None:
    path.write_text(text)
    assert "is not a name" in refused(path)


def test_section_can_be_merged_into_another(path: Path) -> None:
    path.write_text("vae: &training {epochs: 3, threads: 1}\nmdnrnn: {<<: *training, epochs: 5}\n")
    config = load_config(str(path))
    assert (config.vae.epochs, config.vae.threads) == (3, 1)
    assert (config.mdnrnn.epochs, config.mdnrnn.threads) == (5, 1)


@pytest.mark.parametrize(("text", "value"), [("010", 10), ("0o10", 8), ("0x10", 16)])
def test_numbers_follow_yaml_1_2(path: Path, text: str, value: int) -> None:
    path.write_text(f"seed: {text}\n")
    assert load_config(str(path)).seed == value


@pytest.mark.parametrize("text", ["1:30", "yes", "2020-01-01"])
def test_numbers_of_yaml_1_1_only_are_refused_with_their_line(path: Path, text: str) -> None:
    path.write_text(f"name: x\nseed: {text}\n")
    assert f"{path}, line 2: seed = " in refused(path)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("env.action_repeat=0", "expected at least 1"),
        ("vae.precision=float16", "expected 'auto', 'float32' or 'bfloat16'"),
        ("collect.episodes=1.5", "expected a whole number"),
        ("evolve.sigma=.inf", "expected a finite number"),
        ("evolve.common_tracks=5", "expected true or false"),
        ("name=a/b", "expected text that matches ^[^/.][^/]*$"),
    ],
)
def test_refused_value_is_named_once_with_the_expected_ones(override: str, expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config("smoke", [override])
    assert str(error.value) == f"-o {override}: {expected}"


@pytest.mark.parametrize("key", ["sigma_from", "episodes_from"])
def test_duplicate_generation_is_refused_with_key_and_line(path: Path, key: str) -> None:
    what = key.partition("_")[0]
    path.write_text(f"evolve:\n  {key}:\n  - {{generation: 5, {what}: 2}}\n  - {{generation: 5, {what}: 3}}\n")
    assert f"{path}, line 2: evolve.{key}: generation 5 is given twice" in refused(path)


def test_config_is_read_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("seed: 77\n"))
    config = load_config("-", ["evolve.generations=5"])
    assert (config.seed, config.evolve.generations, config.name) == (77, 5, "stdin")


def test_config_is_read_from_a_pipe() -> None:
    """The shell's ``<(...)`` gives the command a pipe."""
    reading, writing = os.pipe()
    threading.Thread(target=lambda: os.fdopen(writing, "w").write("seed: 77\n")).start()
    assert load_config(f"/dev/fd/{reading}").seed == 77
    os.close(reading)


def test_preset_folder_in_the_current_folder_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = load_config("paper")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "paper.yaml").write_text("seed: 77\n")
    (tmp_path / "configs" / "mine.yaml").write_text("seed: 77\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert load_config("paper") == shipped
    assert "mine" not in preset_names()


def test_yaml_with_object_tags_is_refused(path: Path) -> None:
    path.write_text("seed: !!python/object/apply:os.getpid []\n")
    assert "own.yaml" in refused(path)


# ---- notations of numbers


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.e-4", "0.1e-3", ".1e-3", "+1e-4", "1.0e-04", "0.0001"])
def test_every_notation_of_a_small_number_is_read(path: Path, text: str) -> None:
    assert load_config(str(path), [f"vae.learning_rate={text}"]).vae.learning_rate == 1e-4


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_any_number_that_python_prints_is_read_back(value: float) -> None:
    assert read(repr(value)) == value
    assert isinstance(read(repr(value)), float)


@pytest.mark.parametrize(("text", "value"), [("3", 3), ("1_000", 1000), ("e4", "e4"), ("1e", "1e"), ("1e4x", "1e4x")])
def test_strings_like_numbers_are_not_converted(text: str, value: object) -> None:
    parsed = read(text)
    assert parsed == value
    assert type(parsed) is type(value)


# ---- overrides


def test_overrides_set_dotted_keys_and_the_last_one_wins(path: Path) -> None:
    config = load_config(
        str(path),
        [
            "seed=7",
            "evolve.population_size=8",
            "evolve.population_size=9",
            "tracks.test.stop=50",
            "evolve.target_return=null",
            "evolve.common_tracks=false",
            "env={max_episode_steps: 20}",
            "name=a=b",
        ],
    )
    assert (config.seed, config.evolve.population_size, config.tracks.test.stop) == (7, 9, 50)
    assert config.evolve.target_return is None
    assert config.evolve.common_tracks is False
    assert config.env.max_episode_steps == 20
    assert config.env.id == "CarRacing-v3", "a whole section replaces the section"
    assert config.name == "a=b"
    assert config.tracks.test.start == 0, "one key of a section leaves the others"


def test_overrides_do_not_affect_the_next_config() -> None:
    assert load_config("smoke", ["seed=77"]).seed == 77
    assert load_config("smoke").seed != 77


@pytest.mark.parametrize("override", ["", "seed", "=3", "evolve.population_size"])
def test_override_without_key_and_value_is_refused_with_an_example(path: Path, override: str) -> None:
    message = refused(path, override)
    assert f"-o {override}: expected dotted.key=value" in message
    assert "evolve.population_size=8" in message


def test_an_override_below_a_value_is_refused(path: Path) -> None:
    assert "seed is a value, not a section" in refused(path, "seed.x=3")


def test_override_with_invalid_yaml_is_refused_with_its_text(path: Path) -> None:
    assert "-o seed=[" in refused(path, "seed=[")


# ---- error messages


def test_unknown_key_is_refused_with_the_nearest_and_the_valid_keys(path: Path) -> None:
    message = refused(path, "evolve.populaton_size=8")
    assert "unknown key evolve.populaton_size" in message
    assert "Did you mean population_size?" in message
    assert "Valid in section evolve: environment, game_from, select, validation_dreams, population_size" in message


def test_an_unknown_section_is_refused_with_the_valid_ones(path: Path) -> None:
    message = refused(path, "seed=1", "evolv.sigma=1")
    assert message.startswith("-o evolv.sigma=1: unknown key evolv.")
    assert "Did you mean evolve?" in message
    assert "Valid at the top level: name, seed, env, tracks, collect, vae" in message


def test_unknown_nested_key_is_refused_with_the_valid_ones(path: Path) -> None:
    assert "Valid in section tracks.test: start, stop" in refused(path, "tracks.test.step=1")


def test_wrong_value_is_refused_with_key_value_and_expectation(path: Path) -> None:
    message = refused(path, "collect.policy=brownien")
    assert "collect.policy=brownien" in message
    assert "'brownian', 'white', 'repeat' or 'random-controller'" in message


def test_all_errors_are_reported_together_each_with_its_place(path: Path) -> None:
    path.write_text("vae:\n  z_size: 4\n  epochs: 0\nevolve:\n  nonsense: 1\n")
    first, second, third = refused(path, "seed=-1").splitlines()
    assert first == "-o seed=-1: expected at least 0"
    assert second.startswith(f"{path}, line 3: vae.epochs = 0: ")
    assert third.startswith(f"{path}, line 5: unknown key evolve.nonsense.")


def test_an_impossible_combination_is_refused_with_both_keys(path: Path) -> None:
    message = refused(path, "mdnrnn.window=100")
    assert "mdnrnn.window 100 is longer than any episode" in message
    assert "choose a window of at most 12" in message


# ---- dump


def test_dumped_config_has_every_key_and_is_read_back_unchanged() -> None:
    config = counting_config({"vae.learning_rate": 1e-7, "evolve.target_return": None, "name": "1e5"})
    text = dump(config)
    assert validate(read(text), "x") == config
    assert yaml.safe_load(text).keys() == RunConfig.model_fields.keys()


def test_config_without_a_name_has_the_name_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("seed: 3\n")
    assert load_config(str(path)).name == "mine"


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden"])
def test_name_outside_the_folder_of_runs_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"^-o name="):
        load_config("smoke", [f"name='{name}'"])


def test_key_without_its_section_is_found_in_the_section() -> None:
    with pytest.raises(ConfigError, match=r"unknown key population_size\. Did you mean evolve\.population_size\?"):
        load_config("smoke", ["population_size=8"])
    with pytest.raises(ConfigError, match=r"Did you mean evolve\.generations or rounds\.generations\?"):
        load_config("smoke", ["generations=5"])


def test_value_in_place_of_a_section_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"-o encode=8: encode is a section; set one of its keys: batch_size"):
        load_config("smoke", ["encode=8"])


def test_empty_file_is_refused_as_empty(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("")
    with pytest.raises(ConfigError, match=r"mine\.yaml must hold keys and values, but it is empty"):
        load_config(str(path))
