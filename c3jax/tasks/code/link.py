"""The judge's way to the program: what a test hands over, and what comes back. Runs inside the judge's sandbox.

What the program returns is plain data, and what is built from it is plain, or an instance of a class that the tests
or their setup define. What a test hands over is rebuilt in the program's process by the steps that pickle would take;
a function that a test defines is called from there.
"""

from __future__ import annotations

import builtins
import copyreg
import functools
import sys
import types
from collections.abc import Iterator
from typing import Any, NoReturn

from c3jax.tasks.code.channel import Channel, decode, encode, find_base, read, write

_LARGEST_CHUNK = 1024  # items of an iterator fetched at once
# A program that raises these inside a test's map() or next() would end the test's loop early, and so skip its checks.
_NOT_RAISED = (StopIteration, StopAsyncIteration)
_FUNCTIONS = (types.FunctionType, types.MethodType, types.BuiltinMethodType, types.MethodWrapperType)
_COMPARISONS = ("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__contains__")


class ProgramLost(BaseException):
    """The program is gone, or what it says is no message."""


class _ProgramError(Exception):
    """An exception of a type that the program itself defines, or that a test must not meet."""


class NotCovered(BaseException):
    """A test hands the program something that cannot leave this process."""


class Link:
    """The way to the program."""

    def __init__(self, channel: Channel, named: list[str]) -> None:
        self.channel = channel
        self.named = named  # classes of the setup that the problem names
        self.calls = 0
        self.keeps = False  # whether what a call does to its arguments is done to the test's own
        self.lost: tuple[str, str] | None = None
        self.remotes: dict[int, Remote] = {}
        self.setup: dict[str, Any] = {}  # what the setup defines
        self.setup_text = ""
        self.test = ""
        self.classes: dict[str, type] = {}  # of the setup and the tests, by name
        self.crossed: set[type] = set()  # those of which the running test has handed an instance over
        self.handed: list[Any] = []  # functions and objects that were, by their numbers
        self.numbers: dict[int, int] = {}

    def request(self, *message: Any) -> tuple[Any, Any]:
        """Ask, and return the value and what comes with it, both still encoded."""
        reply = self._exchange(*message)
        while reply[0] == "ask":
            reply = self._exchange(*self._answer(reply))
        if len(reply) == 3 and reply[0] == "value":
            return reply[1], reply[2]
        if len(reply) != 3 or reply[0] != "raise" or type(reply[1]) is not str or type(reply[2]) is not str:
            self.fail("unsafe", "the program sent something that is no reply")
        self._raise(reply[1], reply[2])

    def _exchange(self, *message: Any) -> list[Any]:
        if self.lost is not None:
            raise ProgramLost
        self.channel.send("C" + write(message))
        line = self.channel.receive()
        if line[0] == "X":
            self.fail(*read(line[1:]))
        try:
            reply = read(line[1:])
        except (ValueError, RecursionError):
            reply = None
        if type(reply) is not list or not reply:
            self.fail("unsafe", "the program sent something that is no reply")
        return reply

    def _answer(self, question: list[Any]) -> tuple[Any, ...]:
        """Call a function of the test for the program."""
        values = self.build(question[1:])
        if len(values) != 3 or type(values[0]) is not int or not 0 <= values[0] < len(self.handed):
            self.fail("unsafe", "the program asked for something that is no function")
        number, args, pairs = values
        try:
            named = dict(pairs)
            keeps, self.keeps = self.keeps, False
            try:
                return "answer", self.encode(self.handed[number](*args, **named))
            finally:
                self.keeps = keeps
        except (ProgramLost, NotCovered):
            raise
        except BaseException as error:  # the program's to catch, as if it had called the function itself
            return "throw", type(error).__name__, format_error(error)

    def build(self, encoded: Any) -> Any:
        """Build what the program returned."""
        try:
            return self._decode(encoded, [])
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError):
            self.fail("unsafe", "the program sent something that is no value")

    def fail(self, outcome: str, detail: str) -> NoReturn:
        """End the case: the running test and all after it have this outcome.

        Args:
          outcome: error, unsafe, or the host's reason.
          detail: why.

        Raises:
          ProgramLost: always.
        """
        self.lost = (outcome, detail)
        raise ProgramLost

    def call(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function of the program, and do to the test's arguments what it did, where that counts.

        Args:
          target: what the program's side finds the function by.
          args, kwargs: the test's.

        Returns:
          Plain data, an instance of a class of the test's, or a stand-in for what stays in the program.
        """
        self.calls += 1
        values, pairs = self.encode([list(args), [[key, value] for key, value in kwargs.items()]])
        encoded, kept = self.request("call", target, values, pairs, self.keeps)
        result = self.build(encoded)
        if self.keeps:
            afterwards = self.build(kept)
            try:
                positional, named = afterwards
                pairs = [*zip(args, positional, strict=True), *zip(kwargs.values(), named, strict=True)]
            except (ValueError, TypeError):
                self.fail("unsafe", "the program sent something that is no reply")
            for before, after in pairs:
                _replace_content(before, after)
        return result

    def encode(self, value: Any) -> Any:
        """Encode what a test hands over."""
        sent: set[int] = set()

        def wrap(value: Any) -> Any:
            if isinstance(value, Remote):
                return value._reference
            if hasattr(type(value), "__next__"):
                return {"iterator": [encode(item, wrap) for item in value]}
            found = self._find(value, wrap)
            if found is not None:
                return found
            number = self.numbers.setdefault(id(value), len(self.handed))
            if number == len(self.handed):
                self.handed.append(value)  # and kept for good, so no other one takes its number
            if number in sent:
                return {"made": [number, None, [], None, [], []]}
            parts = None if isinstance(value, _FUNCTIONS) else _reduce(value)
            if parts is None:
                name = getattr(value, "__name__", "function")
                return {"function": [number, name, self.setup.get(name) is value]}
            sent.add(number)
            self.crossed.add(type(value))
            return {"made": [number, *(encode(part, wrap) for part in parts)]}

        return encode(value, wrap)

    def _find(self, value: Any, wrap: Any) -> Any:
        """Name what the program's side finds by its name: of the library, or a class of the setup or the tests."""
        if isinstance(value, types.ModuleType):
            return {"import": [value.__name__, ""]}
        module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", "")
        if not isinstance(value, type | types.FunctionType | types.BuiltinFunctionType) or module is None:
            return None
        if module != "tests":
            found: Any = sys.modules.get(module)
            for part in name.split("."):
                found = getattr(found, part, None)
            return {"import": [module, name]} if found is value else None
        if not isinstance(value, type):
            return None
        name = value.__name__
        self.classes[name] = value
        is_of_setup = self.setup.get(name) is value
        source = _find_source(self.setup_text if is_of_setup else self.test, name)
        return {"class": [name, [encode(base, wrap) for base in value.__bases__], source, is_of_setup]}

    def _unwrap(self, tag: str, content: Any, seen: list[Any]) -> Any:
        if tag == "instance":
            return self._build_instance(content, seen)
        if tag == "member":
            kind: Any = self.classes[content[0]]
            return kind.__members__[content[1]]
        if type(content) is not int or content < 0:
            raise TypeError(tag)
        if tag == "object":
            return self.remotes.setdefault(content, Remote(self, {"object": content}))
        if tag == "iterator":
            return self._iterate(content)
        if tag == "own":
            return self.handed[content]
        if tag == "again":
            return seen[content]
        raise ValueError(tag)

    def _build_instance(self, parts: list[Any], seen: list[Any]) -> Any:
        """Build an instance of a class of the setup or the tests, out of plain data and without calling the class.

        A class with an idea of its own of what equals what may have an instance that equals everything. It stays in
        the program, unless the test has handed one over or the problem names the class.
        """
        index = len(seen)
        seen.append(None)
        name, handle, content, state = parts
        kind = self.classes[name]
        base = find_base(kind)
        plain = self._decode(content, seen)
        if type(plain) is not (type(None) if base is None else base):
            raise TypeError(name)
        is_allowed = kind in self.crossed or name in self.named or _compares_by_content(kind, base or object)
        if not is_allowed:
            value = self._unwrap("object", handle["object"], seen)
        elif base is None:
            value = object.__new__(kind)
        else:
            value = base.__new__(kind, plain)
            _replace_content(value, plain)
        seen[index] = value
        for attribute, item in self._decode(state, seen).items():
            if attribute.startswith("__") or callable(getattr(kind, attribute, None)):
                raise ValueError(attribute)  # methods stay the class's own
            if is_allowed:
                object.__setattr__(value, attribute, item)
        return value

    def _decode(self, encoded: Any, seen: list[Any]) -> Any:
        return decode(encoded, lambda tag, content: self._unwrap(tag, content, seen))

    def _iterate(self, handle: int) -> Iterator[Any]:
        count = 1
        while True:
            encoded, is_over = self.request("next", handle, count)
            items = self.build(encoded)
            if type(items) is not list:
                self.fail("unsafe", "the program sent something that is no reply")
            yield from items
            if is_over is not False:
                return
            count = min(2 * count, _LARGEST_CHUNK)

    def _raise(self, name: str, text: str) -> NoReturn:
        kind = vars(builtins).get(name, self.classes.get(name))
        if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, _NOT_RAISED):
            try:
                error = kind(text)
            except TypeError:  # the Unicode errors take more than a message
                error = ValueError(text)
            raise error
        raise _ProgramError(f"{name}: {text}")


