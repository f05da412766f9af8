"""Markers in a message, as tables over the vocabulary: which part of it others read.

How a marker is cut into tokens depends on its neighbours, and a sampled message need not be cut as a tokenizer would
have cut its text. So markers are matched on the bytes that tokens stand for, by an automaton that reads a whole token
in one step (`rollout/visible.py` runs it). A marker that is one added token of the vocabulary, as Qwen3's </think>, is
that token and no other text.

Dimension key: V vocabulary    C class of tokens that do the same in every state    S state
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from c3jax.types import Tokenizer

_ADDED = 0xE000  # private characters, which no byte is: a marker that is one token


class MarkerTables(NamedTuple):
    """The automaton. A state is how much of a marker was read, and whether a part is open.

    Distances are in bytes, back from the end of the token that is read; -1 where nothing of the kind ends in it.
    """

    class_V: np.ndarray  # int32
    length_V: np.ndarray  # int32: bytes of each token
    next_CS: np.ndarray  # int32: the state after a token; 0 is the first
    opened_CS: np.ndarray  # int32: to the first byte of the part that is open behind the token, where it opened it
    closed_CS: np.ndarray  # int32: to the first byte behind the last part that the token closed
    closed_open_CS: np.ndarray  # int32: to the first byte of that part, where the same token had opened it
    is_closed: bool  # whether a part must be closed to count; otherwise it goes on to the message's end


class _Automaton(NamedTuple):
    opening: str
    closing: str | None
    states: list[tuple[bool, str]]  # whether a part is open, and the beginning of a marker that was read last
    index: dict[tuple[bool, str], int]  # of a state


def make_tables(tokenizer: Tokenizer, opening: str, closing: str | None) -> MarkerTables:
    """The automaton that finds a message's part.

    The part is what follows the last `opening`; with a `closing`, what stands between the last `opening` that is closed
    and the first `closing` after it.

    Args:
      tokenizer: of the messages.
      opening: the marker before the part.
      closing: the marker after it; None for a part that goes on to the message's end.

    Returns:
      The tables.
    """
    tokens = [token.decode("latin-1") for token in tokenizer.list_bytes()]  # a character a byte
    markers = [
        _read_marker(tokenizer, marker, number, tokens)
        for number, marker in enumerate((opening, closing))
        if marker is not None
    ]
    automaton = _make_automaton(markers[0], markers[1] if closing is not None else None)
    live = _find_live(markers, tokens)
    # Nearly all tokens only break a marker off, whatever state they meet: one class.
    columns = [_read_from_all(automaton, chr(_ADDED + 2))]
    class_V = np.zeros(len(tokens), np.int32)
    known: dict[str, int] = {}
    for token in live:
        text = tokens[token]
        if text not in known:
            known[text] = len(columns)
            columns.append(_read_from_all(automaton, text))
        class_V[token] = known[text]
    lengths = np.array([len(token) for token in tokens], np.int32)
    parts = np.array(columns, np.int32).transpose(2, 0, 1)
    return MarkerTables(class_V, lengths, *parts, is_closed=closing is not None)


def _read_marker(tokenizer: Tokenizer, marker: str, number: int, tokens: list[str]) -> str:
    """A marker as characters of the tokens' texts; the text of one that is an added token is replaced."""
    token = tokenizer.added_tokens.get(marker)
    if token is None:
        return marker.encode().decode("latin-1")
    tokens[token] = chr(_ADDED + number)
    return tokens[token]


def _make_automaton(opening: str, closing: str | None) -> _Automaton:
    markers = [opening] if closing is None else [opening, closing]
    read = dict.fromkeys(marker[:length] for marker in markers for length in range(len(marker) + 1))
    states = [(is_open, text) for is_open in (False, True) for text in read]
    return _Automaton(opening, closing, states, {state: number for number, state in enumerate(states)})


def _find_live(markers: Sequence[str], tokens: Sequence[str]) -> list[int]:
    """Tokens that begin a marker, or go on with one, and empty ones: all that may do other than break it off."""
    rests = tuple({marker[first:] for marker in markers for first in range(len(marker))})
    pieces = {rest[:length] for rest in rests for length in range(1, len(rest) + 1)}
    begins = {marker[0] for marker in markers}
    return [
        number
        for number, token in enumerate(tokens)
        if token in pieces or token.startswith(rests) or any(begin in token for begin in begins) or not token
    ]


def _read_from_all(automaton: _Automaton, token: str) -> list[tuple[int, int, int, int]]:
    return [_read_token(automaton, is_open, read, token) for is_open, read in automaton.states]


def _read_token(automaton: _Automaton, is_open: bool, read: str, token: str) -> tuple[int, int, int, int]:
    """From one state: the next state, and the three distances of the tables."""
    opening, closing = automaton.opening, automaton.closing
    opened, closed, closed_open = -1, -1, -1
    for index, character in enumerate(token):
        left = len(token) - index - 1
        read += character
        while (False, read) not in automaton.index:  # the longest end of the text that begins a marker
            read = read[1:]
        if read.endswith(opening):
            is_open, opened = True, left
        elif closing is not None and is_open and read.endswith(closing):
            closed = left + len(closing)
            closed_open, is_open, opened = opened, False, -1
    return automaton.index[is_open, read], opened, closed, closed_open
