"""Studies: a base config, and arms that override keys of it, each for several seeds."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import Field, ValidationError

from pipeline.base.errors import ConfigError
from pipeline.config import yaml_text
from pipeline.config.presets import PRESETS, load_config, preset_names, split_override, with_overrides
from pipeline.config.schema import RunConfig
from pipeline.config.section import Section

_STUDIES = PRESETS / "studies"
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._=+-]*$"
_OWN_KEYS = ("seed", "name")  # that a study sets itself


class EarlyStoppingConfig(Section):
    """Early stopping of arms with low validation returns, by asynchronous successive halving (ASHA)."""

    grace_generations: int = Field(ge=1, description="generations before the first decision on a run")
    reduction_factor: float = Field(3, gt=1, description="share of continued runs: one in this many at each decision")


class StudyConfig(Section):
    """A study: arms times seeds."""

    name: str = Field(pattern=_NAME, description="name of the study")
    base: str | dict[str, Any] = Field(
        description="config that the arms override: a preset, the path of a YAML file, or the config itself"
    )
    seeds: list[int] = Field(min_length=1, description="seeds of each arm; three at least for an answer")
    overrides: dict[str, Any] = Field({}, description="dotted keys and values, for all arms")
    arms: dict[str, dict[str, Any]] = Field(
        min_length=1, description="names of the arms, each with its dotted keys and values; the first is the reference"
    )
    concurrent: int | None = Field(
        None, ge=1, description="runs at once; null: as many as the cluster's CPUs allow when the study begins"
    )
    early_stopping: EarlyStoppingConfig | None = Field(None, description="null: every run is completed")


def study_names() -> list[str]:
    """Names of the studies that ship with the project."""
    return sorted(path.stem for path in _STUDIES.glob("*.yaml"))


def load_study(
    study: str, overrides: Sequence[str] = (), varied: Sequence[str] = (), seeds: Sequence[int] | None = None
) -> StudyConfig:
    """Load a study; or make one from a preset or a config file.

    Args:
        study: Name of a study that ships with the project, path of a study's YAML file, or a preset or the path of a
            config. A relative ``base`` in a file is relative to the file's folder.
        overrides: Settings of all arms, ``key=value``; they win over those of the file.
        varied: Keys with their values, ``key=a,b,c``; each combination becomes an arm. For presets and run configs
            only.
        seeds: Seeds of each arm; None for those of the file, or for seed 1.

    Raises:
        ConfigError: The study is invalid. The message names the key and the reason.
    """
    given = dict(_split(override) for override in overrides)
    path, source, values = _read(study)
    if values is None:
        return _of_config(study, given, varied, [1] if seeds is None else seeds)
    if varied:
        raise ConfigError(f"--vary {varied[0]}: {source} has arms of its own; name a preset or a config to vary")
    base = values.get("base")
    if isinstance(base, str) and base not in preset_names() and not Path(base).is_absolute():
        values["base"] = str(path.parent / base)
    merged = {"name": path.stem, **values, "overrides": {**(values.get("overrides") or {}), **given}}
    return _validate(merged if seeds is None else {**merged, "seeds": [*seeds]}, source)


def is_study(name: str) -> bool:
    """Whether this is a study that ships with the project, or the path of a study's YAML file."""
    return _read(name)[2] is not None


def _read(study: str) -> tuple[Path, str, dict[str, Any] | None]:
    """Path of a study, its source in words, and its values; None in place of these if it is no study."""
    path = _STUDIES / f"{study}.yaml" if study in study_names() else Path(study)
    source = f"study {study}" if study in study_names() else str(path)
    in_file = study not in preset_names() and path.is_file()
    return path, source, _values(path.read_text(), source) if in_file else None


def _values(text: str, source: str) -> dict[str, Any] | None:
    values = yaml_text.parse(text, source).values
    return values if isinstance(values, dict) and "arms" in values else None


def saved_study(text: str, source: str) -> StudyConfig:
    """Read the output of ``dump_study``.

    Raises:
        ConfigError: It is not a study.
    """
    values = _values(text, source)
    if values is None:
        raise ConfigError(f"{source} holds no study")
    return _validate(values, source)


def extended(saved: StudyConfig, study: StudyConfig) -> StudyConfig:
    """Study with the seeds of a saved one too, and with those of its arms that it neither renames nor redefines.

    Args:
        saved: Study that was begun in the folder.
        study: Study that goes on there; its first arm is the reference.

    Raises:
        ConfigError: Arms have different tests.
    """
    seeds = list(dict.fromkeys([*saved.seeds, *study.seeds]))
    known = [*study.arms.values()]  # an arm of the same keys was renamed
    others = {name: keys for name, keys in saved.arms.items() if name not in study.arms and keys not in known}
    return _validate({**study.model_dump(), "seeds": seeds, "arms": {**study.arms, **others}}, f"study {study.name}")


