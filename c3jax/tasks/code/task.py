"""Programs judged by tests: read the code out of a message, run it against the tests of its problem. Host code.

Two sandboxes work on an answer. One, new for every answer, holds the program; the other holds the tests. The program
gets calls with plain arguments and returns plain data, the tests decide, and this process only carries lines between
the two, keeps the time and ends the program with all that it started. It parses nothing that the program sent.
"""

from __future__ import annotations

import functools
import json
import re
import textwrap
import time
from typing import Any, Literal, NamedTuple, get_args

from c3jax.tasks.code import candidate as code_candidate
from c3jax.tasks.code import channel as code_channel
from c3jax.tasks.code import judge as code_judge
from c3jax.tasks.code import link as code_link
from c3jax.tasks.sandbox import process as sandbox
from c3jax.tasks.sandbox.process import Child, Clock, Limits, Lost
from c3jax.types import Problem, Verdict, VerdictName

LONGEST_MESSAGE = 200_000  # characters, counted from the end, where the answer stands

_JUDGE_LIMITS = Limits(cpu_s=3600.0, memory_mb=2048, processes=16, open_files=64, output_mb=1 << 20)
_JUDGE_START_S = 60.0  # seconds for the judge to come up, or to compile tests it has not seen
_JUDGE_END_S = 1.0  # seconds for the judge to conclude once the time of the case is over


class Check(NamedTuple):
    """What decides a problem, as JSON in `Problem.answer`."""

    tests: tuple[str, ...]
    names: tuple[str, ...]  # what the tests use of the program
    entry_point: str  # the first of them to look for in a message
    setup: str = ""  # runs before the tests, beside them
    shared: str = ""  # what of the setup runs before the program, too
    named: tuple[str, ...] = ()  # classes of the setup that the question names
    preamble: str = ""  # runs before the program, beside it: a head that a message may continue
    test_imports: tuple[str, ...] = ()  # modules that the tests use without importing them
    keeps: tuple[bool, ...] = ()  # for each test: whether it looks at what the program did to its arguments
    reward: Literal["all_pass", "fraction"] = "all_pass"
    timeout_s: float = 15.0
    memory_mb: int = 1024
    output_mb: int = 32
    is_contained: bool = True
    wall_s: float = 120.0


class Program(NamedTuple):
    """The code in a message."""

    blocks: tuple[str, ...]  # of the last one everything counts, of those before it what they define
    is_fenced: bool  # else prose may follow
    is_whole: bool = True  # else it may be what continues the preamble


def grade(problem: Problem, text: str) -> Verdict:
    """Grade a message: score 1.0 if the program in it passes all tests, else 0.0 or the share of the tests it passes.

    "partial" is some tests, but not all; where none is passed, the verdict is what the first of them met: "wrong", an
    "error", a "timeout". "unparsable" is a message without code; a program that forged a reply is "unsafe", and gets 0.
    """
    check = read_check(problem.answer)
    program = read_program(text, check.entry_point, has_head=bool(check.preamble.strip()))
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


