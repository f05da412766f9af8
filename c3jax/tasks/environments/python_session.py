"""The session's side: run one program after the other in one namespace, and send what each prints. In the sandbox.

Nothing here decides anything. The programs share this process and may change all of it; all they can reach is the text
of their own answer.
"""

from __future__ import annotations

import sys

from c3jax.tasks.code.channel import Channel, read, write

TYPE_CHECKING = False  # importing typing would take longer than all else that a program waits for
if TYPE_CHECKING:
    from typing import Any

_LONGEST = 1 << 20  # characters that are kept of what a program prints, from its end


def main() -> None:
    """Answer [program, how errors are shown] with the text of what it prints, until the other side closes."""
    channel = Channel()
    namespace: dict[str, Any] = {"__name__": "__main__"}
    while True:
        try:
            code, errors = read(channel.receive())
        except EOFError:
            return
        channel.send(write(_run(code, errors, namespace)))


def _run(code: str, errors: str, namespace: dict[str, Any]) -> str:
    import ast
    import io

    sys.stdout = sys.stderr = printed = io.StringIO()
    try:
        tree = ast.parse(code)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "program", "exec"), namespace)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), "program", "eval"), namespace)  # pyright: ignore
            if value is not None:
                print(repr(value))
    except BaseException as error:  # a program's own, SystemExit too
        name = type(error).__name__
        line = _find_line(error)
        message = error.msg if isinstance(error, SyntaxError) else error
        print(name if errors == "name" else f"{name}: {message}{line}")
    finally:
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    text = printed.getvalue()[-_LONGEST:].strip()
    return text.encode("utf-8", "replace").decode()


def _find_line(error: BaseException) -> str:
    """The line of the program where an exception was raised."""
    trace, line = error.__traceback__, getattr(error, "lineno", None)
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "program":
            line = trace.tb_lineno
        trace = trace.tb_next
    return "" if line is None else f" (line {line})"
