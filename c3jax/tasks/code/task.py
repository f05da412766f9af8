"""Programs judged by tests: read the code out of a message, run it against the tests of its problem. Host code.

Two sandboxes work on an answer. One, new for every answer, holds the program; the other holds the tests. The program
gets calls with plain arguments and returns plain data, the tests decide, and this process only carries lines between
the two, keeps the time and ends the program with all that it started. It parses nothing that the program sent.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import time
from typing import Any, Literal, NamedTuple, get_args

from c3jax.tasks.code import candidate as code_candidate
from c3jax.tasks.code import channel as code_channel
from c3jax.tasks.code import judge as code_judge
from c3jax.tasks.sandbox import process as sandbox
from c3jax.tasks.sandbox.process import Child, Limits, Lost
from c3jax.types import Problem, Verdict, VerdictName

LONGEST_MESSAGE = 200_000  # characters, counted from the end, where the answer stands

_JUDGE_LIMITS = Limits(wall_s=3600.0, memory_mb=2048, processes=16, open_files=64, output_mb=1 << 20)
_JUDGE_START_S = 60.0  # seconds for the judge to come up, or to compile tests it has not seen
_JUDGE_END_S = 1.0  # seconds for the judge to conclude once the program's time is over


class Check(NamedTuple):
    """What decides a problem, as JSON in `Problem.answer`."""

    tests: tuple[str, ...]
    names: tuple[str, ...]  # what the tests use of the program
    entry_point: str  # the first of them to look for in a message
    setup: str = ""  # runs before the tests, beside them
    preamble: str = ""  # runs before the program, beside it: the head that a message may go on from
    program_imports: str = ""  # import statements that hold for the program
    test_imports: tuple[str, ...] = ()  # modules that the tests use without importing them
    keeps: tuple[bool, ...] = ()  # for each test: whether it looks at what the program did to its arguments
    reward: Literal["all_pass", "fraction"] = "all_pass"
    timeout_s: float = 5.0
    memory_mb: int = 1024
    output_mb: int = 8
    is_contained: bool = True


class Program(NamedTuple):
    """The code in a message."""

    blocks: tuple[str, ...]  # of the last one everything counts, of those before it what they define
    is_fenced: bool  # else prose may follow


def grade(problem: Problem, text: str) -> Verdict:
    """Grade a message: score 1.0 if the program in it passes all tests, else 0.0 or the share of the tests it passes.

    "partial" is some tests, but not all; where none is passed, the verdict is what the first of them met: "wrong", an
    "error", a "timeout". "unparsable" is a message without code; a program that forged a reply is "unsafe", and gets 0.
    """
    check = read_check(problem.answer)
    program = read_program(text, check.entry_point)
    if program is None:
        return Verdict(0.0, "unparsable", None, "no code in the message")
    outcomes = _run_tests(check, program)
    code = "\n".join(program.blocks)
    passed = sum(outcome == "passed" for outcome, _ in outcomes)
    if passed == len(outcomes):
        return Verdict(1.0, "correct", code)
    first, detail = next(failure for failure in outcomes if failure[0] != "passed")
    detail = f"{passed} of {len(outcomes)} tests passed; {first}: {detail}"
    if any(outcome == "unsafe" for outcome, _ in outcomes):
        return Verdict(0.0, "unsafe", code, detail)
    if passed == 0:
        assert first in get_args(VerdictName)
        return Verdict(0.0, first, code, detail)  # type: ignore[arg-type]
    return Verdict(passed / len(outcomes) if check.reward == "fraction" else 0.0, "partial", code, detail)


@functools.lru_cache(maxsize=64)
def read_check(answer: str) -> Check:
    """Read a check out of a problem's answer."""
    fields: dict[str, Any] = json.loads(answer)
    fields |= {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
    return Check(**fields)


def write_check(check: Check) -> str:
    """Write a check as a problem's answer."""
    return json.dumps(check._asdict())


_FENCE = re.compile(r"^[ \t]{0,3}(?P<mark>`{3,}|~{3,})[ \t]*(?P<label>[^`\n]*)$")
_PYTHON_LABELS = {"", "python", "py", "python3", "py3"}
_CHAT_TOKEN = re.compile(r"<\|[a-z_0-9]{2,30}\|>|</s>|<s>|<end_of_turn>|<｜[^｜\n]{2,30}｜>")
_CODE_LINE = re.compile(
    r"^(?:(?:async +)?def +\w+ *\(|class +\w+ *[(:]|from +[\w.]+ +import\b|import +[\w.]+ *(?:,|$|as\b|;|#)|@\w)",
    re.MULTILINE,
)


def read_answer(text: str) -> str | None:
    """Read the code out of a message, whatever it defines; None where there is no code."""
    program = read_program(text, "")
    return None if program is None else "\n".join(program.blocks)


def read_program(text: str, entry_point: str) -> Program | None:
    """Read the code out of a message.

    Fenced blocks (``` or ~~~, labelled as Python or not at all) are taken up to the last one that defines the entry
    point, or the last of all where none does; a fence that is left open ends with the message. Without a fence, the
    code starts at the first line that imports or defines something. Only the last `LONGEST_MESSAGE` characters count.

    Returns:
      None where there is no code.
    """
    text = _CHAT_TOKEN.sub("", text[-LONGEST_MESSAGE:]).replace("\r\n", "\n").replace("\r", "\n")
    blocks = _read_blocks(text)
    if blocks:
        defines = re.compile(rf"^(?:async +def|def|class)[ \t]+{re.escape(entry_point)}\b", re.MULTILINE)
        last = max((index for index, block in enumerate(blocks) if defines.search(block)), default=len(blocks) - 1)
        return Program(tuple(blocks[: last + 1]), True)
    start = _CODE_LINE.search(text)
    if start is not None:
        return Program((text[start.start() :],), False)
    return None


def _read_blocks(text: str) -> list[str]:
    blocks: list[str] = []
    opened: re.Match[str] | None = None
    lines: list[str] = []
    for line in [*text.split("\n"), None]:
        fence = None if line is None else _FENCE.match(line)
        if opened is None:
            opened, lines = fence, []
            continue
        closes = fence is not None and not fence["label"].strip() and fence["mark"].startswith(opened["mark"])
        if line is not None and not closes:
            lines.append(line)
            continue
        words = opened["label"].lower().split()
        if (words[0] if words else "") in _PYTHON_LABELS and any(map(str.strip, lines)):
            blocks.append("\n".join(lines) + "\n")
        opened = None
    return blocks


# A worker's judge, kept from answer to answer: it takes longer to come up than most tests take to run.
_judges: dict[bool, Child] = {}


def close() -> None:
    """End the judges of this process, which else end with it."""
    for is_contained in list(_judges):
        sandbox.stop(_judges.pop(is_contained))


def _run_tests(check: Check, program: Program) -> list[tuple[str, str]]:
    """Run the tests; return the outcome and a detail of each."""
    case = {
        "load": ["load", check.program_imports, check.preamble, program.blocks, program.is_fenced],
        "setup": check.setup,
        "imports": check.test_imports,
        "names": check.names,
        "tests": check.tests,
        "keeps": check.keeps,
    }
    limits = Limits(wall_s=check.timeout_s, memory_mb=check.memory_mb, output_mb=check.output_mb)
    if check.is_contained not in _judges:
        _judges[check.is_contained] = sandbox.start(
            code_judge.__name__, [code_channel.__name__], _JUDGE_LIMITS, check.is_contained
        )
    judge = _judges[check.is_contained]
    child = sandbox.start(code_candidate.__name__, [code_channel.__name__], limits, check.is_contained)
    try:
        with contextlib.ExitStack() as cleanup:
            cleanup.callback(_drop_judge, check.is_contained)  # in the middle of a case, it is of no further use
            outcomes = _carry(judge, child, json.dumps(case).encode(), check.timeout_s)
            cleanup.pop_all()
        return outcomes
    except Lost as lost:
        reason = ("timeout", "the tests took too long") if lost.reason == "time" else ("error", "the tests died")
        return [reason] * len(check.tests)
    finally:
        sandbox.stop(child)


def _drop_judge(is_contained: bool) -> None:
    sandbox.stop(_judges.pop(is_contained))


def _carry(judge: Child, program: Child, case: bytes, timeout_s: float) -> list[tuple[str, str]]:
    """Carry requests to the program and replies back until the judge has decided; raises Lost if the judge is lost."""
    sandbox.send(judge, case, time.monotonic() + _JUDGE_START_S)
    line = sandbox.receive(judge, time.monotonic() + _JUDGE_START_S)
    deadline = time.monotonic() + timeout_s
    while line[:1] == b"C":
        try:
            sandbox.send(program, line[1:], deadline)
            reply = b"R" + sandbox.receive(program, deadline)
        except Lost as lost:
            reply = b"X" + json.dumps(_REASONS[lost.reason]).encode()
        sandbox.send(judge, reply, deadline + _JUDGE_END_S)
        line = sandbox.receive(judge, deadline + _JUDGE_END_S)
    return [(outcome, detail) for outcome, detail in json.loads(line[1:])]


_REASONS = {
    "time": ("timeout", "the program took too long"),
    "end": ("error", "the program ended before it was done"),
    "output": ("error", "the program returned too much"),
}
