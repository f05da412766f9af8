"""Fields of a config on a command line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from c3jax.config.file import Field, list_fields, parse_override
from c3jax.schema import ConfigError

# The commands' own options; every other --name sets a field of the config.
OPTIONS = (
    *("--help", "--version", "--run-dir", "--checkpoint", "--json", "--sample", "--transcript"),
    *("--method", "--normalise", "--compare", "--out", "--from", "--to", "--dtype", "--adapters"),
    *("--unsafe-no-sandbox", "--accept-changes", "--format", "--configs", "--scored"),
    *("--problem", "--node", "--step", "--branch", "--say", "--say-file", "--continuations"),
    *("--contexts", "--groups", "--alternatives", "--held-out", "--placeholder", "--methods"),
    *("--platform", "--topology", "--target-config", "--only", "--return-of"),
)


def split_overrides(
    words: Sequence[str], list_known: Callable[[], list[Field]] = list_fields
) -> tuple[list[str], dict[str, Any]]:
    """Take --section.field VALUE and --section.field=VALUE out of a command line; after a word `--` nothing is taken.

    Args:
      words: of the command line.
      list_known: lists the fields that may be set.

    Returns:
      The words left for the command, in their order, and the values by path.

    Raises:
      ConfigError: a value is missing, or a command's own option is misspelt.
    """
    kept: list[str] = []
    overrides: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, has_value, text = word.partition("=")
        if word == "--":
            return [*kept, word, *rest], overrides
        if name not in OPTIONS and name.replace("_", "-") in OPTIONS:
            raise ConfigError(f"{name}: expected {name.replace('_', '-')}")
        if not name.startswith("--") or name in OPTIONS:
            kept.append(word)
            continue
        path = name[2:].replace("-", "_")
        if not has_value:
            if not rest or rest[0].startswith("--"):
                raise ConfigError(f"{path}: expected a value after {name}, got {rest[0] if rest else 'nothing'}")
            text = rest.pop(0)
        overrides[path] = parse_override(path, text, list_known)
    return kept, overrides
