"""From a preset's name or a YAML path, with overrides, to a checked config."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.config import RunConfig
from pipeline.errors import ConfigError, DamagedDataError

if TYPE_CHECKING:
    from pipeline.storage.store import Store

CONFIG_KEY = "config.yaml"  # of a run's resolved config in its directory


class _Loader(yaml.SafeLoader):
    """YAML as people write it: ``1e-4`` is a number, and a key given twice is an error."""


class _Dumper(yaml.SafeDumper):
    """Its counterpart: quotes a text that ``_Loader`` would read as a number."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
        list("-+.0123456789"),
    )


def _mapping_without_duplicates(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    for key in keys:
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is not a name", node.start_mark)
        if keys.count(key) > 1:
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", node.start_mark)
    return dict(zip(keys, (loader.construct_object(v, deep=True) for _, v in node.value), strict=True))


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping_without_duplicates)


def preset_names() -> list[str]:
    """The presets that ship with the project."""
    return sorted(
        path.name.removesuffix(".yaml") for path in resources.files("configs").iterdir() if path.name.endswith(".yaml")
    )


def parse_yaml(text: str, source: str) -> Any:
    """YAML to plain values; ``ConfigError`` names the source and line of what is wrong."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        told = str(error).replace('"<unicode string>"', source)
        raise ConfigError(f"{source} is not valid YAML: {told}") from error


def saved_config(store: Store, overrides: Iterable[str] = ()) -> RunConfig:
    """The resolved config that a run keeps in its directory, with overrides as ``load_config`` takes them.

    Raises:
        ConfigError: it is of another version, or was changed by hand.
    """
    values = parse_yaml(store.read(CONFIG_KEY).decode(), CONFIG_KEY)
    if not isinstance(values, dict):
        raise DamagedDataError(f"{store.locate(CONFIG_KEY)} holds no config: restore it from a copy")
    for override in overrides:
        _apply(values, override)
    return validate(values, store.locate(CONFIG_KEY))


def load_config(preset: str, overrides: Iterable[str] = ()) -> RunConfig:
    """The config of a preset's name or a YAML path, with overrides of the form ``dotted.key=value``.

    Raises:
        ConfigError: names the key, what was found, and the valid choices.
    """
    if preset in preset_names():
        source = f"preset {preset}"
        text = (resources.files("configs") / f"{preset}.yaml").read_text()
    else:
        path = Path(preset)
        if not path.is_file():
            close = difflib.get_close_matches(preset, preset_names(), n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise ConfigError(
                f"{preset!r} is neither a preset nor a YAML file.{hint} Presets: {', '.join(preset_names())}"
            )
        source = str(path)
        try:
            text = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} cannot be read as text: {error}") from error
    values = parse_yaml(text, source)
    if not isinstance(values, dict):
        holds = "is empty" if values is None else f"holds {type(values).__name__}"
        raise ConfigError(f"{source} must hold keys and values, but {holds}")
    values.setdefault("name", Path(preset).stem)
    for override in overrides:
        _apply(values, override)
    return validate(values, source)


def _apply(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"-o {override}: expected dotted.key=value, for example -o evolve.population_size=8")
    *sections, leaf = key.split(".")
    for name in sections:
        values = values.setdefault(name, {})
        if not isinstance(values, dict):
            raise ConfigError(f"-o {override}: {name} is a value, not a section")
    values[leaf] = parse_yaml(text, f"-o {override}")


def validate(values: Mapping[str, Any], source: str) -> RunConfig:
    """Check plain values against the schema; every error at once, each with its key."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        lines = [_explain(detail) for detail in error.errors()]
        raise ConfigError("\n".join(f"{source}: {line}" for line in lines)) from error


def _explain(detail: Any) -> str:
    location = [str(part) for part in detail["loc"]]
    key = ".".join(location)
    if detail["type"] == "extra_forbidden":
        valid = _keys_of(location[:-1])
        close = difflib.get_close_matches(location[-1], valid, n=1) or _sections_with(location[-1])
        hint = f" Did you mean {close[0]}?" if close else ""
        where = f"in section {'.'.join(location[:-1])}" if location[:-1] else "at the top level"
        return f"unknown key {key}.{hint} Valid {where}: {', '.join(valid)}"
    if detail["type"] == "value_error":
        message = str(detail["ctx"]["error"])
        return f"{key}: {message}" if key else message
    if detail["type"] == "model_type":
        return f"{key} = {detail['input']!r}: {key} is a section, set its keys: {', '.join(_keys_of(location))}"
    return f"{key} = {detail['input']!r}: {detail['msg']}"


def _sections_with(key: str) -> list[str]:
    """Dotted names of the keys of this name, in whatever section."""
    return [f"{section}.{key}" for section in RunConfig.model_fields if key in _keys_of([section])]


def _keys_of(sections: list[str]) -> list[str]:
    model: type[BaseModel] = RunConfig
    for name in sections:
        annotation = model.model_fields[name].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)


def dump(config: RunConfig) -> str:
    """A config as YAML, every key resolved."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False)
