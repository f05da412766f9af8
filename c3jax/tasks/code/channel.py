"""What crosses between a judge and a program: lines of JSON that encode plain data. Runs inside the sandboxes.

A value crosses as what it is made of, never as an object: whatever class the program returns, the judge builds an int,
str, list ... of its own. What is no plain data is left to the two sides.
"""

from __future__ import annotations

import builtins
import os

# The C half of json: the rest of it imports re and enum, which takes longer than to start the interpreter.
from _json import encode_basestring_ascii, make_encoder, make_scanner

TYPE_CHECKING = False  # importing typing would take longer than all else that a program waits for
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Wrap = Callable[[Any], Any]  # an object that is no plain data -> JSON
    Unwrap = Callable[[str, Any], Any]  # the tag and the content of such JSON -> an object

DEEPEST = 10_000  # calls within each other: room for values some thousand levels deep, within the stack of a process
_EXACT = 2**53  # JSON's own integers end here; longer ones cross in hexadecimal, which takes linear time
_BASES = (int, float, complex, str, bytes, bytearray, list, tuple, dict, frozenset, set)


class Channel:
    """Lines to and from the other side, on descriptors that nothing else writes to by accident."""

    def __init__(self) -> None:
        self._incoming, self.outgoing = os.dup(0), os.dup(1)
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nowhere, descriptor)
        os.close(nowhere)
        self._buffer = bytearray()

    def receive(self) -> str:
        """Read a line; raises EOFError when the other side is gone."""
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            received = os.read(self._incoming, 1 << 16)
            if not received:
                raise EOFError
            self._buffer += received
        line = self._buffer[:end].decode("ascii")
        del self._buffer[: end + 1]
        return line

    def send(self, line: str) -> None:
        """Write a line of ASCII."""
        left = memoryview(line.encode("ascii") + b"\n")
        while left:
            left = left[os.write(self.outgoing, left) :]


def encode(value: Any, wrap: Wrap) -> Any:
    """Encode a value as JSON: lists as arrays, all other compounds as {tag: content}.

    Args:
      value: what crosses.
      wrap: encodes what is of no plain type, a subclass of one included.
    """
    kind = type(value)
    if value is None or kind is bool or kind is str or kind is float:
        return value
    if kind is int:
        return value if -_EXACT < value < _EXACT else {"int": hex(value)}
    if kind is list:
        return [encode(item, wrap) for item in value]
    if kind in _ENCODERS:
        tag, encode_content = _ENCODERS[kind]
        return {tag: encode_content(value, wrap)}
    if kind.__module__ in _ENCODERS_BY_NAME and kind.__qualname__ in _ENCODERS_BY_NAME[kind.__module__]:
        tag, encode_content = _ENCODERS_BY_NAME[kind.__module__][kind.__qualname__]
        return {tag: encode_content(value, wrap)}
    if kind is type and vars(builtins).get(value.__name__) is value:
        return {"type": value.__name__}
    if kind.__module__ == "numpy" and kind.__name__ != "ndarray" and hasattr(value, "item"):
        return encode(value.item(), wrap)
    return wrap(value)


def find_base(kind: type) -> type | None:
    """Find the plain type that a class is a subclass of."""
    return next((base for base in _BASES if issubclass(kind, base)), None)


def _encode_items(value: Any, wrap: Wrap) -> list[Any]:
    return [encode(item, wrap) for item in value]


def _encode_pairs(value: Any, wrap: Wrap) -> list[Any]:
    return [[encode(key, wrap), encode(item, wrap)] for key, item in value.items()]


def _encode_date(value: Any, wrap: Wrap) -> list[Any]:
    name = type(value).__name__
    items = value.__getinitargs__() if name == "timezone" else [getattr(value, part) for part in _DATES[name]]
    return [name, *(encode(item, wrap) for item in items)]


_DATES = {
    "date": ("year", "month", "day"),
    "time": ("hour", "minute", "second", "microsecond", "tzinfo"),
    "datetime": ("year", "month", "day", "hour", "minute", "second", "microsecond", "tzinfo"),
    "timedelta": ("days", "seconds", "microseconds"),
    "timezone": (),
}


