"""The program's side: load untrusted code, then call what it defines when the judge asks. Runs inside a sandbox.

Nothing here decides anything. The code shares this process and may change all of it; all it can send to the judge is
what a return value can be.
"""

from __future__ import annotations

import builtins
import os
import sys

from c3jax.tasks.code.channel import DEEPEST, Channel, decode, encode, find_base, read, write

TYPE_CHECKING = False  # importing typing would take longer than all else that a program waits for
if TYPE_CHECKING:
    import ast
    from collections.abc import Callable, Iterator
    from types import CodeType
    from typing import Any


def main() -> None:
    """Answer requests until the judge's side closes, one line each.

    ["load", setup, preamble, blocks, fenced, whole] -> ["value", null, null]
    ["call", target, args, kwargs, is_kept]          -> ["value", value, args and kwargs afterwards or null]
    ["get", target, name]                            -> ["value", value, null]
    ["next", handle, count]                          -> ["value", list of the next items, whether there are no more]
    or ["raise", name of the exception's type, its message]. Meanwhile ["ask", function of the test, args, kwargs] may
    be sent, which is answered with ["answer", value] or ["throw", name, message], after requests that come in between.
    """
    sys.setrecursionlimit(DEEPEST)
    loaded = _Loaded(Channel())
    while True:
        try:
            loaded.serve()
        except EOFError:
            os._exit(0)


