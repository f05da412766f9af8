"""Configs as YAML: read, override, check and write them, and list their fields.

Everything that a user can get wrong in a config is said here in one sentence: the field's path, what was expected and
what was got.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import types
import typing
from pathlib import Path
from typing import Any, NamedTuple

import pydantic
import yaml

from c3jax.config import ConfigError, RunConfig, Section, slots_in
from c3jax.credit import methods


class Field(NamedTuple):
    """One field of the config, as `c3jax fields` shows it."""

    path: str  # dotted; N stands for a place in a list
    kind: str
    default: str
    text: str


def load_config(path: str | Path, overrides: dict[str, Any] | None = None) -> RunConfig:
    """Read a YAML config, apply dotted overrides ({"credit.method": "rloo"}) and check it. Raises ConfigError."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise ConfigError(f"config {path}: cannot be read ({reason})") from None
    try:
        tree = _parse_yaml(text)
    except _YAML_ERRORS as error:
        raise ConfigError(f"config {path}: not valid YAML ({_describe_yaml(error)})") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"config {path}: expected a mapping of sections, got {_show(tree)}")
    for dotted, value in (overrides or {}).items():
        _set_dotted(tree, dotted, value)
    return parse_config(tree)


def parse_config(tree: dict[str, Any]) -> RunConfig:
    """Check a config given as plain mappings and lists. Raises ConfigError with one sentence."""
    try:
        # JSON mode, because strict Python mode would refuse a list where a tuple is declared.
        config = RunConfig.model_validate_json(json.dumps(tree))
    except pydantic.ValidationError as error:
        raise ConfigError(_describe(error)) from None
    for check in (_check_protocol, _check_credit, _check_learner, _check_model):
        check(config)
    return config


def parse_override(dotted: str, text: str) -> Any:
    """Read one override: the text itself for a field of text, else as YAML does (4e-3, true, null, [2, 4])."""
    if _as_listed(dotted) in [field.path for field in list_fields() if field.kind == "text"]:
        return text
    try:
        return _parse_yaml(text)
    except _YAML_ERRORS:
        return text


