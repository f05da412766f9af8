"""Plans of contexts: prompts cut at their slots, pieces grouped into frames, and frames that say what was written."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from c3jax import protocol
from c3jax.config.run import ConfigError, Protocol, Visible
from c3jax.models.tokenizer import make_word_tokenizer
from c3jax.protocol import FramePlan, Literal, Slot
from c3jax.rollout import context
from c3jax.types import Messages, Tokenizer

WORDS = tuple("alpha beta gamma delta epsilon zeta eta theta { } : one two three four".split())
LONG = "alpha beta gamma delta epsilon zeta eta theta"  # eight words: worth a frame of its own

QUESTION, FIRST, SECOND = (Slot(level) for level in (1, 2, 3))


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return make_word_tokenizer(WORDS)


def make_protocol(*users: str | tuple[str, str], roles: str = "", question_tokens: int = 4) -> Protocol:
    """Turns a, b, c, ... of 5, 6, 7, ... tokens; a pair is a system and a user prompt."""
    turns: list[dict[str, Any]] = []
    for place, user in enumerate(users):
        system, text = user if isinstance(user, tuple) else ("", user)
        role = roles[place] if roles else f"role {place}"
        turns.append({"name": "abcdef"[place], "role": role, "system": system, "user": text, "max_tokens": 5 + place})
    return Protocol.model_validate({"turns": tuple(turns), "question_tokens": question_tokens})


def make_tokenizer(words: Tokenizer, render: Callable[[str, str], str]) -> Tokenizer:
    return words._replace(render=render)


def show_plan(plan: protocol.TurnPlan, words: Tokenizer) -> list[tuple[int, str]]:
    """A plan's frames as their level and a text, in which messages stand as their level in angle brackets."""

    def show_piece(piece: Literal | Slot) -> str:
        return words.decode(piece.tokens) if isinstance(piece, Literal) else f"<{piece.level}>"

    return [(frame.level, " ".join(map(show_piece, frame.pieces))) for frame in plan.frames]


# --------------------------------------------------------------------------------------------------------------------
# Frames


def test_a_chain_is_a_frame_a_level(words):
    plans = protocol.plan_turns(make_protocol(LONG + " {question} one", LONG + " {question} one {a} two"), words)
    assert show_plan(plans[0], words) == [(0, f"<|user|> {LONG}"), (1, "<1> one <|assistant|>")]
    assert show_plan(plans[1], words) == [
        (0, f"<|user|> {LONG}"),
        (1, "<1> one"),
        (2, "<2> two <|assistant|>"),
    ]
    assert [(plan.name, plan.role, plan.max_tokens, plan.is_trained) for plan in plans] == [
        ("a", "role 0", 5, True),
        ("b", "role 1", 6, True),
    ]
    # A literal holds token ids: alpha ... theta are words 0 to 7, and <|user|> is the fourth of the specials behind.
    assert plans[0].frames[0] == FramePlan(0, (Literal((18, 0, 1, 2, 3, 4, 5, 6, 7)),))


def test_short_shared_text_goes_with_the_next_frame(words):
    plans = protocol.plan_turns(make_protocol("alpha {question} beta", "alpha {a} beta {question}"), words)
    assert show_plan(plans[0], words) == [(1, "<|user|> alpha <1> beta <|assistant|>")]
    # The next frame may be a message's: then its rows repeat the text.
    assert show_plan(plans[1], words) == [(2, "<|user|> alpha <2> beta <1> <|assistant|>")]
    # Seven tokens go with the next frame, eight stand alone (the mark <|user|> is one of them).
    for count, frames in ((6, 1), (7, 2)):
        text = " ".join(LONG.split()[:count])
        assert len(protocol.plan_turns(make_protocol(text + " {question}"), words)[0].frames) == frames


def test_turns_that_do_not_see_each_other_run_beside_each_other(words):
    plans = protocol.plan_turns(make_protocol("{question} one", "{question} two", "{question} {a} {b} three"), words)
    assert show_plan(plans[0], words) == [(1, "<|user|> <1> one <|assistant|>")]
    assert show_plan(plans[1], words) == [
        (1, "<|user|> <1> two <|assistant|>")
    ]  # a level-1 context: the question's rows
    assert show_plan(plans[2], words) == [(1, "<|user|> <1>"), (2, "<2>"), (3, "<3> three <|assistant|>")]


