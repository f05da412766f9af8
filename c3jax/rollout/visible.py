"""Which tokens of a message others read: of a later turn's context, or the grader.

The visible part is a run of bytes, and every token that holds one of them is read, whole: no byte of the part is lost,
and a token that holds the end of a marker beside the part's first byte shows both. Where there is no part, nothing is
read.

Dimension key beside types.py: C and S as in markers.py.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from c3jax.markers import MarkerTables
from c3jax.protocol import TurnPlan
from c3jax.types import Messages

_END = 2**31 - 1


class _Scan(NamedTuple):
    """What is known after some tokens; [N], int32. Offsets are in bytes from the message's start, -1 for none."""

    state: jax.Array
    offset: jax.Array  # of the next token
    opened: jax.Array  # first byte of the part that is open
    first: jax.Array  # first byte of the last part that was closed
    end: jax.Array  # first byte behind it


def narrow_content(plan: TurnPlan, messages: Messages) -> Messages:
    """The messages with the content that others read of them, as their turn says.

    Args:
      plan: the turn.
      messages: as sampled; their content is all but the stop token.

    Returns:
      The messages, content_NT narrowed to the visible part and, of this, to its first `visible_tokens`.
    """
    content_NT = messages.content_NT
    if plan.markers is not None:
        content_NT = find_part(plan.markers, messages.tokens_NT, content_NT)
    if plan.visible_tokens is not None:
        content_NT &= jnp.cumsum(content_NT, axis=1) <= plan.visible_tokens
    return messages._replace(content_NT=content_NT)


def count_hidden(plan: TurnPlan, messages: Messages) -> jax.Array:
    """How many messages have no visible part, where a turn asks for one: thinking that met the token limit, mostly.

    Args:
      plan: the turn.
      messages: of it.

    Returns:
      int32, scalar.
    """
    if plan.markers is None:
        return jnp.int32(0)
    is_hidden_N = messages.sampled_NT.any(axis=1) & ~messages.content_NT.any(axis=1)
    return jnp.sum(is_hidden_N, dtype=jnp.int32)


def find_part(tables: MarkerTables, tokens_NT: jax.Array, content_NT: jax.Array) -> jax.Array:
    """The tokens of a message's part.

    Args:
      tables: the markers.
      tokens_NT: of the messages.
      content_NT: which of them are text.

    Returns:
      part_NT, bool.
    """
    # A model may have more rows than its tokenizer has tokens: such a token is no text.
    class_NT, length_NT = (
        jnp.asarray(of_token_V).at[tokens_NT].get(mode="fill", fill_value=0)
        for of_token_V in (tables.class_V, tables.length_V)
    )
    length_NT = jnp.where(content_NT, length_NT, 0)
    next_CS, opened_CS, closed_CS, closed_open_CS = map(
        jnp.asarray, (tables.next_CS, tables.opened_CS, tables.closed_CS, tables.closed_open_CS)
    )

    def read(carry: _Scan, token: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[_Scan, None]:
        class_N, length_N, keep_N = token
        offset = carry.offset + length_N
        opened, closed, closed_open = (
            table_CS[class_N, carry.state] for table_CS in (opened_CS, closed_CS, closed_open_CS)
        )
        is_closed = closed >= 0
        after = _Scan(
            state=next_CS[class_N, carry.state],
            offset=offset,
            opened=jnp.where(opened >= 0, offset - opened, carry.opened),
            first=jnp.where(is_closed, jnp.where(closed_open >= 0, offset - closed_open, carry.opened), carry.first),
            end=jnp.where(is_closed, offset - closed, carry.end),
        )
        return jax.tree.map(lambda new, old: jnp.where(keep_N, new, old), after, carry), None

    zero_N = jnp.zeros(len(tokens_NT), jnp.int32)
    begun = _Scan(zero_N, zero_N, zero_N - 1, zero_N - 1, zero_N - 1)
    last, _ = jax.lax.scan(read, begun, (class_NT.T, length_NT.T, content_NT.T))
    if tables.is_closed:
        first_N, end_N = last.first, last.end
    else:
        first_N, end_N = last.opened, jnp.where(last.opened >= 0, _END, -1)
    end_NT = jnp.cumsum(length_NT, axis=1)
    is_inside_NT = (end_NT > first_N[:, None]) & (end_NT - length_NT < end_N[:, None])
    return content_NT & is_inside_NT & (first_N < end_N)[:, None]