def dump_config(config: RunConfig) -> str:
    """Write the resolved config as YAML that load_config reads back to the same config."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def list_fields(section: type[Section] = RunConfig, prefix: str = "") -> list[Field]:
    """Every field of a section and of the sections below it, in order."""
    fields: list[Field] = []
    for name, declared in section.model_fields.items():
        path, annotation, text = prefix + name, declared.annotation, declared.description or ""
        sections = _sections_in(annotation)
        if len(sections) > 1:
            fields += _list_kinds(sections, path, text)
        elif not sections or typing.get_origin(annotation) is tuple:
            default = "required" if declared.is_required() else _show_default(declared.default)
            fields.append(Field(path, _describe_type(annotation), default, text))
        if len(sections) == 1:
            is_list = typing.get_origin(annotation) is tuple
            fields += list_fields(sections[0], f"{path}.N." if is_list else f"{path}.")
    return fields


def _list_kinds(sections: list[type[Section]], path: str, text: str) -> list[Field]:
    """The fields of sections of which `kind` chooses one; a field that not all of them have says whose it is."""
    kinds = [_kind_of(section) for section in sections]
    fields = [Field(f"{path}.kind", "|".join(kinds), "required", text)]
    listed = {kind: list_fields(section, f"{path}.") for kind, section in zip(kinds, sections, strict=True)}
    for field in dict.fromkeys(field for own in listed.values() for field in own):
        owners = [kind for kind, own in listed.items() if field in own]
        if not field.path.endswith(".kind"):
            is_shared = len(owners) == len(kinds)
            fields.append(field if is_shared else field._replace(text=f"For {' and '.join(owners)}: {field.text}"))
    return fields


# --------------------------------------------------------------------------------------------------------------------
# Checks across fields


def _check_protocol(config: RunConfig) -> None:
    turns = config.protocol.turns
    seen: set[str] = set()
    for place, turn in enumerate(turns):
        path, earlier = f"protocol.turns.{place}", [before.name for before in turns[:place]]
        if turn.name in ("question", *earlier):
            raise ConfigError(f"{path}.name: expected a name no other slot has, got {turn.name!r}")
        for field, text in (("system", turn.system), ("user", turn.user)):
            try:
                slots = slots_in(text)
            except ValueError:
                raise ConfigError(
                    f"{path}.{field}: expected slots like {{question}}, {{{{ and }}}} for braces, got {_show(text)}"
                ) from None
            for slot in slots:
                if slot != "question" and slot not in earlier:
                    raise ConfigError(
                        f"{path}.{field}: expected slots of the question or an earlier turn, got {{{slot}}}"
                    )
            seen.update(slots)
    for place, turn in enumerate(turns[:-1]):
        if turn.name not in seen:
            raise ConfigError(
                f"protocol.turns.{place}: expected a later turn with the slot {{{turn.name}}}, got a message that"
                " no turn sees"
            )
    if "question" not in seen:
        raise ConfigError("protocol.turns: expected at least one turn with the slot {question}, got none")


def _check_credit(config: RunConfig) -> None:
    credit, turns = config.credit, config.protocol.turns
    if credit.method not in methods.METHODS:
        known = ", ".join(methods.METHODS)
        raise ConfigError(f"credit.method: expected one of {known}, got {credit.method!r}")
    if len(credit.fan_out) != len(turns):
        raise ConfigError(f"credit.fan_out: expected {len(turns)} numbers, one a turn, got {list(credit.fan_out)}")
    product = math.prod(credit.fan_out)
    if product != credit.budget:
        raise ConfigError(
            f"credit.fan_out: expected a product of {credit.budget} (credit.budget), got {list(credit.fan_out)}"
            f" with product {product}"
        )
    trained = tuple(turn.trained for turn in turns)
    if not any(trained):
        raise ConfigError("protocol.turns: expected at least one trained turn, got none")
    try:
        methods.check_pairing(credit.method, credit.fan_out, trained)
    except ValueError as error:
        raise ConfigError(f"credit.fan_out: {error}") from None
    try:
        methods.check_normalise(credit.method, credit.normalise)
    except ValueError as error:
        raise ConfigError(f"credit.normalise: {error}") from None


def _check_learner(config: RunConfig) -> None:
    learner, sampling = config.learner, config.sampling
    if sampling.top_p < 1.0 and sampling.top_k == 0:
        raise ConfigError(
            f"sampling.top_p: expected 1 while sampling.top_k is 0 (the tokens left to draw from are recorded, so"
            f" their number must be bounded), got {sampling.top_p}"
        )
    if config.problems % learner.minibatches:
        raise ConfigError(
            f"learner.minibatches: expected a divisor of problems ({config.problems}), got {learner.minibatches}"
        )
    minibatch = config.problems // learner.minibatches
    if learner.micro_problems is not None and minibatch % learner.micro_problems:
        raise ConfigError(
            f"learner.micro_problems: expected a divisor of the {minibatch} problems of a minibatch,"
            f" got {learner.micro_problems}"
        )
    if learner.kl.target is not None and learner.kl.coefficient == 0.0:
        raise ConfigError(
            "learner.kl.coefficient: expected more than 0 to begin with while learner.kl.target is given (the"
            " coefficient is steered by factors), got 0"
        )
    if config.checkpoint.best == "sampled_accuracy" and config.evaluation.samples == 0:
        raise ConfigError(
            "checkpoint.best: expected a metric that is measured, got 'sampled_accuracy' with no evaluation.samples"
        )


def _check_model(config: RunConfig) -> None:
    model = config.model
    if model.kind == "random":
        # Rotary positions turn a head's features in pairs.
        if model.width % (2 * model.heads) or model.heads % model.key_value_heads:
            raise ConfigError(
                "model.heads: expected an even number of the width's features a head, and key_value_heads that divides"
                f" heads, got width {model.width}, heads {model.heads}, key_value_heads {model.key_value_heads}"
            )
    if model.kind == "random" and config.task.kind != "arithmetic":
        raise ConfigError(f"model.kind: expected a pretrained model for task {config.task.kind}, got 'random'")
    if model.kind != "random" and config.task.kind == "arithmetic":
        raise ConfigError(f"model.kind: expected 'random' for task arithmetic, got {model.kind!r}")
    if config.imitation is not None and config.task.kind != "arithmetic":
        raise ConfigError(
            f"imitation: expected none for task {config.task.kind}, which demonstrates nothing, got a section"
        )


# --------------------------------------------------------------------------------------------------------------------
# YAML


# Beside its own, YAML lets through what its dates, its keys and its loops set off.
_YAML_ERRORS = (yaml.YAMLError, ValueError, TypeError, RecursionError)


def _parse_yaml(text: str) -> Any:
    # Through JSON: no dates, and a part that is named once and repeated is a part of its own in each place.
    return json.loads(json.dumps(yaml.load(text, Loader=_Loader), default=str))


def _resolve_numbers(resolver: type[_Loader] | type[_Dumper]) -> None:
    resolver.add_implicit_resolver(  # YAML 1.1 asks for a dot before the exponent; nobody expects that
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)$"),
        list("-+0123456789."),
    )


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads 4e-3 as a number and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Safe YAML that puts quotes round text which _Loader would read as a number."""


