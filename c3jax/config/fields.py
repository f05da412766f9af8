"""The fields of a config: their dotted paths, types, defaults and meaning, read out of the schema."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Sequence
from typing import Any, NamedTuple

from c3jax.config.run import RunConfig
from c3jax.schema import Section, kinds_of, sections_in


class Field(NamedTuple):
    """One field of the config, as `c3jax fields` shows it."""

    path: str  # dotted; N stands for an index in a list
    kind: str
    default: str
    text: str


def list_fields(section: type[Section] = RunConfig, prefix: str = "") -> list[Field]:
    """Every field of a section and of the sections below it, in order."""
    fields: list[Field] = []
    for name, declared in section.model_fields.items():
        path, annotation, text = prefix + name, declared.annotation, declared.description or ""
        sections = sections_in(annotation)
        if len(sections) > 1:
            fields += list_kinds(sections, f"{path}.", text)
        elif not sections or has_list(annotation):
            value = "required" if declared.is_required() else declared.default
            shown = json.dumps(value, default=lambda section: section.model_dump(exclude_defaults=True))
            default = value if isinstance(value, str) and value else shown
            fields.append(Field(path, _describe_type(annotation), default, text))
        if len(sections) == 1:
            fields += list_fields(sections[0], f"{path}.N." if has_list(annotation) else f"{path}.")
    return fields


def list_kinds(sections: Sequence[type[Section]], prefix: str, text: str) -> list[Field]:
    """Every field of sections of which `kind` chooses one; a field that not all of them have says whose it is.

    Args:
      sections: the kinds.
      prefix: of their fields' paths: "" or one that ends in a dot.
      text: what the field `kind` says.
    """
    kinds = ["|".join(kinds_of(section)) for section in sections]
    fields = [Field(f"{prefix}kind", "|".join(kinds), "required", text)]
    listed = {kind: list_fields(section, prefix) for kind, section in zip(kinds, sections, strict=True)}
    for field in dict.fromkeys(field for own in listed.values() for field in own):
        owners = [kind for kind, own in listed.items() if field in own]
        if field.path != f"{prefix}kind":
            is_shared = len(owners) == len(kinds)
            fields.append(field if is_shared else field._replace(text=f"For {' and '.join(owners)}: {field.text}"))
    return fields


def has_list(annotation: Any, is_bare: bool = True) -> bool:
    """Whether a field's value is a list (`is_bare`), or may be one beside another kind of value."""
    if typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return any(has_list(part) for part in typing.get_args(annotation))
    return is_bare and typing.get_origin(annotation) is tuple


def _describe_type(annotation: Any) -> str:
    arguments = typing.get_args(annotation)
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _describe_type(arguments[0])
    if origin is typing.Literal:
        return "|".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return "|".join(map(_describe_type, arguments))
    if origin is dict:
        return "section"
    if origin is tuple:
        return "list" if sections_in(arguments[0]) else f"list of {_describe_type(arguments[0])}"
    named = {int: "integer", float: "number", bool: "true|false", types.NoneType: "null"}
    return named.get(annotation, "text")  # text too is what is written in words of its own: a study's estimators