def _of_config(base: str, overrides: Mapping[str, Any], varied: Sequence[str], seeds: Sequence[int]) -> StudyConfig:
    """Study of a preset or a config file, with an arm for each combination of values."""
    try:
        name = load_config(base).name
    except ConfigError as error:
        raise ConfigError(f"{error}. Studies: {', '.join(study_names())}") from error
    if not varied and len(seeds) < 2:
        raise ConfigError(
            f"{base} with one seed is one run, not a study: name a key to vary, for example --vary "
            f"mdnrnn.init=trained,random or --seeds 1,2,3; or world-models run {base}"
        )
    choices = []
    for text in varied:
        key, separator, values = text.partition("=")
        if not separator or not key or "" in values.split(","):
            raise ConfigError(f"--vary {text}: expected KEY=VALUE,VALUE, for example mdnrnn.init=trained,random")
        choices.append([(key, yaml_text.parse(value, f"--vary {text}").values) for value in values.split(",")])
    arms: dict[str, dict[str, Any]] = {}
    for arm in itertools.product(*choices):
        arm_name = re.sub(r"[^A-Za-z0-9._=+-]", "-", "+".join(f"{key}={value}" for key, value in arm)) or name
        if arm_name in arms:
            raise ConfigError(f"--vary: two arms have the name {arm_name}; put arms like these into a study file")
        arms[arm_name] = dict(arm)
    # Its default folder is not that of a run of the config.
    study = {"name": f"{name}-study", "base": base, "seeds": [*seeds], "overrides": dict(overrides), "arms": arms}
    return _validate(study, "the command line")


def _split(override: str) -> tuple[str, Any]:
    key, text = split_override(override)
    return key, yaml_text.parse(text, f"-o {override}").values


def _validate(values: Mapping[str, Any], source: str) -> StudyConfig:
    try:
        study = StudyConfig.model_validate(values)
    except ValidationError as error:
        lines = [f"{source}: {'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in error.errors()]
        raise ConfigError("\n".join(lines)) from error
    if len(set(study.seeds)) < len(study.seeds):
        raise ConfigError(f"{source}: seeds: {study.seeds} names a seed twice")
    for name in study.arms:
        if not re.match(_NAME, name):
            raise ConfigError(f"{source}: arms.{name}: expected a name of letters, digits and ._=+-")
        for key in {**study.overrides, **study.arms[name]}:
            if key in _OWN_KEYS:
                raise ConfigError(f"{source}, arm {name}: {key} is set by the study; seeds are given in `seeds`")
    configs = {name: config_of(study, name, study.seeds[0]) for name in study.arms}
    first, reference = next(iter(configs.items()))
    for name, config in configs.items():
        for key, ours, theirs in (
            ("env.id", config.env.id, reference.env.id),
            ("tracks.test", config.tracks.test, reference.tracks.test),
        ):
            if ours != theirs:
                raise ConfigError(f"{source}: arms {first} and {name} have different tests: {key} differs")
    for name, other in itertools.combinations(study.arms, 2):
        if study.arms[name] == study.arms[other]:
            raise ConfigError(f"{source}: arms {name} and {other} are the same")
    return study


def config_of(study: StudyConfig, arm: str, seed: int, more: Mapping[str, Any] = MappingProxyType({})) -> RunConfig:
    """Config of a run of a study.

    Args:
        study: Study.
        arm: Name of the arm.
        seed: Seed of the run.
        more: Further settings by dotted key.

    Raises:
        ConfigError: The config is invalid; names the arm.
    """
    settings = {**study.overrides, **study.arms[arm], "name": f"{study.name}-{arm}-{seed}", "seed": seed, **more}
    overrides = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    try:
        if isinstance(study.base, str):
            return load_config(study.base, overrides)
        copy = json.loads(json.dumps(study.base))
        return with_overrides(yaml_text.Document(copy, {}), overrides, f"the base of study {study.name}")
    except ConfigError as error:
        raise ConfigError(f"study {study.name}, arm {arm}: {error}") from error


def dump_study(study: StudyConfig) -> str:
    """Write a study as YAML, with the base config in full, so that it depends on no other file."""
    values = study.model_dump(mode="json")
    if isinstance(study.base, str):
        values["base"] = load_config(study.base).model_dump(mode="json")
    return yaml_text.to_text(values)