def test_a_role_may_act_twice_and_see_its_own_words(words):
    debate = make_protocol("{question}", "{question} {a}", "{question} {a} one {b}", roles="xyx")
    plans = protocol.plan_turns(debate, words)
    assert [plan.role for plan in plans] == ["x", "y", "x"]
    assert show_plan(plans[2], words) == [(1, "<|user|> <1>"), (2, "<2> one"), (3, "<3> <|assistant|>")]


def test_a_coarser_piece_after_a_finer_one_joins_its_frame(words):
    plans = protocol.plan_turns(
        make_protocol("{question}", "{question} {a}", "{b} one {a} two {question} three"), words
    )
    assert show_plan(plans[2], words) == [(3, "<|user|> <3> one <2> two <1> three <|assistant|>")]
    slots = [piece for piece in plans[2].frames[0].pieces if isinstance(piece, Slot)]
    assert slots == [SECOND, FIRST, QUESTION]


def test_a_turn_may_see_nothing_or_everything_twice(words):
    plans = protocol.plan_turns(make_protocol("alpha beta", "{question} {question} {a} {a} one"), words)
    assert show_plan(plans[0], words) == [(0, "<|user|> alpha beta <|assistant|>")]
    assert show_plan(plans[1], words) == [(1, "<|user|> <1> <1>"), (2, "<2> <2> one <|assistant|>")]


def test_system_prompts_have_slots_too_and_braces_are_plain_when_doubled(words):
    plans = protocol.plan_turns(make_protocol(("alpha {{ {question}", "beta }} one")), words)
    assert show_plan(plans[0], words) == [(1, "<|system|> alpha { <1> <|user|> beta } one <|assistant|>")]


def test_special_tokens_written_in_a_prompt_are_meant(words):
    plan = protocol.plan_turns(make_protocol("{question} <stop> one"), words)[0]
    assert plan.frames[0].pieces[2].tokens[0] == words.stop_tokens[0]


# --------------------------------------------------------------------------------------------------------------------
# Chat templates that cannot be used


@pytest.mark.parametrize(
    ("render", "message"),
    [
        (
            lambda system, user: f"alpha {user} two",  # no place for a system prompt
            "expected a chat template that shows every slot once and in order, got slots ['question'] of"
            " ['question', 'question']",
        ),
        (
            lambda system, user: f"{system} {user} {user} two",
            "expected a chat template that shows every slot once and in order, got slots ['question', 'question',"
            " 'question'] of ['question', 'question']",
        ),
        (
            lambda system, user: f"{user} {system} two",
            "expected a chat template that shows every slot once and in order, got slots ['question', 'question'] of"
            " ['question', 'question']",
        ),
        (
            lambda system, user: f"one {system} {user}",
            "expected prompt text after the last slot (the chat template adds none), got a slot",
        ),
    ],
    ids=["drops", "repeats", "swaps", "ends in a slot"],
)
def test_a_chat_template_that_loses_a_slot_is_refused(words, render, message):
    two_slots = make_protocol(("alpha {question}", "beta {question}"))
    with pytest.raises(ConfigError, match=f"^{re.escape(f'protocol.turns.0: {message}')}$"):
        protocol.plan_turns(two_slots, make_tokenizer(words, render))


def test_a_system_prompt_without_slots_must_be_shown_too(words):
    """A template that ignores the system prompt would leave out an instruction without a word."""
    dropping = make_tokenizer(words, lambda system, user: f"{user} one")
    sentence = (
        "^protocol.turns.1.system: expected a chat template that shows this prompt whole, got one that leaves out"
        " 'alpha beta'$"
    )
    with pytest.raises(ConfigError, match=sentence):
        protocol.plan_turns(make_protocol("{question}", ("alpha beta", "{question} {a}")), dropping)
    assert len(protocol.plan_turns(make_protocol("{question}", "{question} {a}"), dropping)) == 2


# --------------------------------------------------------------------------------------------------------------------
# Sizes


def test_rows_multiply_down_the_tree():
    fan_out = (2, 4, 3)
    assert [protocol.rows_of(level, 5, fan_out) for level in range(5)] == [1, 5, 10, 40, 120]
    assert [protocol.rows_of(level, 1, (1, 1)) for level in range(4)] == [1, 1, 1, 1]


def test_context_lengths_count_every_piece_and_the_message(words):
    plans = protocol.plan_turns(make_protocol("{question} one", "alpha {question} {a} {a}", question_tokens=4), words)
    # <|user|> question(4) one <|assistant|> message(5); <|user|> alpha question(4) a(5) a(5) <|assistant|> message(6)
    assert protocol.context_tokens(plans, 4) == (12, 23)
    assert protocol.context_tokens(plans, 0) == (8, 19)
    protocol.check_lengths(plans, 4, 23)
    with pytest.raises(
        ConfigError,
        match=r"^protocol.turns.1: expected a context and message of at most 22 tokens \(the model's\), got up to 23$",
    ):
        protocol.check_lengths(plans, 4, 22)


