"""Parsing of YAML 1.2, with the line number of each key."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from pipeline.base.errors import ConfigError

# Keys and indices from the top of a document to a value.
Path = tuple[str | int, ...]

_TEXT, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"


@dataclass(frozen=True)
class Document:
    """A parsed document.

    Attributes:
        values: Plain Python values.
        lines: Line number, from 1, of each key and item, except of merged ones.
    """

    values: Any
    lines: Mapping[Path, int]


def parse(text: str, source: str) -> Document:
    """Read one document.

    Raises:
        ConfigError: The text is not valid YAML, or a key is given twice or is not text. The message names source and
            line.
    """
    try:
        root = _yaml().compose(text)
        lines = dict(_lines(root, (), source)) if root is not None else {}
        return Document(_yaml().load(text), lines)
    except (YAMLError, ValueError, RecursionError) as error:  # ValueError: an invalid date or number
        raise ConfigError(_description(error, source)) from error


def _description(error: Exception, source: str) -> str:
    mark = getattr(error, "problem_mark", None)
    place = source if mark is None or source.startswith("-o ") else f"{source}, line {mark.line + 1}"
    problem = getattr(error, "problem", None) or str(error)
    return f"{place}: this is not valid YAML; expected keys with values, one per line. The parser says: {problem}"


def to_text(values: Any) -> str:
    """Write values as YAML in block style, with keys in their order."""
    yaml, stream = _yaml(), io.StringIO()
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(values, stream)
    return stream.getvalue()


def _yaml() -> YAML:
    return YAML(typ="safe", pure=True)  # YAML 1.2 and plain values only; the C parser supports only YAML 1.1


def _lines(node: Node, path: Path, source: str) -> Iterator[tuple[Path, int]]:
    if isinstance(node, SequenceNode):
        for index, item in enumerate(node.value):
            yield (*path, index), item.start_mark.line + 1
            yield from _lines(item, (*path, index), source)
    elif isinstance(node, MappingNode):
        seen = set()
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.tag == _MERGE:
                continue
            if key.tag != _TEXT:
                given = key.value if isinstance(key.value, str) else "of several values"
                raise ConfigError(f"{source}, line {line}: key {given} is not a name. Put it in quotes to make it one.")
            if key.value in seen:
                raise ConfigError(f"{source}, line {line}: key {key.value!r} is given twice")
            seen.add(key.value)
            yield (*path, key.value), line
            yield from _lines(value, (*path, key.value), source)