# The marks of a list or a quotation may stand before a fence.
_FENCE = re.compile(
    r"^(?P<margin>(?:[ \t]*(?:>|(?:[-*+]|\d{1,9}[.)])(?=[ \t])))*[ \t]*)(?P<mark>`{3,}|~{3,})[ \t]*(?P<label>[^`\n]*)$"
)
_END = re.compile(r"^[ \t]{0,3}(?P<mark>`{3,}|~{3,})[ \t]*$")
_END_OF_LINE = re.compile(r"^(?P<code>[^`]*[^`\s:\"'])[ \t]*(?P<mark>`{3,})[ \t]*$")
_BLOCK_IN_LINE = re.compile(
    r"(?<!`)(?P<mark>`{3,9})(?!`) *(?:(?:python|py)3? +)?"
    r"(?P<code>(?:async |def |class |from |import |\w+ *=)[^`\n]+)(?P=mark)",
    re.IGNORECASE,
)
_PYTHON_LABELS = {"", "python", "py", "python3", "py3"}
_CHAT_TOKEN = re.compile(r"<\|[a-z_0-9]{2,30}\|>|</s>|<s>|<end_of_turn>|<｜[^｜\n]{2,30}｜>")
_CODE_LINE = re.compile(
    r"^(?:(?:async +)?def +\w+ *\(|class +\w+ *[(:]|from +[\w.]+ +import\b|import +[\w.]+ *(?:,|$|as\b|;|#)|@\w)",
    re.MULTILINE,
)
# What may be the first line of a function's body, where a message gives no more than that.
_BODY_LINE = re.compile(
    rf"{_CODE_LINE.pattern}|^(?:[ \t]+\S|return\b|raise\b|(?:for|if|while|with) .*:[ \t]*$|try:"
    r"|\w[\w.\[\], ]*[-+*/%|&^]*=[^=])",
    re.MULTILINE,
)


def read_answer(text: str) -> str | None:
    """Read the code out of a message, whatever it defines; None where there is no code."""
    program = read_program(text, "")
    return None if program is None else "\n".join(program.blocks)


def read_program(text: str, entry_point: str, has_head: bool = False) -> Program | None:
    """Read the code out of a message.

    Fenced blocks (``` or ~~~, labelled as Python or not at all, in lists and quotations too) are taken up to the last
    one that defines the entry point, or the last of all where none does; a fence that is left open ends with the
    message. Without a fence, or where only text outside of them defines the entry point, the code starts at the first
    line that imports or defines something. Only the last `LONGEST_MESSAGE` characters count.

    Args:
      has_head: the question is the head of a function, and the message may be no more than its body.

    Returns:
      None where there is no code.
    """
    text = _CHAT_TOKEN.sub("", text[-LONGEST_MESSAGE:]).replace("\r\n", "\n").replace("\r", "\n")
    name = re.escape(entry_point)
    defines = re.compile(
        rf"^(?:(?:(?:async +)?def|class)[ \t]+{name}\b|{name} *(?::[^=\n]+)?=[^=]|(?:from|import)\b.*\b{name}\b)",
        re.MULTILINE,
    )
    blocks, others = _read_blocks(text)
    blocks = [whole if defines.search(whole := textwrap.dedent(block)) else block for block in blocks]
    defining = [index for index, block in enumerate(blocks) if defines.search(block)]
    if blocks and (defining or not defines.search(others)):
        last = max(defining, default=len(blocks) - 1)
        return Program(tuple(blocks[: last + 1]), True, not has_head or bool(defining))
    is_whole = not has_head or defines.search(text) is not None
    start = (_CODE_LINE if is_whole else _BODY_LINE).search(text)
    return None if start is None else Program((text[start.start() :].rstrip("`"),), False, is_whole)


def _read_blocks(text: str) -> tuple[list[str], str]:
    """Read the fenced blocks of Python, and the text outside of all blocks."""
    blocks: list[str] = []
    others: list[str] = []
    opened: re.Match[str] | None = None
    lines: list[str] = []
    has_code = False
    for line in [*text.split("\n"), None]:
        if opened is None and line is not None:
            fence = _FENCE.match(line)
            # Where code has come without a fence, a fence that is indented like code stands in one of its texts.
            if fence is not None and not (has_code and len(fence["margin"]) > 3):
                opened, lines = fence, []
            else:
                blocks += [block["code"] + "\n" for block in _BLOCK_IN_LINE.finditer(line)]
                others.append(line)
                has_code = has_code or _CODE_LINE.match(line) is not None
        elif opened is not None:
            inside = None if line is None else _strip_margin(line, opened["margin"])
            end = None if inside is None else _END.match(inside) or _END_OF_LINE.match(inside)
            is_over = inside is None or (end is not None and end["mark"].startswith(opened["mark"]))
            lines.append("" if inside is None else inside[: end.start("mark")] if end and is_over else inside)
            words = opened["label"].lower().split() or [""]
            # The end of a block whose begin is missing begins nothing.
            is_stray = line is None and not words[0] and others[-1:] != [] and others[-1][:1].isspace()
            if is_over and words[0] in _PYTHON_LABELS and any(map(str.strip, lines)) and not is_stray:
                blocks.append("\n".join(lines).rstrip() + "\n")
            opened = None if is_over else opened
    return blocks, "\n".join(others)


