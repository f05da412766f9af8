"""The judge's side: run the tests of a problem against a program that lives in another sandbox.

The tests run here, and what they call is a stand-in that asks the program's process and builds plain data from its
answer. No code of the program ever runs here. The judge serves case after case; each runs in a fork of its own.
"""

from __future__ import annotations

import builtins
import functools
import importlib
import os
import sys
import types
from collections.abc import Iterator
from typing import Any, NoReturn

from c3jax.tasks.code.channel import Channel, decode, encode, read, write

_LONGEST_DETAIL = 300  # characters
_LARGEST_CHUNK = 1024  # items of an iterator fetched at once
# A program that raises these inside a test's map() or next() would end the test's loop early, and so skip its checks.
_NOT_RAISED = (StopIteration, StopAsyncIteration)


def main() -> None:
    """Serve cases until the other side closes.

    A case is {"load": request for the program, "setup", "imports", "names", "tests", "keeps"}. What is sent is "C" and
    a request for the program, to be answered with "R" and its reply or "X" and why there is none, and at the end
    "V" and a list with [outcome, detail] of each test: outcome is passed, wrong, error or unsafe, or the reason given
    with "X" for the test that was running and all after it.
    """
    channel = Channel()
    while True:
        try:
            case = read(channel.receive())
        except EOFError:
            os._exit(0)
        codes = [_compile(text) for text in (case["setup"], *case["tests"])]
        if any("numpy" in text for text in (case["setup"], *case["tests"])):
            importlib.import_module("numpy")  # here, so that no later case has to
        child = os.fork()
        if child == 0:
            channel.send("V" + write(_judge(case, codes, channel)))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status != 0:
            os._exit(1)


