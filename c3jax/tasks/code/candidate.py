"""The program's side: load untrusted code, then call what it defines when the judge asks. Runs inside a sandbox.

Nothing here decides anything. The code shares this process and may change all of it; what it can say to the judge is
what any return value can say.
"""

from __future__ import annotations

import os
import sys

from c3jax.tasks.code.channel import Channel, decode, encode, read, write

TYPE_CHECKING = False  # importing typing would take longer than all else that a program waits for
if TYPE_CHECKING:
    import ast
    from collections.abc import Callable, Iterator
    from typing import Any


def main() -> None:
    """Answer requests until the judge's side closes, one line each.

    ["load", imports, preamble, blocks, fenced] -> ["value", null, null]
    ["call", target, args, kwargs, is_kept]     -> ["value", value, args and kwargs afterwards or null]
    ["get", target, name]                       -> ["value", value, null]
    ["next", handle, count]                     -> ["value", list of the next items, whether there are no more]
    or ["raise", name of the exception's type, its message].
    """
    channel = Channel()
    program = _Program()
    while True:
        try:
            request = read(channel.receive())
        except EOFError:
            os._exit(0)
        try:
            line = write(_PERFORM[request[0]](program, *request[1:]))
        except BaseException as error:  # whatever the code raises is its answer
            line = write(["raise", *_describe(error)])
        channel.send(line)


class _Program:
    """The loaded code, and the objects of it that the judge holds handles to."""

    def __init__(self) -> None:
        # A module that can be found: dataclasses and pickling look their class's module up.
        self.module = type(sys)("solution")
        sys.modules["solution"] = self.module
        self.objects: list[Any] = []
        self.handles: dict[int, int] = {}

    def wrap(self, value: Any) -> Any:
        is_iterator = hasattr(type(value), "__next__")
        if id(value) not in self.handles:  # objects are kept for good, so no other one takes the number of one of them
            self.handles[id(value)] = len(self.objects)
            self.objects.append(_Items(value) if is_iterator else value)
        return {"iterator" if is_iterator else "object": self.handles[id(value)]}

    def unwrap(self, tag: str, content: Any) -> Any:
        if tag == "name":
            if content not in self.module.__dict__:
                raise NameError(f"name {content!r} is not defined")
            return self.module.__dict__[content]
        if tag == "iterator":
            return iter([decode(item, self.unwrap) for item in content])
        return self.objects[content]


class _Items:
    """An iterator whose error, if it raises one, comes after the items before it."""

    def __init__(self, items: Iterator[Any]) -> None:
        self.items = items
        self.error: BaseException | None = None

    def take(self, count: int) -> tuple[list[Any], bool]:
        taken: list[Any] = []
        try:
            if self.error is not None:
                raise self.error
            for _ in range(count):
                taken.append(next(self.items))
        except StopIteration:
            return taken, True
        except BaseException as error:  # the code's own; the items before it are asked for first, then it is raised
            if not taken:
                raise
            self.error = error
        return taken, False


def _load(program: _Program, imports: str, preamble: str, blocks: list[str], is_fenced: bool) -> list[Any]:
    *earlier, last = blocks
    body = last if is_fenced else _cut_prose(last)
    texts = [imports, preamble, *map(_keep_definitions, earlier), body]
    if preamble and not _parses(body):
        texts[-1] = preamble + "\n" + body  # what is left of a function whose head was given
    for text in texts:
        exec(compile(text, "solution", "exec", dont_inherit=True), program.module.__dict__)
    return ["value", None, None]


def _cut_prose(text: str) -> str:
    """Keep the lines up to the first that is no Python: where there is no fence, prose may follow the code."""
    import ast

    lines = text.split("\n")
    for _ in range(_MOST_CUTS):
        try:
            ast.parse("\n".join(lines))
        except SyntaxError as error:
            left = lines[: max((error.lineno or 1) - 1, 0)]
            if not left or len(left) >= len(lines):
                return text
            lines = left
        else:
            return "\n".join(lines)
    return text


def _parses(text: str) -> bool:
    try:
        compile(text, "solution", "exec", flags=_ONLY_PARSE, dont_inherit=True)
    except (SyntaxError, ValueError):
        return False
    return True


def _keep_definitions(text: str) -> str:
    """Keep what an earlier block defines, and leave its examples of use and its sketches out."""
    import ast

    if not _parses(text):
        return ""
    body = [statement for statement in ast.parse(text).body if _is_definition(statement)]
    return ast.unparse(ast.Module(body, []))


def _is_definition(statement: ast.stmt) -> bool:
    import ast

    if isinstance(statement, ast.Assign | ast.AnnAssign):
        return not any(isinstance(node, ast.Call) for node in ast.walk(statement))
    return isinstance(statement, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)


def _call(program: _Program, target: Any, args: list[Any], kwargs: list[Any], is_kept: bool) -> list[Any]:
    function = decode(target, program.unwrap)
    values = decode(args, program.unwrap)
    named = {key: decode(value, program.unwrap) for key, value in kwargs}
    result = encode(function(*values, **named), program.wrap)
    return ["value", result, encode([values, list(named.values())], program.wrap) if is_kept else None]


def _get(program: _Program, target: Any, name: str) -> list[Any]:
    return ["value", encode(getattr(decode(target, program.unwrap), name), program.wrap), None]


def _next(program: _Program, handle: int, count: int) -> list[Any]:
    taken, is_over = program.objects[handle].take(count)
    return ["value", encode(taken, program.wrap), is_over]


def _describe(error: BaseException) -> list[str]:
    try:
        message = str(error)
    except BaseException:  # the message is the code's own, too
        message = ""
    return [type(error).__name__, message[:_LONGEST_MESSAGE]]


_ONLY_PARSE = 0x400  # ast.PyCF_ONLY_AST, without importing ast
_MOST_CUTS = 50
_LONGEST_MESSAGE = 500  # characters
_PERFORM: dict[str, Callable[..., list[Any]]] = {"load": _load, "call": _call, "get": _get, "next": _next}
