"""The visible part of messages, against a search for the markers in the messages' bytes."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from c3jax.learner import forward
from c3jax.markers import make_tables
from c3jax.models.policy import Weights
from c3jax.models.tokenizer import make_word_tokenizer
from c3jax.protocol import FIRST_TURN_LEVEL, Slot, TurnPlan
from c3jax.rollout import context, tree
from c3jax.rollout.visible import count_hidden, find_part, narrow_content
from c3jax.types import Messages, Tokenizer

WORDS = make_word_tokenizer(["word"])
MARKERS = (4, 23)  # tokens of the chain that end what others do not read


def find_span(text: bytes, opening: bytes, closing: bytes | None) -> tuple[int, int] | None:
    """First and last byte (exclusive) of the part."""

    def list_ends(marker: bytes) -> list[int]:
        return [end for end in range(len(text) + 1) if text[:end].endswith(marker)]

    opened = list_ends(opening)
    if closing is None:
        return (opened[-1], len(text) + 1) if opened and opened[-1] < len(text) else None
    closed = [end - len(closing) for end in list_ends(closing)]
    pairs = [(max(before), end) for end in closed if (before := [first for first in opened if first <= end])]
    pairs = [(first, end) for first, end in pairs if not any(first <= other < end for other in closed)]
    return pairs[-1] if pairs else None


def find_visible(pieces: Sequence[bytes], opening: bytes, closing: bytes | None) -> list[bool]:
    """Which pieces hold a byte of the part, or stand between two that do."""
    span = find_span(b"".join(pieces), opening, closing)
    ends = list(itertools.accumulate(map(len, pieces)))
    starts = [end - len(piece) for end, piece in zip(ends, pieces, strict=True)]
    if span is None or span[0] == span[1]:
        return [False] * len(pieces)
    return [end > span[0] and start < span[1] for start, end in zip(starts, ends, strict=True)]


def make_tokenizer(pieces: Sequence[bytes], added: dict[str, int] | None = None) -> Tokenizer:
    return WORDS._replace(list_bytes=lambda: list(pieces), added_tokens=added or {})


def check(rows: Sequence[Sequence[bytes]], opening: str, closing: str | None) -> list[list[bool]]:
    """Compare every row, all of which are cut at one length and filled with a token that would end a marker."""
    vocabulary = sorted({piece for row in rows for piece in row} | {b"", opening.encode()})
    tables = make_tables(make_tokenizer(vocabulary), opening, closing)
    slots = max(map(len, rows)) + 1
    tokens = np.full((len(rows), slots), vocabulary.index(opening.encode()))
    keep = np.zeros(tokens.shape, bool)
    for row, pieces in enumerate(rows):
        tokens[row, : len(pieces)] = [vocabulary.index(piece) for piece in pieces]
        keep[row, : len(pieces)] = True
    found = np.asarray(find_part(tables, jnp.asarray(tokens), jnp.asarray(keep)))
    close = None if closing is None else closing.encode()
    expected = [find_visible(row, opening.encode(), close) for row in rows]
    for row, (is_part, seen) in enumerate(zip(found, expected, strict=True)):
        assert is_part[: len(seen)].tolist() == seen and not is_part[len(seen) :].any(), rows[row]
    return expected


def cut_everywhere(text: bytes) -> list[list[bytes]]:
    """A text as tokens in every possible way."""
    rows = []
    for cuts in itertools.product((False, True), repeat=len(text) - 1):
        at = [0, *(index + 1 for index, is_cut in enumerate(cuts) if is_cut), len(text)]
        rows.append([text[first:end] for first, end in itertools.pairwise(at)])
    return rows


@pytest.mark.parametrize(
    ("text", "opening", "closing"),
    [
        ("a</think>bc", "</think>", None),
        ("</s>b</s>cd", "</s>", None),  # twice: what is between them is hidden
        ("a</think>", "</think>", None),  # nothing after it
        ("a</thinkb", "</think>", None),
        ("xaaay", "aa", None),  # occurrences that overlap: the last counts
        ("ababacb", "abac", None),
        ("◁/t▷é", "/t▷", None),  # cut inside of characters
        ("x<a>y</a>z", "<a>", "</a>"),
        ("<a>x<a></a>", "<a>", "</a>"),  # an empty part
        ("<a>x</a>y</a>", "<a>", "</a>"),
        ("<a>x</a><a>y", "<a>", "</a>"),  # the second is not closed
        ("<a><a>é</a>", "<a>", "</a>"),
    ],
)
def test_a_marker_is_found_however_it_is_cut(text, opening, closing):
    rows = cut_everywhere(text.encode())
    expected = check(rows, opening, closing)
    if "a</think>bc" == text:
        assert (rows[-1], expected[-1]) == ([bytes([byte]) for byte in text.encode()], [False] * 9 + [True] * 2)
        assert expected[rows.index([b"a</think", b">bc"])] == [False, True]  # no byte of the part is lost


@pytest.mark.parametrize(("opening", "closing"), [("</think>", None), ("<answer>", "</answer>")])
def test_random_messages_are_read_as_their_bytes_say(opening, closing):
    rng = random.Random(7)
    parts = [*(opening, closing or "</thin") * 4, "<", "</", "answer>", "x", " y", "é", "<a", "</answe", "\n\n", ">"]
    rows = []
    for _ in range(600):
        text = "".join(rng.choices(parts, k=rng.randint(1, 9))).encode()
        at = sorted({0, len(text), *rng.sample(range(len(text)), k=rng.randint(0, len(text)))})
        rows.append([text[first:end] for first, end in itertools.pairwise(at)])
        if rng.random() < 0.3:
            rows[-1].insert(rng.randint(0, len(rows[-1])), b"")
    expected = check(rows, opening, closing)
    assert 60 < sum(map(any, expected)) < 540


def test_a_marker_that_is_an_added_token_is_that_token_alone():
    pieces = [b"x", b"</", b"think", b">", b"</think>"]
    tables = make_tables(make_tokenizer(pieces, {"</think>": 4}), "</think>", None)
    # Spelled out after it: no marker. Tokens that the model has beyond its tokenizer's: no text.
    tokens = jnp.array([[0, 4, 0, 1, 2, 3, 0], [0, 1, 2, 3, 0, 0, 0], [0, 4, 0, 5, 99, 0, 0], [0, 99, 5, 0, 0, 0, 0]])
    found = find_part(tables, tokens, jnp.ones(tokens.shape, bool))
    expected = [[0, 0, 1, 1, 1, 1, 1], [0] * 7, [0, 0, 1, 1, 1, 1, 1], [0] * 7]
    np.testing.assert_array_equal(found, np.array(expected, bool))


def make_messages(tokens: list[list[int]], stop: int) -> Messages:
    tokens_NT = jnp.array(tokens)
    sampled_NT = tokens_NT >= 0
    return Messages(
        tokens_NT=jnp.maximum(tokens_NT, 0),
        content_NT=sampled_NT & (tokens_NT != stop),
        sampled_NT=sampled_NT,
        behaviour_logp_NT=jnp.zeros(tokens_NT.shape),
        support_NTK=jnp.zeros((*tokens_NT.shape, 0), jnp.int32),
        truncated_N=jnp.zeros(len(tokens), bool),
    )


def test_a_turn_narrows_what_others_read_and_moves_it_to_the_front():
    pieces = [b"a", b"b", b"c", b"|", b"stop"]
    tables = make_tables(make_tokenizer(pieces), "|", None)
    plan = TurnPlan("turn", "role", (), 6, is_trained=True, markers=tables, visible_tokens=2)
    messages = make_messages([[0, 3, 1, 2, 0, 4], [0, 1, 2, 0, 1, 2], [0, 3, 1, 4, -1, -1]], stop=4)
    narrow = narrow_content(plan, messages)
    expected = [[0, 0, 1, 1, 0, 0], [0] * 6, [0, 0, 1, 0, 0, 0]]
    np.testing.assert_array_equal(narrow.content_NT, np.array(expected, bool))
    np.testing.assert_array_equal(narrow.sampled_NT, messages.sampled_NT)
    assert count_hidden(plan, narrow) == 1
    frame = context.compact(narrow, 2)
    np.testing.assert_array_equal(frame.keep_NS, np.array([[1, 1], [0, 0], [1, 0]], bool))
    assert frame.tokens_NS[0].tolist() == [1, 2] and frame.tokens_NS[2, 0] == 1
    whole = plan._replace(markers=None, visible_tokens=None)
    assert narrow_content(whole, messages).content_NT is messages.content_NT
    assert count_hidden(whole, messages) == 0
    capped = narrow_content(whole._replace(visible_tokens=3), messages)
    assert capped.content_NT.sum(axis=1).tolist() == [3, 3, 3]


# --------------------------------------------------------------------------------------------------------------------
# In a tree: later turns read the part, and nothing else of the message


def narrow_chain(tiny) -> list[TurnPlan]:
    """The chain whose planner is read in part, two tokens of it at most."""
    first, second = tiny.get_tree("chain").plans
    tables = make_tables(make_tokenizer([b"|" if token in MARKERS else b"x" for token in range(30)]), "|", None)
    *before, last = second.frames
    frames = (*before, last._replace(pieces=(Slot(FIRST_TURN_LEVEL, 2), *last.pieces[1:])))
    plan = first._replace(markers=tables, visible_tokens=2, trains_visible=True)
    return [plan, second._replace(frames=frames)]


def test_a_tree_of_turns_read_in_part_is_that_of_plain_contexts(tiny):
    chain, plans = tiny.get_tree("chain"), narrow_chain(tiny)
    sampler = tree.make_tree_sampler(tiny.policy, plans, chain.sampling, tiny.stop_tokens)
    arguments = (Weights(tiny.params, {}), tiny.question, chain.key, tiny.problem_P, chain.fan_out)
    rollout, counts = jax.device_get(sampler(*arguments))
    first, second = rollout.turns
    # What is drawn first is what it is in the chain: only what others read of it differs.
    np.testing.assert_array_equal(first.tokens_NT, chain.rollout.turns[0].tokens_NT)
    np.testing.assert_array_equal(first.behaviour_logp_NT, chain.rollout.turns[0].behaviour_logp_NT)
    parts = []
    for tokens, sampled in zip(first.tokens_NT, first.sampled_NT, strict=True):
        text = [token for token in tokens[sampled].tolist() if token not in tiny.stop_tokens]
        marks = [index for index, token in enumerate(text) if token in MARKERS]
        parts.append(text[marks[-1] + 1 :][:2] if marks else [])
    assert [tokens[keep].tolist() for tokens, keep in zip(first.tokens_NT, first.content_NT, strict=True)] == parts
    assert counts.hidden == sum(not part for part in parts) and {0, 1, 2} == set(map(len, parts))
    rows, supports, drawn = [], {}, []
    for row, (tokens, sampled) in enumerate(zip(second.tokens_NT, second.sampled_NT, strict=True)):
        before = [4, *tiny.questions[row // 4], 14, *parts[row // 2], 15, 16]
        drawn.append((len(before) - 1, int(sampled.sum())))
        rows.append(before + tokens[sampled].tolist())
        supports |= {
            (row, len(before) - 1 + slot): second.support_NTK[row, slot].tolist() for slot in range(len(tokens))
        }
    flat = tiny.run_flat(tiny.params, rows, supports, chain.sampling.temperature)
    for row, (start, count) in enumerate(drawn):
        expected = flat.logp[row, start : start + count]
        np.testing.assert_allclose(second.behaviour_logp_NT[row, :count], expected, atol=2e-5)
    # The learner reads the planner's own tokens, all of them, and the same contexts.

    @jax.jit
    def compute(params, rollout):
        model = nnx.merge(tiny.policy.graphdef, params)
        spoken = [forward.Spoken(turn, rollout, chain.fan_out) for turn in range(2)]
        return forward.compute_turns_logp(model, plans, spoken, chain.sampling)

    for messages, logp_NT in zip(rollout.turns, compute(tiny.params, rollout), strict=True):
        sampled_NT = messages.sampled_NT
        np.testing.assert_allclose(logp_NT[sampled_NT], messages.behaviour_logp_NT[sampled_NT], atol=1e-5)
