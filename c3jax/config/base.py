"""Configs in layers: `base: other.yaml`, or a list, of which a config holds only the differences.

Every file is laid over its bases once: those of a list from the first to the last, and a base that several files share
below all of them. Sections merge field by field; lists and scalars replace what they meet, and so does a section of
another `kind`, whose fields are others. A mapping of indices laid over a list changes those entries of it:

    base: duo.yaml
    protocol: {turns: {0: {max_tokens: 2048}}}
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from c3jax.schema import ConfigError, show_value

BASE = "base"


class Location(NamedTuple):
    """Where something stands."""

    file: Path
    line: int  # from 1

    def __str__(self) -> str:
        return f"{os.path.relpath(self.file)}, line {self.line}"


class Document(NamedTuple):
    """One YAML file: its fields, and the line of each by its dotted path."""

    tree: dict[str, Any]
    lines: Mapping[str, int]


class Layers(NamedTuple):
    """A config with its bases laid under it."""

    tree: dict[str, Any]
    locations: dict[str, Location]  # of fields, by their dotted paths; empty for a config without bases


def read_layers(path: Path, name: str, read: Callable[[Path, str], Document], find: Callable[[str], Path]) -> Layers:
    """Read a config and, where it has any, its bases.

    Args:
      path: of the file.
      name: what complaints call it.
      read: reads one file, whose name for complaints it is given too.
      find: the file of a name that stands beside nobody, that of a config which comes with the package.

    Returns:
      The fields without `base`, and for a config with bases where each of them stands.

    Raises:
      ConfigError: in one sentence, where a file is missing or unreadable, bases go round in a circle, or an index is
        beyond its list.
    """
    documents: dict[Path, Document] = {}
    _visit(path, name, (), documents, read, find)
    layers = Layers({}, {})
    if len(documents) == 1:
        return layers._replace(tree=documents[path.resolve()].tree)
    for file, document in documents.items():
        _lay(layers, document, file, layers.tree, document.tree, "")
    return layers


def _visit(
    path: Path,
    name: str,
    above: tuple[Path, ...],
    documents: dict[Path, Document],
    read: Callable[[Path, str], Document],
    find: Callable[[str], Path],
) -> None:
    """Add a file to `documents`, each of its bases before it."""
    file = path.resolve()
    if file in above:
        circle = " -> ".join(part.name for part in (*above[above.index(file) :], file))
        raise ConfigError(f"config {above[0].name}: expected bases that end somewhere, got {circle}")
    if file in documents:
        return
    document = read(path, name)
    bases = document.tree.pop(BASE, [])
    location = Location(file, document.lines.get(BASE, 1))
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) and base for base in bases):
        raise ConfigError(f"base: expected a YAML file or a list of them, got {show_value(bases)} ({location})")
    for base in bases:
        beside = path.parent / base
        if not beside.exists():
            try:
                beside = find(base)
            except ConfigError:
                raise ConfigError(f"base: expected a YAML file, found none at {beside} ({location})") from None
        _visit(beside, os.path.relpath(beside), (*above, file), documents, read, find)
    documents[file] = document


def _lay(layers: Layers, document: Document, file: Path, under: Any, over: dict[str, Any], prefix: str) -> None:
    """Lay the fields `over` on the section or list `under`, in place."""
    for name, value in over.items():
        path = f"{prefix}{name}"
        location = Location(file, document.lines.get(path, 1))
        key: Any = name
        if isinstance(under, list):
            key = int(name)
            if key >= len(under):
                raise ConfigError(f"{path}: expected an index below {len(under)} in the list, got {name} ({location})")
        there = under[key] if isinstance(under, list) else under.get(key)
        if _is_mergeable(there, value):
            layers.locations[path] = location
            _lay(layers, document, file, there, value, f"{path}.")
            continue
        under[key] = value
        for old in [known for known in layers.locations if known == path or known.startswith(f"{path}.")]:
            del layers.locations[old]
        inner = (known for known in document.lines if known == path or known.startswith(f"{path}."))
        layers.locations.update((known, Location(file, document.lines[known])) for known in inner)


def _is_mergeable(under: Any, over: Any) -> bool:
    if not isinstance(over, dict):
        return False
    if isinstance(under, list):
        return all(name.isdecimal() for name in over)
    return isinstance(under, dict) and ("kind" not in over or over["kind"] == under.get("kind"))


def list_lines(node: yaml.Node | None, prefix: str = "") -> dict[str, int]:
    """The line of everything in a YAML document, from 1, by its dotted path; the document is constructed already, so
    what a merge brings stands among its keys.
    """
    lines: dict[str, int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            path = f"{prefix}{key.value}"
            lines[path] = key.start_mark.line + 1
            lines |= list_lines(value, f"{path}.")
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[f"{prefix}{index}"] = value.start_mark.line + 1
            lines |= list_lines(value, f"{prefix}{index}.")
    return lines


def locate(error: ConfigError, locations: Mapping[str, Location], overridden: Mapping[str, Any]) -> ConfigError:
    """The complaint with the file and line where its field, or the nearest section around it, stands.

    As it is where the field was overridden, or stands in no file.

    Args:
      error: begins with the dotted path of its field.
      locations: from `Layers`.
      overridden: fields of the command line, by their dotted paths.
    """
    path = str(error).partition(":")[0]
    if any(f"{path}.".startswith(f"{name}.") or f"{name}.".startswith(f"{path}.") for name in overridden):
        return error
    while path and path not in locations:
        path = path.rpartition(".")[0]
    return ConfigError(f"{error} ({locations[path]})") if path else error
