"""Lines of text: whole in a pipe, broken between words in a terminal."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
from c3jax.commands import terminal
line = " ".join(["held-out/words"] * 20)
terminal.show(line)
terminal.complain(line)
terminal.make_console().print(line, soft_wrap=True)
"""


@pytest.mark.parametrize("is_terminal", [False, True])
def test_only_a_terminal_is_given_lines_that_are_broken_and_none_inside_a_word(is_terminal):
    inner, outer = os.openpty() if is_terminal else os.pipe()
    environment = {**os.environ, "COLUMNS": "80", "TERM": "dumb"}
    subprocess.run([sys.executable, "-c", PROGRAM], stdout=outer, stderr=outer, env=environment, check=True)
    text = os.read(inner, 10_000).decode()
    os.close(outer)
    os.close(inner)
    words = text.split()
    assert set(words) == {"held-out/words", "c3jax:"} and words.count("held-out/words") == 60
    assert len(text.splitlines()) == (13 if is_terminal else 3)  # 4 + 5 + 4