@functools.lru_cache(maxsize=256)
def _compile(text: str) -> types.CodeType | str:
    try:
        return compile(text, "tests", "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        return f"{type(error).__name__}: {error}"


class _Lost(BaseException):
    """The program is gone, or what it says is no message."""


class _ProgramError(Exception):
    """An exception of a type that the program itself defines, or that a test must not meet."""


class _NotCovered(BaseException):
    """A test hands the program something that cannot leave this process."""


class _Link:
    """The way to the program."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.calls = 0
        self.keeps = False  # whether what a call does to its arguments is done to the test's own
        self.lost: tuple[str, str] | None = None
        self.remotes: dict[int, _Remote] = {}

    def request(self, *message: Any) -> tuple[Any, Any]:
        """Ask, and return the value and what comes with it, both still spelt."""
        if self.lost is not None:
            raise _Lost
        self.channel.send("C" + write(message))
        line = self.channel.receive()
        if line[0] == "X":
            self.lose(*read(line[1:]))
        try:
            reply = read(line[1:])
            if len(reply) == 3 and reply[0] == "value":
                return reply[1], reply[2]
            kind, name, text = reply
            if kind != "raise" or type(name) is not str or type(text) is not str:
                raise ValueError(kind)
        except (ValueError, TypeError, KeyError, RecursionError):
            self.lose("unsafe", "the program sent something that is no reply")
        self._raise(name, text)

    def build(self, spelt: Any) -> Any:
        """Build what the program returned."""
        try:
            return decode(spelt, self._unwrap)
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            self.lose("unsafe", "the program sent something that is no value")

    def lose(self, outcome: str, detail: str) -> NoReturn:
        self.lost = (outcome, detail)
        raise _Lost

    def call(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.calls += 1
        spelt = [[key, encode(value, _wrap)] for key, value in kwargs.items()]
        value, kept = self.request("call", target, [encode(item, _wrap) for item in args], spelt, self.keeps)
        result = self.build(value)
        if self.keeps:
            afterwards = self.build(kept)
            try:
                positional, named = afterwards
                pairs = [*zip(args, positional, strict=True), *zip(kwargs.values(), named, strict=True)]
            except (ValueError, TypeError):
                self.lose("unsafe", "the program sent something that is no reply")
            for before, after in pairs:
                _replace_content(before, after)
        return result

    def _unwrap(self, tag: str, content: Any) -> Any:
        if type(content) is not int:
            raise TypeError(tag)
        if tag == "iterator":
            return self._iterate(content)
        if tag != "object":
            raise ValueError(tag)
        return self.remotes.setdefault(content, _Remote(self, {"object": content}))

    def _iterate(self, handle: int) -> Iterator[Any]:
        count = 1
        while True:
            spelt, is_over = self.request("next", handle, count)
            items = self.build(spelt)
            if type(items) is not list:
                self.lose("unsafe", "the program sent something that is no reply")
            yield from items
            if is_over is not False:
                return
            count = min(2 * count, _LARGEST_CHUNK)

    def _raise(self, name: str, text: str) -> NoReturn:
        kind = vars(builtins).get(name)
        if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, _NOT_RAISED):
            try:
                error = kind(text)
            except TypeError:  # the Unicode errors take more than a message
                error = ValueError(text)
            raise error
        raise _ProgramError(f"{name}: {text}")


class _Remote:
    """Something that lives in the program: a function, a class or an object. It equals itself and nothing else."""

    __slots__ = ("_link", "_reference")

    def __init__(self, link: _Link, reference: dict[str, Any]) -> None:
        object.__setattr__(self, "_link", link)
        object.__setattr__(self, "_reference", reference)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._link.call(self._reference, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the protocols of Python and numpy, by which objects decide what they equal
            raise AttributeError(name)
        value, _ = self._link.request("get", self._reference, name)
        return self._link.build(value)

    def __setattr__(self, name: str, value: Any) -> None:
        raise _NotCovered("a test sets an attribute of an object of the program")


def _wrap(value: Any) -> Any:
    if isinstance(value, _Remote):
        return value._reference
    if hasattr(type(value), "__next__"):
        return {"iterator": [encode(item, _wrap) for item in value]}
    raise _NotCovered(f"a test hands the program a {type(value).__name__}")


def _replace_content(before: Any, after: Any) -> None:
    if type(before) is not type(after):
        return
    if isinstance(before, list | bytearray):
        before[:] = after
    elif isinstance(before, dict | set):
        before.clear()
        before.update(after)


def _judge(case: dict[str, Any], codes: list[types.CodeType | str], channel: Channel) -> list[list[str]]:
    link = _Link(channel)
    setup, *tests = codes
    outcomes: list[list[str]] = []
    namespace: dict[str, Any] = {"__name__": "tests"}
    first = _attempt(link, lambda: _prepare(link, case, setup, namespace))
    for code, keeps in zip(tests, case["keeps"], strict=True):
        if first is not None or link.lost is not None:
            outcomes.append(first or list(link.lost or ()))
            continue
        link.calls, link.keeps = 0, keeps
        failure = _attempt(link, functools.partial(_run_test, code, dict(namespace)))
        if failure is None and link.calls == 0:
            failure = ["error", "the test never calls the program"]
        outcomes.append(failure or ["passed", ""])
    return outcomes


def _prepare(link: _Link, case: dict[str, Any], setup: types.CodeType | str, namespace: dict[str, Any]) -> None:
    sys.modules["tests"] = types.ModuleType("tests")  # dataclasses look the module of a class up
    for name in case["imports"]:
        namespace[name] = importlib.import_module(name)
    _run(setup, namespace)
    for name in case["names"]:
        namespace[name] = _Remote(link, {"name": name})
    link.request(*case["load"])


def _run(code: types.CodeType | str, namespace: dict[str, Any]) -> None:
    if isinstance(code, str):
        raise _NotCovered(f"a test is no Python: {code}")
    exec(code, namespace)


def _run_test(code: types.CodeType | str, namespace: dict[str, Any]) -> None:
    known = set(namespace)
    _run(code, namespace)
    for name in [name for name in namespace if name.startswith("test") and name not in known]:
        function = namespace[name]
        if isinstance(function, types.FunctionType) and function.__code__.co_argcount == 0:
            function()


def _attempt(link: _Link, action: Any) -> list[str] | None:
    """Act; return the outcome and its detail if that failed."""
    failure = None
    try:
        action()
    except _Lost:
        pass
    except AssertionError as error:
        failure = ["wrong", f"AssertionError: {error}"]
    except BaseException as error:  # tests are code, and what they meet comes from the program
        failure = ["error", f"{type(error).__name__.lstrip('_')}: {_report(error)}"]
    if link.lost is not None:  # a test that catches everything cannot hide this
        failure = list(link.lost)
    return None if failure is None else [failure[0], failure[1][:_LONGEST_DETAIL]]


def _report(error: BaseException) -> str:
    try:
        return str(error)
    except (ValueError, RecursionError):  # of a number with too many digits, of something too deep
        return ""
