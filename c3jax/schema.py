"""What every section of a config is made of, and how it names what people vary."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args

import pydantic

from c3jax.types import UserError


class ConfigError(UserError):
    """A config that cannot be run; the message is one sentence for the user."""


class Section(pydantic.BaseModel):
    """A frozen part of the config that refuses unknown fields and converts nothing."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


Positive = Annotated[int, pydantic.Field(ge=1)]
Count = Annotated[int, pydantic.Field(ge=0)]
Seed = Annotated[int, pydantic.Field(ge=0, lt=2**32)]  # JAX takes 32 bits of it: beyond them runs would coincide
Share = Annotated[float, pydantic.Field(ge=0.0, le=1.0)]
Decay = Annotated[float, pydantic.Field(ge=0.0, lt=1.0)]
PositiveFloat = Annotated[float, pydantic.Field(gt=0.0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, pydantic.Field(ge=0.0, allow_inf_nan=False)]


def expect(is_met: bool, path: object, expected: str, got: object) -> None:
    """Raise ConfigError, in one sentence, unless what is expected of a field is met.

    Args:
      is_met: whether it is.
      path: of the field, or of the file that is to be as expected.
      expected, got: the words for what there should be, and for what there is.
    """
    if not is_met:
        raise ConfigError(f"{path}: expected {expected}, got {got}")


def show_value(value: Any) -> str:
    """A value of a config as it is shown in a complaint: JSON, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


# --------------------------------------------------------------------------------------------------------------------
# What people vary: a row of a literal table, or a record of the user's own


class Origin(NamedTuple):
    """The user's own file that a record was taken from."""

    name: str  # "module:NAME", as the config has it
    path: Path


def load_named(field: str, name: str, table: Mapping[str, Any], is_fitting: Callable[[Any], str | None]) -> Any:
    """Find what a config names: a row of a table, or with a colon an object of a module or a file of the user's.

    `riddles:RIDDLES` is looked for on the path and in the working folder, `./tasks/riddles.py:RIDDLES` where it says.
    A row that is itself such a text is loaded when it is asked for. The folder of a file joins the path, so that
    worker processes, which are given it, import the module by the same name.

    Args:
      field: dotted path of the config's field, for complaints.
      name: what stands there.
      table: the built-in rows by name.
      is_fitting: says of what was found what else was expected, as in "a Task"; None where it will do.

    Raises:
      ConfigError: in one sentence, where there is no such row, module, file or object, the module raises as it is
        imported, or the object will not do.
    """
    if ":" not in name:
        if name not in table:
            raise ConfigError(f"{field}: expected one of {', '.join(table)}, or your own as module:NAME, got {name!r}")
        found = table[name]
        return _load_object(field, found) if isinstance(found, str) else found
    found = _load_object(field, name)
    expected = is_fitting(found)
    if expected is not None:
        raise ConfigError(f"{field}: expected {expected} at {name}, got {type(found).__name__}")
    return found


def find_origin(name: str) -> Origin | None:
    """The file behind a name with a colon; None for a row of a table, and for what `load_named` has not loaded."""
    module = sys.modules.get(_name_module(name.rpartition(":")[0])) if ":" in name else None
    return None if module is None or module.__file__ is None else Origin(name, Path(module.__file__))


def _load_object(field: str, name: str) -> Any:
    where, _, attribute = name.rpartition(":")
    module_name, is_file = _name_module(where), where.endswith(".py")
    path = Path(where).resolve() if is_file else None
    if path is not None and not path.is_file():
        raise ConfigError(f"{field}: expected a file, found none at {path}")
    folder = str(path.parent if path is not None else Path.cwd())
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a user's module may raise anything as it is imported
        if isinstance(error, ModuleNotFoundError) and error.name == module_name.partition(".")[0]:
            raise ConfigError(f"{field}: expected a module on the path or in {folder}, found no {where!r}") from None
        reason = f"{type(error).__name__}: {error}".rstrip(": ")
        raise ConfigError(f"{field}: importing {where} failed ({reason})") from error
    if path is not None and Path(module.__file__ or "").resolve() != path:
        raise ConfigError(f"{field}: expected a file name that no other module has, got {path.name}: rename it")
    if not attribute or not hasattr(module, attribute):
        raise ConfigError(f"{field}: expected a name that {where} defines after the colon, got {attribute!r}")
    return getattr(module, attribute)


def _name_module(where: str) -> str:
    return Path(where).stem if where.endswith(".py") else where


def kinds_of(section: type[Section]) -> tuple[str, ...]:
    """The kinds that a section is one of."""
    return get_args(section.model_fields["kind"].annotation)


def sections_in(annotation: Any) -> list[type[Section]]:
    """The sections among what a field may hold."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [found for part in get_args(annotation) for found in sections_in(part)]