class Remote:
    """Something that lives in the program: a function, a class or an object. It equals itself and nothing else."""

    __slots__ = ("_link", "_reference")

    def __init__(self, link: Link, reference: dict[str, Any]) -> None:
        object.__setattr__(self, "_link", link)
        object.__setattr__(self, "_reference", reference)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it, in the program."""
        return self._link.call(self._reference, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the protocols of Python and numpy, by which objects decide what they equal
            raise AttributeError(name)
        value, _ = self._link.request("get", self._reference, name)
        return self._link.build(value)

    def __setattr__(self, name: str, value: Any) -> None:
        raise NotCovered("a test sets an attribute of an object of the program")


def _reduce(value: Any) -> tuple[Any, ...] | None:
    """Find the steps that make an object: a function, its arguments, a state, items to append, pairs to set.

    Returns:
      None for what can only be called.
    """
    try:
        reduce = copyreg.dispatch_table.get(type(value))
        reduced: Any = value.__reduce_ex__(2) if reduce is None else reduce(value)
    except Exception as error:  # each type has its own way to say no
        raise NotCovered(f"a test hands the program a {type(value).__name__}") from error
    if isinstance(reduced, tuple):
        function, args, state, items, pairs = (*reduced, None, None, None)[:5]
        return function, args, state, list(items or ()), [list(pair) for pair in pairs or ()]
    if not callable(value):
        raise NotCovered(f"a test hands the program a {type(value).__name__}")
    return None


@functools.cache
def _find_source(text: str, name: str) -> str:
    """Find the definition of a class in a test, after the imports of the test."""
    import ast

    module = ast.parse(text)
    for node in ast.walk(module):
        targets = node.targets if isinstance(node, ast.Assign) else []
        if name in [node.name if isinstance(node, ast.ClassDef) else "", *(getattr(one, "id", "") for one in targets)]:
            imports = [other for other in module.body if isinstance(other, ast.Import | ast.ImportFrom)]
            return "\n".join(map(ast.unparse, [*imports, node]))
    raise NotCovered(f"a test hands the program a {name}")


def _compares_by_content(kind: type, base: type) -> bool:
    """Whether a class compares as its base does, or as dataclasses do."""
    for name in _COMPARISONS:
        method = getattr(kind, name, None)
        is_generated = isinstance(method, types.FunctionType) and method.__code__.co_filename == "<string>"
        if method is not getattr(base, name, None) and not is_generated:
            return False
    return True


def _replace_content(before: Any, after: Any) -> None:
    base = find_base(type(before))
    if before is after or (base is not None and not isinstance(after, base)):
        return
    if base in (list, bytearray):
        before[:] = after
    elif base in (dict, set):
        before.clear()
        before.update(after)
    if type(before) is type(after) and hasattr(before, "__dict__"):
        vars(before).update(vars(after))


def format_error(error: BaseException) -> str:
    """The message of an exception; none where it cannot be written."""
    try:
        return str(error)
    except (ValueError, RecursionError):  # of a number with too many digits, of something too deep
        return ""
