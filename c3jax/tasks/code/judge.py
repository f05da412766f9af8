"""The judge's side: run the tests of a problem against a program that lives in another sandbox.

The tests run here, and what they call is a stand-in that asks the program's process and builds plain data from its
answer. No code of the program ever runs here. The judge serves case after case; each runs in a fork of its own.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import sys
import types
from typing import Any

from c3jax.tasks.code.channel import DEEPEST, Channel, read, write
from c3jax.tasks.code.link import Link, NotCovered, ProgramLost, Remote, format_error

_LONGEST_DETAIL = 300  # characters


def main() -> None:
    """Serve cases until the other side closes.

    A case is {"load": request for the program, "setup", "imports", "names", "named", "tests", "keeps"}. What is sent
    is "C" and a request for the program, to be answered with "R" and its reply or "X" and why there is none, and at
    the end "V" and a list with [outcome, detail] of each test: outcome is passed, wrong, error or unsafe, or the
    reason given with "X" for the test that was running and all after it.
    """
    sys.setrecursionlimit(DEEPEST)
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


def _judge(case: dict[str, Any], codes: list[types.CodeType | str], channel: Channel) -> list[list[str]]:
    link = Link(channel, case["named"])
    setup, *tests = codes
    outcomes: list[list[str]] = []
    namespace: dict[str, Any] = {"__name__": "tests"}
    first = _attempt(link, lambda: _prepare(link, case, setup, namespace))
    for code, text, keeps in zip(tests, case["tests"], case["keeps"], strict=True):
        if first is not None or link.lost is not None:
            outcomes.append(first or list(link.lost or ()))
            continue
        link.calls, link.keeps, link.test, link.crossed = 0, keeps, text, set()
        failure = _attempt(link, functools.partial(_run_test, code, dict(namespace)))
        if failure is None and link.calls == 0:
            failure = ["error", "the test never calls the program"]
        outcomes.append(failure or ["passed", ""])
    return outcomes


def _prepare(link: Link, case: dict[str, Any], setup: types.CodeType | str, namespace: dict[str, Any]) -> None:
    sys.modules["tests"] = types.ModuleType("tests")  # dataclasses look the module of a class up
    for name in case["imports"]:
        with contextlib.suppress(ImportError):  # then it is the test that fails, if it uses it
            namespace[name] = importlib.import_module(name)
    _run(setup, namespace)
    link.setup, link.setup_text = dict(namespace), case["setup"]
    link.classes = {
        name: value for name, value in namespace.items() if isinstance(value, type) and value.__module__ == "tests"
    }
    for name in case["names"]:
        namespace[name] = Remote(link, {"name": name})
    link.request(*case["load"])


def _run(code: types.CodeType | str, namespace: dict[str, Any]) -> None:
    if isinstance(code, str):
        raise NotCovered(f"a test is no Python: {code}")
    exec(code, namespace)


def _run_test(code: types.CodeType | str, namespace: dict[str, Any]) -> None:
    known = set(namespace)
    _run(code, namespace)
    for name in [name for name in namespace if name.startswith("test") and name not in known]:
        function = namespace[name]
        if isinstance(function, types.FunctionType) and function.__code__.co_argcount == 0:
            function()


def _attempt(link: Link, action: Any) -> list[str] | None:
    """Act; return the outcome and its detail if that failed."""
    failure = None
    try:
        action()
    except ProgramLost:
        pass
    except AssertionError as error:
        failure = ["wrong", f"AssertionError: {error}"]
    except BaseException as error:  # tests are code, and what they meet comes from the program
        failure = ["error", f"{type(error).__name__.lstrip('_')}: {format_error(error)}"]
    if link.lost is not None:  # a test that catches everything cannot hide this
        failure = list(link.lost)
    return None if failure is None else [failure[0], failure[1][:_LONGEST_DETAIL]]
