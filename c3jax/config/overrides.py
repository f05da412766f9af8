"""Fields of a config on a command line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from c3jax.config.fields import Field, list_fields
from c3jax.config.file import parse_override
from c3jax.schema import ConfigError, expect

# The commands' own options; every other --name sets a field of the config.
OPTIONS = (
    *("--help", "--version", "--run-dir", "--checkpoint", "--json", "--sample", "--transcript"),
    *("--method", "--normalise", "--compare", "--out", "--from", "--to", "--dtype", "--adapters"),
    *("--unsafe-no-sandbox", "--accept-changes", "--format", "--configs", "--scored"),
    *("--problem", "--node", "--step", "--branch", "--say", "--say-file", "--continuations"),
    *("--contexts", "--groups", "--alternatives", "--held-out", "--placeholder", "--methods", "--gradients"),
    *("--platform", "--topology", "--target-config", "--only", "--return-of"),
)
SWEEP_OPTIONS = (*OPTIONS, "--seeds", "--print")  # of that command alone: a study has a field of seeds

Read = Callable[[str, str, Callable[[], list[Field]]], Any]


class Choice(NamedTuple):
    """One of the values that a sweep gives a field."""

    text: str  # as it is written on a command line
    value: Any


def split_overrides(
    words: Sequence[str],
    list_known: Callable[[], list[Field]] = list_fields,
    read: Read = parse_override,
    options: Sequence[str] = OPTIONS,
) -> tuple[list[str], dict[str, Any]]:
    """Take --section.field VALUE and --section.field=VALUE out of a command line; after a word `--` nothing is taken.

    Args:
      words: of the command line.
      list_known: lists the fields that may be set.
      read: reads a value, given its path, its text and `list_known`.
      options: the commands' own.

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
        if name not in options and name.replace("_", "-") in options:
            raise ConfigError(f"{name}: expected {name.replace('_', '-')}")
        if not name.startswith("--") or name in options:
            kept.append(word)
            continue
        path = name[2:].replace("-", "_")
        if not has_value:
            if not rest or rest[0].startswith("--"):
                raise ConfigError(f"{path}: expected a value after {name}, got {rest[0] if rest else 'nothing'}")
            text = rest.pop(0)
        overrides[path] = read(path, text, list_known)
    return kept, overrides


def split_sweep(words: Sequence[str]) -> tuple[list[str], dict[str, list[Choice]]]:
    """As `split_overrides` for the command line of a sweep, where a field takes several values. Raises ConfigError."""
    return split_overrides(words, list_fields, read_choices, SWEEP_OPTIONS)


def read_choices(dotted: str, text: str, list_known: Callable[[], list[Field]] = list_fields) -> list[Choice]:
    """Read the values that a sweep gives a field: `c3,rloo` is two, `[2,4]` is one list, `[2,4],[4,2]` two.

    A comma parts two values where it stands outside brackets, braces and quotes and no space follows it, so prose is
    one value; quotes around a value keep its commas, and are no part of it.

    Args:
      dotted: path of the field.
      text: of the command line.
      list_known: lists the fields that may be set.

    Returns:
      The values in their order.

    Raises:
      ConfigError: one is empty or given twice.
    """
    choices: list[Choice] = []
    for part in _split_commas(text):
        expect(bool(part), dotted, "values with commas between them", repr(text))
        value = parse_override(dotted, part, list_known)
        is_new = all(choice.value != value or type(choice.value) is not type(value) for choice in choices)
        expect(is_new, dotted, "every value once", f"{part} twice in {text!r}")
        choices.append(Choice(part, value))
    return choices


def _split_commas(text: str) -> list[str]:
    parts, start, depth, quote = [], 0, 0, ""
    for index, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'" and index == start:  # an apostrophe inside a word quotes nothing
            quote = character
        elif character in "[{":
            depth += 1
        elif character in "]}":
            depth -= 1
        elif character == "," and depth <= 0 and not text[index + 1 : index + 2].isspace():
            parts.append(text[start:index])
            start = index + 1
    parts.append(text[start:])
    return [part[1:-1] if len(part) > 1 and part[0] == part[-1] and part[0] in "\"'" else part for part in parts]
