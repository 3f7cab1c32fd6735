"""Loading of configs: a preset's name or a YAML path, with overrides, to a validated config."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel, ValidationError

from pipeline.base.errors import ConfigError
from pipeline.config import yaml_text
from pipeline.config.schema import RunConfig

# Next to the packages: a folder of this name in the current directory is unrelated.
PRESETS = Path(__file__).parents[2] / "configs"

STANDARD_INPUT = "-"


def preset_names() -> list[str]:
    """Names of the presets that ship with the project."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load_config(preset: str, overrides: Iterable[str] = ()) -> RunConfig:
    """Load the config of a preset's name or a YAML path, with overrides of the form ``dotted.key=value``.

    Args:
        preset: Name of a preset, path of a file or a pipe, or ``-`` for standard input.
        overrides: Settings; the last one of a key counts.

    Raises:
        ConfigError: The config is invalid. The message names the key, where it was given, its value, and the valid
            choices.
    """
    source, text, name = _read(preset)
    document = yaml_text.parse(text, source)
    if not isinstance(document.values, dict):
        holds = "is empty" if document.values is None else f"holds {type(document.values).__name__}"
        raise ConfigError(f"{source} must hold keys and values, but it {holds}")
    document.values.setdefault("name", name)
    return with_overrides(document, overrides, source)


def _read(preset: str) -> tuple[str, str, str]:
    """Source of a config in words, its text, and the name to use if it gives none."""
    if preset in preset_names():
        return f"preset {preset}", (PRESETS / f"{preset}.yaml").read_text(), preset
    if preset == STANDARD_INPUT:
        try:
            return "standard input", "" if sys.stdin is None else sys.stdin.read(), "stdin"
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"standard input cannot be read as text: {error}") from error
    path = Path(preset)
    if not path.exists() or path.is_dir():
        close = difflib.get_close_matches(preset, preset_names(), n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        found = "that path is a folder" if path.is_dir() else "there is no such file"
        raise ConfigError(
            f"{preset!r} is neither a preset nor a YAML file: {found}.{hint} Presets: {', '.join(preset_names())}"
        )
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as text: {error}") from error
    return str(path), text, path.stem if path.is_file() else "stdin"


def with_overrides(document: yaml_text.Document, overrides: Iterable[str], source: str) -> RunConfig:
    """Apply overrides to a document and validate it.

    Args:
        document: Parsed YAML document.
        overrides: Settings, as in ``load_config``.
        source: Source of the document, for messages.
    """
    places = {path: f"{source}, line {line}" for path, line in document.lines.items()}
    for override in overrides:
        _apply(document.values, override, places)
    return validate(document.values, source, places)


def split_override(override: str) -> tuple[str, str]:
    """Split ``dotted.key=value`` into the key and the text of the value.

    Raises:
        ConfigError: It has another form.
    """
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"-o {override}: expected dotted.key=value, for example -o evolve.population_size=8")
    return key, text


def _apply(values: dict[str, Any], override: str, places: dict[yaml_text.Path, str]) -> None:
    key, text = split_override(override)
    *sections, leaf = key.split(".")
    for name in sections:
        values = values.setdefault(name, {})
        if not isinstance(values, dict):
            raise ConfigError(f"-o {override}: {name} is a value, not a section")
    place = f"-o {override}"
    values[leaf] = yaml_text.parse(text, place).values
    path = (*sections, leaf)
    for below in [other for other in places if other[: len(path)] == path]:
        del places[below]
    places[path] = place


def validate(
    values: Mapping[str, Any], source: str, places: Mapping[yaml_text.Path, str] = MappingProxyType({})
) -> RunConfig:
    """Validate plain values against the schema.

    Args:
        values: Config, as read.
        source: Source of the config, in words.
        places: Place of each key and item, in words.

    Raises:
        ConfigError: The config is invalid. The message lists all errors, each with its key and place.
    """
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        lines = []
        for detail in error.errors():
            path = _nearest(detail, places)
            place = places.get(path, source)
            named = path == detail["loc"] and place.startswith("-o ")
            lines.append(f"{place}: {_explain(detail, named=named)}")
        raise ConfigError("\n".join(lines)) from error


def _nearest(detail: Any, places: Mapping[yaml_text.Path, str]) -> yaml_text.Path:
    """Key of an error if its place is known; or else a key above it or, in an unknown section, one below it."""
    path: yaml_text.Path = detail["loc"]
    if detail["type"] == "extra_forbidden" and path not in places:
        path = next((below for below in places if below[: len(path)] == path), path)
    while path and path not in places:
        path = path[:-1]
    return path


def _explain(detail: Any, *, named: bool) -> str:
    """Description of an error.

    Args:
        detail: One of the errors of pydantic.
        named: Whether the message has named the key and its value already.
    """
    location = [str(part) for part in detail["loc"]]
    key = ".".join(location)
    if detail["type"] == "extra_forbidden":
        valid = _keys_of(location[:-1])
        close = _sections_with(location[-1]) or difflib.get_close_matches(location[-1], valid, n=1)
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        where = f"in section {'.'.join(location[:-1])}" if location[:-1] else "at the top level"
        return f"unknown key {key}.{hint} Valid {where}: {', '.join(valid)}"
    if detail["type"] == "value_error":
        message = str(detail["ctx"]["error"])
        return f"{key}: {message}" if key else message
    if detail["type"] == "model_type":
        given = "" if named else f"{key} = {detail['input']!r}: "
        return f"{given}{key} is a section; set one of its keys: {', '.join(_keys_of(location))}"
    expected = f"expected {_expected(detail)}"
    return expected if named else f"{key} = {detail['input']!r}: {expected}"


# Expected values by the type of pydantic's error; the limits are in its context.
_EXPECTED = {
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
    "string_pattern_mismatch": "text that matches {pattern}",
    "finite_number": "a finite number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "missing": "a value",
}


def _expected(detail: Any) -> str:
    """Description of the valid values of a key that has another value."""
    template = _EXPECTED.get(detail["type"])
    return template.format(**detail.get("ctx", {})) if template is not None else detail["msg"]


def _sections_with(key: str) -> list[str]:
    """Dotted names of all keys with this name, in any section."""
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
    """Write a config as YAML, with every key."""
    return yaml_text.to_text(config.model_dump(mode="json"))
