"""How lines of text are shown: whole in a file or a pipe, broken between words in a terminal."""

from __future__ import annotations

import shutil
import sys
import textwrap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

INDENT = "    "
_WIDEST = 100  # columns that text is written over


def show(line: str) -> None:
    """Print a line to standard output."""
    print(wrap(line) if sys.stdout.isatty() else line)


def complain(sentence: str) -> None:
    """Print a sentence of this program to standard error."""
    sentence = f"c3jax: {sentence}"
    print(wrap(sentence) if sys.stderr.isatty() else sentence, file=sys.stderr)


def wrap(text: str, first: str = "", others: str = "") -> str:
    """Break a text into lines between its words.

    Args:
      text: one paragraph.
      first: what the first line begins with.
      others: what the others begin with.

    Returns:
      Lines no wider than the terminal, but for a word that is.
    """
    width = min(shutil.get_terminal_size().columns, _WIDEST)
    return textwrap.fill(
        text, width, initial_indent=first, subsequent_indent=others, break_long_words=False, break_on_hyphens=False
    )


def make_console(is_mute: bool = False) -> Console:
    """The console that commands print to: what they print with `soft_wrap` a terminal breaks between words too."""
    from rich import console  # a wrong config is answered without it

    class Lines(console.Console):
        def print(self, *objects: Any, **options: Any) -> None:
            if self.is_terminal:
                options["soft_wrap"] = False
            super().print(*objects, **options)

    return Lines(highlight=False, markup=False, quiet=is_mute)
