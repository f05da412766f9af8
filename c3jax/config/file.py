"""Configs as YAML: read, override, check and write them.

Everything that a user can get wrong in a config is said here in one sentence: the field's path, what was expected and
what was got.
"""

from __future__ import annotations

import copy
import difflib
import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

from c3jax.config.base import Document, Layers, list_lines, locate, read_layers
from c3jax.config.checks import check_config
from c3jax.config.fields import Field, has_list, list_fields
from c3jax.config.rounds import expand_rounds
from c3jax.config.run import RunConfig
from c3jax.config.switch import drop_other_kinds, fit_credit
from c3jax.schema import ConfigError, Section, kinds_of, sections_in, show_value
from c3jax.tasks.task import find_task

# Fields that had another name, by that name.
RENAMED = {
    "learner.clip": "learner.loss.clip_low and learner.loss.clip_high",
    "learner.aggregation": "learner.loss.aggregation",
    "credit.critic.solo_steps": "credit.critic.critic_only_steps",
}

_CONFIGS = Path(__file__).parents[1] / "configs"  # a link in a checkout, files in a wheel
_PAPER = "paper/"  # too many to be listed in a sentence

SectionType = TypeVar("SectionType", bound=Section)


def load_config(path: str | Path, overrides: dict[str, Any] | None = None) -> RunConfig:
    """Read a YAML config with its bases (`base.py`), apply overrides and check it.

    Args:
      path: of the file; a run's config.yaml is one too.
      overrides: values by dotted path, as in {"credit.method": "rloo"}.

    Returns:
      The config, which is frozen.

    Raises:
      ConfigError: in one sentence: the field's path, what was expected and what was got; of a config with bases, the
        file and the line too.
    """
    layers = _read_layers(path)
    tree = _override(layers.tree, overrides or {})
    if "kind" in tree and "task" not in tree:
        raise ConfigError(f"config {path}: expected that of a run, got that of a study (c3jax study {path})")
    try:
        return parse_config(tree)
    except ConfigError as error:
        raise locate(error, layers.locations, overrides or {}) from None


def find_config(path: str | Path, wanted: str = "a YAML file") -> Path:
    """The file of a config: one there is, or, by its name alone, one that comes with the package.

    Args:
      path: of the file, or its name.
      wanted: what is said to be expected where there is neither.

    Raises:
      ConfigError: there is neither.
    """
    given = Path(path)
    if str(path) and given.exists():
        return given
    files = {str(file.relative_to(_CONFIGS).with_suffix("")): file for file in sorted(_CONFIGS.rglob("*.yaml"))}
    shipped = {Path(name).name: file for name, file in files.items() if not name.startswith(_PAPER)}
    found = (files | shipped).get(str(path))
    if found is None:
        listed = dict.fromkeys(f"{_PAPER}..." if name.startswith(_PAPER) else Path(name).name for name in files)
        named = path or "an empty name"
        raise ConfigError(f"{named}: expected {wanted}, or one of {', '.join(listed)}, found none")
    return found


def find_config_folder(path: str) -> Path:
    """A folder of configs: one there is, or, by its name alone, one that comes with the package. Raises ConfigError."""
    folder = next((folder for folder in (Path(path), _CONFIGS / path) if folder.is_dir()), None)
    if folder is None or not list(folder.glob("*.yaml")):
        raise ConfigError(f"{path}: expected a folder of configs, found none")
    return folder


def name_config(path: str | Path) -> str:
    """What a config is called: its file's name without .yaml, dots and all."""
    return re.sub(r"\.ya?ml$", "", Path(path).name)


def read_tree(path: str | Path, overrides: dict[str, Any] | None = None) -> dict[str, Any]:
    """Read a YAML config as plain mappings and lists, bases and dotted overrides applied, unchecked.

    Raises ConfigError.
    """
    return _override(_read_layers(path).tree, overrides or {})


def _read_layers(path: str | Path) -> Layers:
    return read_layers(find_config(path), str(path), _read_document, find_config)


def _read_document(path: Path, name: str) -> Document:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise ConfigError(f"config {name}: cannot be read ({reason})") from None
    try:
        tree, lines = _parse_document(text)
    except _YAML_ERRORS as error:
        raise ConfigError(f"config {name}: not valid YAML ({_describe_yaml(error)})") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"config {name}: expected a mapping of sections, got {show_value(tree)}")
    return Document(tree, lines)