def test_a_message_read_in_part_takes_the_slots_of_the_part(words):
    shape = make_protocol("{question} one", "alpha {question} {a} {a}", "{a} {b} {question} two")
    first = {"visible": Visible(after="one"), "visible_tokens": 2, "train_on": "visible"}
    turns = (shape.turns[0].model_copy(update=first), shape.turns[1].model_copy(update={"visible": Visible(tag="a")}))
    plans = protocol.plan_turns(shape.model_copy(update={"turns": (*turns, shape.turns[2])}), words)
    assert [plan.is_read_in_part for plan in plans] == [True, True, False]
    assert [plan.trains_visible for plan in plans] == [True, False, False]
    assert protocol.context_tokens(plans, 4) == (12, 23 - 2 * 3, 4 + 7 + 2 + 6 + 3)
    slots = [[piece for frame in plan.frames for piece in frame.pieces if isinstance(piece, Slot)] for plan in plans]
    assert slots[1:] == [[QUESTION, Slot(2, 2), Slot(2, 2)], [Slot(2, 2), SECOND, QUESTION]]


# --------------------------------------------------------------------------------------------------------------------
# What frames say together


def make_messages(texts: list[str], words: Tokenizer, length: int) -> Messages:
    """Messages of these words, each with a stop token behind; fields that contexts do not read are empty."""
    tokens = np.zeros((len(texts), length), np.int32)
    content = np.zeros((len(texts), length), bool)
    for row, text in enumerate(texts):
        said = words.encode_text(text)
        tokens[row, : len(said) + 1] = [*said, words.stop_tokens[0]]
        content[row, : len(said)] = True
    empty = jnp.zeros((len(texts), length))
    return Messages(jnp.asarray(tokens), jnp.asarray(content), empty, empty, empty, empty)


PROTOCOLS = {
    "chain": make_protocol(LONG + " {question} one", LONG + " {question} one {a} two"),
    "parallel": make_protocol("{question} one", ("alpha", "{question} two"), LONG + " {question} {b} : {a} three"),
    "debate": make_protocol("{question}", "{question} {a} one", "{b} one {a} two {question} three", roles="xyx"),
    "systems": make_protocol((LONG + " {question}", LONG), ("{a} {{ }}", "alpha {question}"), ("beta {b}", "{a}")),
    "blind": make_protocol("alpha beta", "{question} {question} {a} {a} one"),
}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_frames_of_a_row_are_the_rendered_prompt(words, name):
    """Two questions and a fan-out of 2 everywhere: each row's kept tokens, frame by frame, are its whole prompt's."""
    shape = PROTOCOLS[name]
    plans = protocol.plan_turns(shape, words)
    fan_out = (2,) * len(plans)
    questions = ["alpha", "beta gamma delta :"]
    texts = [
        [" ".join(np.random.default_rng([turn, row]).choice(WORDS, size=row % 4)) for row in range(2 * 2 ** (turn + 1))]
        for turn in range(len(plans))
    ]
    question = context.make_frame([words.encode_text(text) for text in questions], 4)
    turns = [make_messages(rows, words, plan.max_tokens) for rows, plan in zip(texts, plans, strict=True)]
    for place, (plan, turn) in enumerate(zip(plans, shape.turns, strict=True)):
        path = context.make_path(plan, question, turns[:place], fan_out)
        rows = [frame.tokens_NS.shape[0] for frame in path]
        assert rows == [protocol.rows_of(frame.level, 2, fan_out) for frame in plan.frames]
        leaves = 2 * 2**place  # contexts of this turn, each of them a row of the finest level there is
        for leaf in range(leaves):
            tokens = []
            for frame, count in zip(path, rows, strict=True):
                row = leaf * count // leaves
                tokens += np.asarray(frame.tokens_NS)[row][np.asarray(frame.keep_NS)[row]].tolist()
            said = {"abc"[seen]: texts[seen][leaf * len(texts[seen]) // leaves] for seen in range(place)}
            slots = {"question": questions[leaf * 2 // leaves], **said}
            prompt = words.render(turn.system.format(**slots), turn.user.format(**slots))
            assert tokens == words.encode_prompt(prompt)
            assert len(tokens) + plan.max_tokens <= protocol.context_tokens(plans, 4)[place]
