"""Who speaks when and who sees what, as data: every turn's context becomes a plan of frames.

A context is a deterministic function of the problem and the messages so far. Its prompt is rendered once
through the tokenizer's chat template, cut at the slots, and each piece is tokenised once; a message enters a
later context as the very token ids that were sampled.

A piece belongs to a level, which says how many rows it has in a batch of P problems:
    level 0      one row, shared by the whole batch: the text before the first slot
    level 1      P rows: a question and the text after it
    level 2 + d  P * f0 * ... * fd rows: a message of turn d and the text after it
Neighbouring pieces are one frame until a piece of a finer level begins the next; a coarser piece after a finer
one is repeated to the finer one's rows.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Sequence
from typing import NamedTuple

from c3jax.config import run as config_lib
from c3jax.markers import MarkerTables, make_tables
from c3jax.schema import expect
from c3jax.types import ENVIRONMENT, Tokenizer

QUESTION_LEVEL = 1
FIRST_TURN_LEVEL = 2

# Fewer shared tokens than this go with the next frame, repeated: a pass over a frame costs more than they do.
_SHORTEST_SHARED = 8


class Literal(NamedTuple):
    """Prompt text, the same for every row."""

    tokens: tuple[int, ...]


class Slot(NamedTuple):
    """The question (level 1) or a message (level 2 + its turn)."""

    level: int
    tokens: int | None = None  # most tokens of a message that are read, where that is fewer than it may have


class FramePlan(NamedTuple):
    """The pieces of one frame, and the level whose rows it has."""

    level: int
    pieces: tuple[Literal | Slot, ...]


class TurnPlan(NamedTuple):
    """One turn: its context as frames, coarse to fine, and the length of its messages."""

    name: str
    role: str
    frames: tuple[FramePlan, ...]
    max_tokens: int
    is_trained: bool
    is_environment: bool = False  # no policy speaks: there is no context
    skipped_by: tuple[int, ...] = ()  # environments' turns; where one was the last of its episode, nothing is said
    markers: MarkerTables | None = None  # of the part that others read; None for the whole message
    visible_tokens: int | None = None  # most tokens of it
    trains_visible: bool = False  # whether only that part enters the loss

    @property
    def is_read_in_part(self) -> bool:
        """Whether others may read less than the whole message."""
        return self.markers is not None or self.visible_tokens is not None


def plan_turns(protocol: config_lib.Protocol, tokenizer: Tokenizer) -> tuple[TurnPlan, ...]:
    """Cut every turn's prompt at its slots, tokenise each piece once and group the pieces into frames.

    Args:
      protocol: section of the config.
      tokenizer: with the chat template that prompts are written by.

    Returns:
      A plan a turn.

    Raises:
      ConfigError: where the chat template drops prompt text, drops or repeats a slot, puts no text behind the last slot
        (the first token of a message is drawn after that text's last token), or has no word for `thinking`.
    """
    plans: list[TurnPlan] = []
    for turn_index, turn in enumerate(protocol.turns):
        before = tuple(index for index, plan in enumerate(plans) if plan.is_environment) if turn.unless_done else ()
        if turn.environment is not None:
            plans.append(TurnPlan(turn.name, ENVIRONMENT, (), turn.max_tokens, False, True, before))
            continue
        pieces = _cut_prompt(turn, turn_index, protocol.turns, tokenizer)
        ends_in_text = bool(pieces) and isinstance(pieces[-1], Literal)
        wanted = "prompt text after the last slot (the chat template adds none)"
        expect(ends_in_text, f"protocol.turns.{turn_index}", wanted, "a slot")
        plans.append(
            TurnPlan(
                *(turn.name, turn.role, _group_pieces(pieces), turn.max_tokens, turn.trained),
                skipped_by=before,
                markers=_make_markers(turn.visible, tokenizer),
                visible_tokens=turn.visible_tokens,
                trains_visible=turn.train_on == "visible",
            )
        )
    return tuple(plans)


def list_markers(visible: config_lib.Visible) -> tuple[str, ...]:
    """The markers of a message's visible part: none, the one before it, or those on both sides."""
    if visible.tag is not None:
        return f"<{visible.tag}>", f"</{visible.tag}>"
    return () if visible.after is None else (visible.after,)


def rows_of(level: int, problems: int, fan_out: Sequence[int]) -> int:
    """Rows of a level's frame in a batch (N).

    Args:
      level: 0 for prompt text, which all rows share, 1 for questions, 2 + d for the messages of turn d.
      problems: of the batch (P).
      fan_out: alternatives a turn.
    """
    return 1 if level == 0 else problems * math.prod(fan_out[: level - QUESTION_LEVEL])


def context_tokens(plans: tuple[TurnPlan, ...], question_tokens: int) -> tuple[int, ...]:
    """Most tokens of each turn's context and message together.

    Args:
      plans: of all turns.
      question_tokens: of a question, at most.
    """
    of_frames = ((count_slots(frame, plans, question_tokens) for frame in plan.frames) for plan in plans)
    return tuple(plan.max_tokens + sum(counts) for plan, counts in zip(plans, of_frames, strict=True))


def count_slots(frame: FramePlan, plans: Sequence[TurnPlan], question_tokens: int) -> int:
    """Slots of a frame (S): the tokens of its prompt text, and most tokens of the question and messages in it.

    Args:
      frame: of a turn's context.
      plans: of all turns.
      question_tokens: of a question, at most.
    """

    def count(piece: Literal | Slot) -> int:
        if isinstance(piece, Literal):
            return len(piece.tokens)
        if piece.level == QUESTION_LEVEL:
            return question_tokens
        return plans[piece.level - FIRST_TURN_LEVEL].max_tokens if piece.tokens is None else piece.tokens

    return sum(map(count, frame.pieces))


def check_lengths(plans: tuple[TurnPlan, ...], question_tokens: int, model_context: int) -> None:
    """Check that the model's context holds every turn's context and message.

    Args:
      plans: of all turns.
      question_tokens: of a question, at most.
      model_context: tokens.

    Raises:
      ConfigError: in one sentence naming the turn.
    """
    for turn_index, length in enumerate(context_tokens(plans, question_tokens)):
        wanted = f"a context and message of at most {model_context} tokens (the model's)"
        expect(length <= model_context, f"protocol.turns.{turn_index}", wanted, f"up to {length}")


def _make_markers(visible: config_lib.Visible, tokenizer: Tokenizer) -> MarkerTables | None:
    markers = list_markers(visible)
    return make_tables(tokenizer, markers[0], markers[1] if len(markers) > 1 else None) if markers else None


def _cut_prompt(
    turn: config_lib.Turn, turn_index: int, turns: Sequence[config_lib.Turn], tokenizer: Tokenizer
) -> list[Literal | Slot]:
    names = [other.name for other in turns]
    slots: list[str] = []

    def mark(text: str) -> str:
        out = ""
        for literal, name, _, _ in string.Formatter().parse(text):
            out += literal
            if name is not None:
                out += f"\ue000{len(slots)}\ue001"  # private-use characters: no template trims or escapes them
                slots.append(name)
        return out

    rendered = _render(tokenizer, mark(turn.system), mark(turn.user), turn.thinking, turn_index)
    _check_shown(turn, turn_index, rendered)
    parts = re.split("\ue000([0-9]+)\ue001", rendered)
    shown, wanted = [int(part) for part in parts[1::2]], "a chat template that shows every slot once and in order"
    got = f"slots {[slots[index] for index in shown]} of {slots}"
    expect(shown == list(range(len(slots))), f"protocol.turns.{turn_index}", wanted, got)
    pieces: list[Literal | Slot] = []
    for index, part in enumerate(parts):
        if index % 2:
            name = slots[int(part)]
            if name == "question":
                pieces.append(Slot(QUESTION_LEVEL))
            else:
                spoken = names.index(name)
                pieces.append(Slot(FIRST_TURN_LEVEL + spoken, turns[spoken].visible_tokens))
        elif part:
            is_last = index + 1 == len(parts)
            pieces.append(Literal(tuple(tokenizer.encode_prompt(part, index == 0, not is_last))))
    return [piece for piece in pieces if isinstance(piece, Slot) or piece.tokens]


def _render(tokenizer: Tokenizer, system: str, user: str, thinking: bool | None, turn_index: int) -> str:
    if thinking is None:
        return tokenizer.render(system, user)
    rendered = tokenizer.render(system, user, thinking)
    wanted = "null with a chat template that does the same with enable_thinking and without"
    is_read = rendered != tokenizer.render(system, user, not thinking)
    expect(is_read, f"protocol.turns.{turn_index}.thinking", wanted, str(thinking).lower())
    return rendered


def _check_shown(turn: config_lib.Turn, turn_index: int, rendered: str) -> None:
    for field, text in (("system", turn.system), ("user", turn.user)):
        for literal, _, _, _ in string.Formatter().parse(text):
            is_whole, path = literal.strip() in rendered, f"protocol.turns.{turn_index}.{field}"  # templates may trim
            got = f"one that leaves out {literal.strip()[:40]!r}"
            expect(is_whole, path, "a chat template that shows this prompt whole", got)


def _group_pieces(pieces: list[Literal | Slot]) -> tuple[FramePlan, ...]:
    frames: list[FramePlan] = []
    for piece in pieces:
        level = piece.level if isinstance(piece, Slot) else 0
        # A frame of level 0 holds prompt text alone.
        is_short = bool(frames) and frames[-1].level == 0 and count_slots(frames[-1], (), 0) < _SHORTEST_SHARED
        if frames and (level <= frames[-1].level or is_short):
            frames[-1] = FramePlan(max(level, frames[-1].level), (*frames[-1].pieces, piece))
        else:
            frames.append(FramePlan(level, (piece,)))
    return tuple(frames)