def _override(tree: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    drop_other_kinds(tree, overrides)
    for dotted, value in overrides.items():
        _set_dotted(tree, dotted, value)
    expand_rounds(tree)
    fit_credit(tree, overrides)
    return tree


def parse_config(tree: dict[str, Any]) -> RunConfig:
    """Check a run's config given as plain mappings and lists. Raises ConfigError with one sentence."""
    config = parse_section(tree, _find_schema(tree))
    check_config(config)
    return config


def _find_schema(tree: dict[str, Any]) -> type[RunConfig]:
    """The schema of a run: with a task of the user's own, that task's section in place of the built-in ones."""
    task = tree.get("task")
    kind = task.get("kind") if isinstance(task, dict) else None
    if not isinstance(kind, str) or ":" not in kind:
        return RunConfig
    declared = pydantic.Field(description=RunConfig.model_fields["task"].description)
    return pydantic.create_model("RunConfig", __base__=RunConfig, task=(find_task(kind).section, declared))


def parse_section(tree: dict[str, Any], section: type[SectionType]) -> SectionType:
    """Check plain mappings and lists against a section, field by field. Raises ConfigError with one sentence."""
    try:
        # JSON mode, because strict Python mode would refuse a list where a tuple is declared.
        return section.model_validate_json(json.dumps(tree))
    except pydantic.ValidationError as error:
        raise ConfigError(_describe(error, section)) from None


def dump_config(config: Section) -> str:
    """Write the resolved config as YAML that is read back to the same config."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def parse_override(dotted: str, text: str, list_known: Callable[[], list[Field]] = list_fields) -> Any:
    """Read one override: the text itself for a field of text, else as YAML does (4e-3, true, null, [2, 4]).

    Args:
      dotted: path of the field.
      text: as it stands on the command line.
      list_known: lists the config's fields.
    """
    kind = next((field.kind for field in list_known() if field.path == _as_listed(dotted)), None)
    if kind == "text":
        return text
    try:
        read, _ = _parse_document(text)
    except _YAML_ERRORS:
        return text
    return text if kind == "text|list" and not isinstance(read, list) else read


# --------------------------------------------------------------------------------------------------------------------
# YAML


# Beside its own, YAML lets through what its dates, its keys and its loops set off.
_MOST_PARTS = 100_000
_YAML_ERRORS = (yaml.YAMLError, ValueError, TypeError, RecursionError)


def _parse_document(text: str) -> tuple[Any, dict[str, int]]:
    """What a YAML document says, and the line of each of its parts."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        value = None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()
    if node is not None and _count_parts(node, {}) > _MOST_PARTS:
        raise ValueError(f"more than {_MOST_PARTS:,} parts, those that are named once and repeated counted each time")
    # Through JSON: no dates, and a part that is named once and repeated is a part of its own each time.
    return json.loads(json.dumps(value, default=str)), list_lines(node)


def _count_parts(node: yaml.Node, counted: dict[int, int]) -> int:
    """How many nodes a document has when each repeated part is written out; one inside itself counts once."""
    if id(node) not in counted:
        counted[id(node)] = 1
        entries = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = itertools.chain.from_iterable(entries) if isinstance(node, yaml.MappingNode) else entries
        counted[id(node)] = 1 + sum(_count_parts(part, counted) for part in parts)
    return counted[id(node)]


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
                raise ConfigError(f"{dotted}: expected an index below {len(node)} in the list, got {name!r}")
            key = int(name)
        elif not isinstance(node, dict):
            raise ConfigError(
                f"{dotted}: expected a field, got {'.'.join(dotted.split('.')[:depth])}, which holds none"
            )
        if depth == len(parents):
            node[key] = copy.deepcopy(value)  # a later override may reach into it
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


def _describe(error: pydantic.ValidationError, section: type[Section]) -> str:
    outer, _ = _locate(error.errors()[0]["loc"], section)
    # A field that takes several kinds of value complains once for each; the complaint from furthest inside is of the
    # kind that was meant.
    inner = [each for each in error.errors() if f"{_locate(each['loc'], section)[0]}.".startswith(f"{outer}.")]
    first = max(inner, key=lambda each: _locate(each["loc"], section)[0].count("."))
    kind = first["type"]
    path, sections = _locate(first["loc"], section)
    if kind == "extra_forbidden":
        return f"{path}: expected {_suggest_field(path, section)}"
    if kind == "missing":
        return f"{path}: expected a value, got nothing"
    if kind == "union_tag_not_found":
        return f"{path}.kind: expected a value, got nothing"
    if kind == "union_tag_invalid":
        kinds = ", ".join(kind for section in sections for kind in kinds_of(section))
        own = ", or your own as module:NAME" if path == "task" else ""
        return f"{path}.kind: expected one of {kinds}{own}, got {show_value(first['input']['kind'])}"
    # A field that takes several kinds of value is refused once for each kind.
    refused = [each for each in error.errors() if _locate(each["loc"], section)[0] == path]
    expected = [_EXPECTED.get(each["type"]) or each["msg"].removeprefix("Input should be ") for each in refused]
    return f"{path}: expected {' or '.join(expected)}, got {show_value(first['input'])}"


def _locate(location: tuple[int | str, ...], section: type[Section]) -> tuple[str, list[type[Section]]]:
    """A location as it is written in the config, and the sections declared there."""
    names: list[str] = []
    sections = [section]
    is_labelled = False  # the next part is no name, but the kind of value that pydantic tried
    for part in location:
        if isinstance(part, int):
            names.append(str(part))
        elif is_labelled:
            is_labelled = False
        elif len(sections) > 1:  # pydantic puts the section's kind after its name
            sections = [chosen for chosen in sections if part in kinds_of(chosen)]
        elif sections:  # below a value there is only the kind of value that pydantic tried
            names.append(part)
            declared = sections[0].model_fields.get(part)
            sections = sections_in(declared.annotation) if declared else []
            is_labelled = declared is not None and len(sections) == 1 and has_list(declared.annotation, is_bare=False)
    return ".".join(names), sections


def _suggest_field(path: str, root: type[Section]) -> str:
    known = [field.path for field in list_fields(root)]
    if _as_listed(path) in known:
        return f"a field of this {path.rpartition('.')[0]}.kind, got another kind's"
    for old, new in RENAMED.items():
        if f".{path}".endswith(f".{old}"):
            return f"{new}, as it is called now, got the old name"
    section, _, name = _as_listed(path).rpartition(".")
    beside = {field.removeprefix(f"{section}.").partition(".")[0] for field in known if field.startswith(section)}
    near = difflib.get_close_matches(name, sorted(beside), n=1)
    return f"a field of the config{f' ({near[0]}?)' if near else ''}, got an unknown one"


def _as_listed(dotted: str) -> str:
    return ".".join("N" if part.isdecimal() else part for part in dotted.split("."))