_ENCODERS: dict[type, tuple[str, Callable[[Any, Wrap], Any]]] = {
    tuple: ("tuple", _encode_items),
    dict: ("dict", _encode_pairs),
    set: ("set", _encode_items),
    frozenset: ("frozenset", _encode_items),
    complex: ("complex", lambda value, wrap: [value.real, value.imag]),
    bytes: ("bytes", lambda value, wrap: value.hex()),
    bytearray: ("bytearray", lambda value, wrap: value.hex()),
    range: ("range", lambda value, wrap: [encode(end, wrap) for end in (value.start, value.stop, value.step)]),
    type({}.keys()): ("keys", _encode_items),
    type({}.values()): ("values", _encode_items),
    type({}.items()): ("items", _encode_items),
}
# By name, so that none of these modules is imported before it is needed.
_ENCODERS_BY_NAME: dict[str, dict[str, tuple[str, Callable[[Any, Wrap], Any]]]] = {
    "collections": {"deque": ("deque", lambda value, wrap: [value.maxlen, *_encode_items(value, wrap)])},
    "fractions": {"Fraction": ("fraction", lambda value, wrap: [hex(value.numerator), hex(value.denominator)])},
    "decimal": {"Decimal": ("decimal", lambda value, wrap: str(value))},
    "datetime": dict.fromkeys(_DATES, ("date", _encode_date)),
    "zoneinfo": {"ZoneInfo": ("zone", lambda value, wrap: value.key)},
}


def decode(encoded: Any, unwrap: Unwrap) -> Any:
    """Build a value from JSON.

    Args:
      encoded: what `encode` gave, or what the other side says it is.
      unwrap: builds from tags that are not of plain data, and their content.

    Raises:
      ValueError, TypeError, OverflowError, RecursionError: this encodes no value.
    """
    if isinstance(encoded, list):
        return [decode(item, unwrap) for item in encoded]
    if not isinstance(encoded, dict):
        return encoded
    ((tag, content),) = encoded.items()
    if tag in _BUILDERS_OF_TEXT:
        if type(content) is not str:
            raise TypeError(f"{tag} is encoded as text")
        return _BUILDERS_OF_TEXT[tag](content)
    if tag in _BUILDERS_OF_ITEMS:
        if type(content) is not list:
            raise TypeError(f"{tag} is encoded as a list")
        return _BUILDERS_OF_ITEMS[tag]([decode(item, unwrap) for item in content])
    return unwrap(tag, content)


def _build_complex(items: list[Any]) -> complex:
    real, imaginary = items
    return complex(float(real), float(imaginary))


def _build_range(items: list[Any]) -> range:
    start, stop, step = items
    return range(start, stop, step)


def _build_deque(items: list[Any]) -> Any:
    from collections import deque

    return deque(items[1:], items[0])


def _build_fraction(items: list[Any]) -> Any:
    from fractions import Fraction

    numerator, denominator = items
    if denominator == "0x0":
        raise ValueError("a fraction over zero")
    return Fraction(int(numerator, 16), int(denominator, 16))


def _build_decimal(text: str) -> Any:
    from decimal import Decimal, InvalidOperation

    try:
        return Decimal(text)
    except InvalidOperation as error:
        raise ValueError("no decimal") from error


def _build_date(items: list[Any]) -> Any:
    import datetime

    name, *parts = items
    if name not in _DATES:
        raise ValueError("no date")
    return getattr(datetime, name)(*parts)


def _build_zone(key: str) -> Any:
    import zoneinfo

    try:
        return zoneinfo.ZoneInfo(key)
    except (zoneinfo.ZoneInfoNotFoundError, OSError) as error:
        raise ValueError("no time zone") from error


def _build_type(name: str) -> type:
    found = vars(builtins).get(name)
    if not isinstance(found, type):
        raise ValueError(f"{name} is no built-in type")
    return found


_BUILDERS_OF_TEXT: dict[str, Callable[[str], Any]] = {
    "int": lambda text: int(text, 16),
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "decimal": _build_decimal,
    "zone": _build_zone,
    "type": _build_type,
}
_BUILDERS_OF_ITEMS: dict[str, Callable[[list[Any]], Any]] = {
    "tuple": tuple,
    "dict": dict,
    "set": set,
    "frozenset": frozenset,
    "complex": _build_complex,
    "range": _build_range,
    "keys": lambda items: dict.fromkeys(items).keys(),
    "values": lambda items: dict(enumerate(items)).values(),
    "items": lambda items: dict(items).items(),
    "deque": _build_deque,
    "fraction": _build_fraction,
    "date": _build_date,
}


class _Reading:
    """What json's scanner wants to know of a decoder: everything as json.loads has it."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float  # of NaN, Infinity and -Infinity


def _refuse(value: Any) -> Any:
    raise TypeError(f"a {type(value).__name__} is no JSON")


_scan = make_scanner(_Reading)  # type: ignore[arg-type]
_encode_json = make_encoder(None, _refuse, encode_basestring_ascii, None, ":", ",", False, False, True)


def write(message: Any) -> str:
    """Write a message as one line of ASCII: JSON, with NaN and Infinity."""
    return "".join(_encode_json(message, 0))


def read(line: str) -> Any:
    """Read a message from a line; raises ValueError or RecursionError."""
    try:
        message, end = _scan(line, 0)
    except StopIteration:
        raise ValueError("no JSON") from None
    if end != len(line):
        raise ValueError("more than one JSON value")
    return message