def _strip_margin(line: str, margin: str) -> str:
    """Take off a line of a block what stands before the block's fence: marks of quotation, and no more blanks."""
    for _ in range(margin.count(">")):
        line = line.lstrip().removeprefix(">") if line.lstrip().startswith(">") else line
    width = len(margin.rpartition(">")[2].expandtabs(4))
    while width > 0 and line[:1] in (" ", "\t"):
        width -= 4 if line[0] == "\t" else 1
        line = line[1:]
    return line


# A worker's judge, kept from answer to answer: it takes longer to come up than most tests take to run.
_judges: dict[bool, Child] = {}


def close() -> None:
    """End the judges of this process, which else end with it."""
    for is_contained in list(_judges):
        sandbox.stop(_judges.pop(is_contained))


def _run_tests(check: Check, program: Program) -> list[tuple[str, str]]:
    """Run the tests; return the outcome and a detail of each."""
    case = {
        "load": ["load", check.shared, check.preamble, program.blocks, program.is_fenced, program.is_whole],
        "setup": check.setup,
        "imports": check.test_imports,
        "names": check.names,
        "named": check.named,
        "tests": check.tests,
        "keeps": check.keeps,
    }
    limits = Limits(cpu_s=check.timeout_s, memory_mb=check.memory_mb, output_mb=check.output_mb)
    if check.is_contained not in _judges:
        _judges[check.is_contained] = sandbox.start(
            code_judge.__name__, [code_channel.__name__, code_link.__name__], _JUDGE_LIMITS, check.is_contained
        )
    judge = _judges[check.is_contained]
    child = sandbox.start(code_candidate.__name__, [code_channel.__name__], limits, check.is_contained)
    try:
        return _carry(judge, child, json.dumps(case).encode(), check)
    except BaseException as error:
        sandbox.stop(_judges.pop(check.is_contained))  # in the middle of a case, it is of no further use
        if not isinstance(error, Lost):
            raise
        reason = ("timeout", "the tests took too long") if error.reason == "time" else ("error", "the tests died")
        return [reason] * len(check.tests)
    finally:
        sandbox.stop(child)


def _carry(judge: Child, program: Child, case: bytes, check: Check) -> list[tuple[str, str]]:
    """Carry requests to the program and replies back until the judge has decided; raises Lost if the judge is lost."""
    start = sandbox.within(_JUDGE_START_S)
    forked_s = time.clock_gettime(time.CLOCK_BOOTTIME)
    sandbox.send(judge, case, start)
    line = sandbox.receive(judge, start)
    clock = Clock([(program, 0.0), (judge, forked_s)], check.timeout_s, check.wall_s)
    conclude = functools.partial(clock.wait, grace_s=_JUDGE_END_S)
    while line[:1] == b"C":
        try:
            sandbox.send(program, line[1:], clock.wait)
            reply = b"R" + sandbox.receive(program, clock.wait)
        except Lost as lost:
            reply = b"X" + json.dumps(_REASONS[lost.reason]).encode()
        sandbox.send(judge, reply, conclude)
        line = sandbox.receive(judge, conclude)
    return [(outcome, detail) for outcome, detail in json.loads(line[1:])]


_REASONS = {
    "time": ("timeout", "the program took too long"),
    "end": ("error", "the program ended before it was done"),
    "output": ("error", "the program returned too much"),
}