_resolve_numbers(_Loader)
_resolve_numbers(_Dumper)


def _describe_yaml(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    if isinstance(error, RecursionError):
        return "too many levels"
    return " ".join(str(error).split())


# --------------------------------------------------------------------------------------------------------------------
# Overrides and complaints


def _set_dotted(tree: dict[str, Any], dotted: str, value: Any) -> None:
    node: Any = tree
    *parents, last = dotted.split(".")
    for depth, name in enumerate([*parents, last]):
        key: Any = name
        if isinstance(node, list):
            if not name.isdecimal() or int(name) >= len(node):
                raise ConfigError(f"{dotted}: expected a place below {len(node)} in the list, got {name!r}")
            key = int(name)
        elif not isinstance(node, dict):
            raise ConfigError(
                f"{dotted}: expected a field, got {'.'.join(dotted.split('.')[:depth])}, which holds none"
            )
        if depth == len(parents):
            node[key] = value
        else:
            if isinstance(node, dict) and node.get(key) is None:
                node[key] = {}
            node = node[key]


# pydantic's words for these are a programmer's.
_EXPECTED = {
    "int_type": "an integer",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a section of fields",
    "model_type": "a section of fields",
    "model_attributes_type": "a section of fields",
    "string_pattern_mismatch": "a name of small letters, digits and _",
    "string_too_short": "some text",
    "too_short": "at least one entry",
}


def _describe(error: pydantic.ValidationError) -> str:
    first = error.errors()[0]
    place, kind = first["loc"], first["type"]
    if place[:1] in [(name,) for name, field in RunConfig.model_fields.items() if field.discriminator]:
        place = (place[0], *place[2:])  # pydantic puts the section's kind after its name
    path = ".".join(map(str, place))
    if kind == "extra_forbidden":
        return f"{path}: expected {_suggest_field(path)}"
    if kind == "missing":
        return f"{path}: expected a value, got nothing"
    if kind == "union_tag_not_found":
        return f"{path}.kind: expected a value, got nothing"
    if kind == "union_tag_invalid":
        kinds = ", ".join(map(_kind_of, _sections_in(RunConfig.model_fields[path].annotation)))
        return f"{path}.kind: expected one of {kinds}, got {_show(first['input']['kind'])}"
    expected = _EXPECTED.get(kind) or first["msg"].removeprefix("Input should be ")
    return f"{path}: expected {expected}, got {_show(first['input'])}"


def _suggest_field(path: str) -> str:
    known = [field.path for field in list_fields()]
    if path in known:
        return f"a field of this {path.partition('.')[0]}.kind, got another kind's"
    section, _, name = _as_listed(path).rpartition(".")
    beside = {field.removeprefix(f"{section}.").partition(".")[0] for field in known if field.startswith(section)}
    near = difflib.get_close_matches(name, sorted(beside), n=1)
    return f"a field of the config{f' ({near[0]}?)' if near else ''}, got an unknown one"


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _as_listed(dotted: str) -> str:
    return ".".join("N" if part.isdecimal() else part for part in dotted.split("."))


# --------------------------------------------------------------------------------------------------------------------
# Fields


def _kind_of(section: type[Section]) -> str:
    return typing.get_args(section.model_fields["kind"].annotation)[0]


def _show_default(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)


def _sections_in(annotation: Any) -> list[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [found for part in typing.get_args(annotation) for found in _sections_in(part)]


def _describe_type(annotation: Any) -> str:
    arguments = typing.get_args(annotation)
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _describe_type(arguments[0])
    if origin is typing.Literal:
        return "|".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return "|".join(map(_describe_type, arguments))
    if origin is tuple:
        return "list" if _sections_in(arguments[0]) else f"list of {_describe_type(arguments[0])}"
    return {int: "integer", float: "number", str: "text", bool: "true|false", types.NoneType: "null"}[annotation]
