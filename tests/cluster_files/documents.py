"""Reads the shipped files, closes schemas, and plants typos."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import click
import jsonschema
import yaml
from ray.scripts.scripts import cli as ray_command

ROOT = Path(__file__).parents[2]
Keys = tuple[Any, ...]


def load(path: Path) -> Any:
    """A YAML file as plain data; anchors are resolved to copies."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return json.loads(json.dumps(yaml.load(path.read_text(), Loader=loader)))


def closed(schema: Any) -> Any:
    """A copy of a JSON or Kubernetes schema that refuses undescribed keys."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: closed(value) for key, value in schema.items()}
    if schema.get("x-kubernetes-int-or-string"):
        result["type"] = ["integer", "string"]
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        result["additionalProperties"] = False
    return result


def schema_problems(document: Any, schema: Any, where: str = "") -> list[str]:
    """One line for each place that a JSON schema refuses."""
    errors = jsonschema.Draft7Validator(schema).iter_errors(document)
    return [f"{where}{error.json_path}: {error.message}" for error in errors]


def ray_option_problems(command: str) -> list[str]:
    """The errors of Ray's own parser for a `ray ...` command."""
    try:
        parse_ray_command(command)
    except click.ClickException as error:
        return [f"{command}: {error.format_message()}"]
    return []


def parse_ray_command(command: str) -> dict[str, Any]:
    """The options of a `ray ...` command, as Ray's own parser reads them."""
    (_, name, *arguments), _ = words_and_environment(command)
    subcommand = ray_command.get_command(click.Context(ray_command), name)
    if subcommand is None:
        raise click.UsageError(f"no such command: {name}")
    options: dict[str, Any] = subcommand.make_context(name, arguments).params
    return options


def words_and_environment(command: str) -> tuple[list[str], dict[str, str]]:
    """A shell command's words, and the variables that are set before them."""
    words, environment = shlex.split(command), {}
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        environment[name] = value
    return words, environment


def keys_of(document: Any, path: Keys = ()) -> Iterator[Keys]:
    """The path of every key."""
    entries: Iterable[tuple[Any, Any]] = ()
    if isinstance(document, dict):
        entries = document.items()
        yield from ((*path, key) for key in document)
    elif isinstance(document, list):
        entries = enumerate(document)
    for key, value in entries:
        yield from keys_of(value, (*path, key))


def changed(document: Any, path: Keys, change: Callable[[Any, Any], None]) -> Any:
    """A changed copy: ``change`` gets the container of the path's last key, and that key."""
    copy = json.loads(json.dumps(document))
    holder = copy
    for key in path[:-1]:
        holder = holder[key]
    change(holder, path[-1])
    return copy


def misspelt(document: Any, path: Keys) -> Any:
    """A copy with a typo in one key."""
    return changed(document, path, lambda holder, key: holder.update({f"{key}x": holder.pop(key)}))


def with_value(document: Any, path: Keys, value: Any) -> Any:
    """A copy with another value in one place."""
    return changed(document, path, lambda holder, key: holder.__setitem__(key, value))


def unnoticed_typos(document: Any, problems: Callable[[Any], list[str]], free: Callable[[Keys], bool]) -> list[Keys]:
    """Keys in which a typo is not found, except those that are free to choose."""
    return [path for path in keys_of(document) if not free(path) and not problems(misspelt(document, path))]


def filled_in(text: str) -> str:
    """The block of a file with the settings for its user."""
    lines = text.splitlines()
    (first,) = [number for number, line in enumerate(lines) if line.endswith("# FILL IN")]
    indent = len(lines[first]) - len(lines[first].lstrip())
    block = []
    for line in lines[first + 1 :]:
        if len(line) - len(line.lstrip()) <= indent:
            break
        block.append(line)
    return "\n".join(block)