class _Loaded:
    """The loaded code, the objects of it that the judge holds handles to, and what the judge has handed over."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.limit = 1000  # calls within each other that the code may make; its own to change
        # A module that can be found: dataclasses and pickling look their class's module up.
        self.module = type(sys)("solution")
        sys.modules["solution"] = self.module
        self.given: dict[str, Any] = {}  # what the setup and the tests define that the code may need
        self.classes: dict[type, str] = {}  # those of them that are classes; the judge has them, too
        self.sources: dict[str, str] = {}  # of those that tests define
        self.functions: dict[int, Any] = {}  # that the judge has handed over, by its numbers for them
        self.made: dict[int, Any] = {}  # the same for objects, in the latest call
        self.numbers: dict[int, int] = {}
        self.states: dict[int, str] = {}  # in which the objects were handed over
        self.objects: list[Any] = []
        self.handles: dict[int, int] = {}

    def serve(self) -> list[Any] | None:
        """Answer one request; give back a line that is itself the answer to a question."""
        request = read(self.channel.receive())
        if request[0] not in _PERFORM:
            return request
        try:
            line = write(_PERFORM[request[0]](self, *request[1:]))
        except BaseException as error:  # whatever the code raises is its answer
            line = write(["raise", *_describe(error)])
        self.channel.send(line)
        return None

    def run(self, action: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run the code's own with the code's own limit on depth."""
        before = sys.getrecursionlimit()
        sys.setrecursionlimit(self.limit)
        try:
            return action(*args, **kwargs)
        finally:
            self.limit = sys.getrecursionlimit()
            sys.setrecursionlimit(before)

    def ask(self, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function of the test."""
        pairs = [[key, self.encode(value)] for key, value in kwargs.items()]
        self.channel.send(write(["ask", number, [self.encode(value) for value in args], pairs]))
        while (answer := self.serve()) is None:
            pass
        if answer[0] == "answer":
            return decode(answer[1], self.unwrap)
        kind = vars(builtins).get(answer[1], self.given.get(answer[1]))
        raise (kind if isinstance(kind, type) else RuntimeError)(answer[2])

    def encode(self, value: Any) -> Any:
        """Encode what the code returns."""
        seen: dict[int, int] = {}
        are_same: list[bool] = []  # whether all objects are as they were handed over, once that was looked at

        def wrap(value: Any) -> Any:
            name, base = self.classes.get(type(value)), find_base(type(value))
            if id(value) in self.numbers:
                if not are_same:
                    are_same.append(all(self.take_state(self.made[key]) == state for key, state in self.states.items()))
                if are_same[0] or self.numbers[id(value)] in self.functions:
                    return {"own": self.numbers[id(value)]}
            if name is not None and hasattr(type(value), "__members__"):
                return {"member": [name, value.name]}
            if name is not None and id(value) in seen:
                return {"again": seen[id(value)]}
            if name is not None:
                seen[id(value)] = len(seen)
                content = None if base is None else encode(base(value), wrap)
                return {"instance": [name, self.keep(value), content, encode(_list_state(value), wrap)]}
            return self.keep(value) if base is None else encode(base(value), wrap)

        return encode(value, wrap)

    def keep(self, value: Any) -> Any:
        """Give an object a handle."""
        is_iterator = hasattr(type(value), "__next__")
        if id(value) not in self.handles:  # objects are kept for good, so no other one takes the number of one of them
            self.handles[id(value)] = len(self.objects)
            self.objects.append(_Items(value) if is_iterator else value)
        return {"iterator" if is_iterator else "object": self.handles[id(value)]}

    def take_state(self, value: Any) -> str:
        """Write down an object's own content, others that it refers to by their identity."""
        base = find_base(type(value))
        if base is None and type(value) not in self.classes:
            return ""  # of the library: a path, a pattern
        parts = [_list_state(value), None if base is None else base(value)]
        return write(encode(parts, lambda item: {"id": id(item)}))

    def unwrap(self, tag: str, content: Any) -> Any:
        """Build what is no plain data out of what the judge sends."""
        return _BUILD[tag](self, content)


def _build_name(loaded: _Loaded, name: str) -> Any:
    if name not in loaded.module.__dict__:
        raise NameError(f"name {name!r} is not defined")
    return loaded.module.__dict__[name]


def _build_import(loaded: _Loaded, content: list[str]) -> Any:
    module, path = content
    __import__(module)
    found: Any = sys.modules[module]
    for name in path.split(".") if path else ():
        found = getattr(found, name)
    return found


def _build_class(loaded: _Loaded, content: list[Any]) -> Any:
    """Find a class of the setup, or define one that has come with its first instance."""
    name, bases, source, is_of_setup = content
    for base in bases:
        decode(base, loaded.unwrap)
    if loaded.sources.get(name) != source and not (is_of_setup and name in loaded.given):
        loaded.sources[name] = source
        exec(compile(source, "tests", "exec", dont_inherit=True), loaded.given)
        loaded.classes[loaded.given[name]] = name
    return loaded.given[name]


def _build_function(loaded: _Loaded, content: list[Any]) -> Any:
    """Find a function of the setup, or make one that asks the judge."""
    number, name, is_of_setup = content
    if number not in loaded.functions:

        def function(*args: Any, **kwargs: Any) -> Any:
            return loaded.ask(number, args, kwargs)

        function.__name__ = function.__qualname__ = name
        loaded.functions[number] = loaded.given[name] if is_of_setup and name in loaded.given else function
    loaded.numbers[id(loaded.functions[number])] = number
    return loaded.functions[number]


def _build_object(loaded: _Loaded, content: list[Any]) -> Any:
    """Make an object by the steps that pickle would take."""
    number, function, args, state, items, pairs = content
    if function is None:
        return loaded.made[number]  # as before in the same call
    value = decode(function, loaded.unwrap)(*decode(args, loaded.unwrap))
    loaded.made[number] = value
    loaded.numbers[id(value)] = number
    for item in decode(items, loaded.unwrap):
        value.append(item)
    for key, item in decode(pairs, loaded.unwrap):
        value[key] = item
    state = decode(state, loaded.unwrap)
    if state is not None and hasattr(value, "__setstate__"):
        value.__setstate__(state)
    elif state is not None:
        for part in filter(None, state if isinstance(state, tuple) else (state,)):
            for name, item in part.items():
                object.__setattr__(value, name, item)  # an object that is frozen has it, too
    return value


_BUILD: dict[str, Callable[[_Loaded, Any], Any]] = {
    "name": _build_name,
    "iterator": lambda loaded, items: iter([decode(item, loaded.unwrap) for item in items]),
    "object": lambda loaded, handle: loaded.objects[handle],
    "import": _build_import,
    "class": _build_class,
    "function": _build_function,
    "made": _build_object,
}


def _list_state(value: Any) -> dict[str, Any]:
    """The attributes of an object."""
    state: Any = object.__getstate__(value)
    parts = state if isinstance(state, tuple) else (state,)
    return {name: item for part in parts if part is not None for name, item in part.items()}


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


def _load(loaded: _Loaded, setup: str, preamble: str, blocks: list[str], is_fenced: bool, is_whole: bool) -> list[Any]:
    space = loaded.module.__dict__
    loaded.run(exec, compile(setup, "setup", "exec", dont_inherit=True), space)
    loaded.given = dict(space)
    loaded.classes = {
        value: name for name, value in space.items() if isinstance(value, type) and value.__module__ == "solution"
    }
    *earlier, last = blocks
    for text in ("" if preamble == setup else preamble, *map(_keep_definitions, earlier)):
        loaded.run(exec, loaded.run(_compile, text), space)
    loaded.run(exec, loaded.run(_compile_body, preamble, last, is_fenced, is_whole), space)
    # Code may define a class of the setup once more: it is this one then that it expects.
    for name in loaded.classes.values():
        loaded.given[name] = space[name] if isinstance(space.get(name), type) else loaded.given[name]
    loaded.classes |= {loaded.given[name]: name for name in loaded.classes.values()}
    return ["value", None, None]


def _compile(text: str) -> CodeType:
    return compile(text, "solution", "exec", dont_inherit=True)


def _compile_body(preamble: str, text: str, is_fenced: bool, is_whole: bool) -> CodeType:
    """Compile what a message gives: code, or what continues the preamble, with indentation lost or to spare."""
    readings = [("", text), ("", _indent(text, ""))]
    if preamble.strip() and not is_whole:
        head = preamble.rstrip() + "\n"
        last = head.splitlines()[-1]
        margin = last[: len(last) - len(last.lstrip())] or "    "
        continued = (text, _indent(text, margin), margin + text.lstrip())
        readings = [*((head, body) for body in continued), *readings]
    faults = []
    for head, body in readings:
        try:
            return _compile(head + body)
        except (SyntaxError, ValueError) as error:
            faults.append(error)
    if not is_fenced:  # prose may follow the code
        head, body = max(((head, _cut(head, body)) for head, body in readings), key=lambda reading: len(reading[1]))
        if body.strip():
            return _compile(head + body)
    raise faults[0]


def _indent(text: str, margin: str) -> str:
    """Move lines together, so that the leftmost have this margin."""
    lines = [line if line.strip() else "" for line in text.split("\n")]
    blanks = [line[: len(line) - len(line.lstrip())] for line in lines if line]
    width = len(os.path.commonprefix(blanks))
    return "\n".join(margin + line[width:] if line else "" for line in lines)


def _cut(head: str, body: str) -> str:
    """Keep the lines up to the first that is no Python."""
    lines = body.split("\n")
    for _ in range(_MOST_CUTS):
        try:
            _compile(head + "\n".join(lines))
        except SyntaxError as error:
            lines = lines[: min(len(lines) - 1, max((error.lineno or 1) - 1 - head.count("\n"), 0))]
        except ValueError:
            return ""
        else:
            return "\n".join(lines)
    return ""


def _keep_definitions(text: str) -> str:
    """Keep what an earlier block defines, and leave its examples of use and its sketches out."""
    import ast

    try:
        module = ast.parse(text)
    except (SyntaxError, ValueError):
        return ""
    return ast.unparse(ast.Module([statement for statement in module.body if _is_definition(statement)], []))


def _is_definition(statement: ast.stmt) -> bool:
    import ast

    if isinstance(statement, ast.Assign | ast.AnnAssign):
        return not any(isinstance(node, ast.Call) for node in ast.walk(statement))
    return isinstance(statement, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)


def _call(loaded: _Loaded, target: Any, args: list[Any], kwargs: list[Any], is_kept: bool) -> list[Any]:
    function = decode(target, loaded.unwrap)
    for number in loaded.made:
        loaded.numbers.pop(id(loaded.made[number]), None)
    loaded.made, loaded.states = {}, {}
    values = decode(args, loaded.unwrap)
    named = {key: decode(value, loaded.unwrap) for key, value in kwargs}
    loaded.states = {number: loaded.take_state(value) for number, value in loaded.made.items()}
    result = loaded.encode(loaded.run(function, *values, **named))
    return ["value", result, loaded.encode([values, list(named.values())]) if is_kept else None]


def _get(loaded: _Loaded, target: Any, name: str) -> list[Any]:
    return ["value", loaded.encode(loaded.run(getattr, decode(target, loaded.unwrap), name)), None]


def _next(loaded: _Loaded, handle: int, count: int) -> list[Any]:
    taken, is_over = loaded.run(loaded.objects[handle].take, count)
    return ["value", loaded.encode(taken), is_over]


def _describe(error: BaseException) -> list[str]:
    try:
        message = str(error)
    except BaseException:  # the message is the code's own, too
        message = ""
    return [type(error).__name__, message[:_LONGEST_MESSAGE]]


_MOST_CUTS = 50
_LONGEST_MESSAGE = 500  # characters
_PERFORM: dict[str, Callable[..., list[Any]]] = {"load": _load, "call": _call, "get": _get, "next": _next}
