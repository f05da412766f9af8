"""Rollout trees, drawn again by hand: every message from its plain context and its own address.

The hand knows nothing of frames, caches, batches or loops: tests/conftest.py writes each message's context out as one
row of tokens, and the uniform number of each token is folded from (key, problem, turn, alternative, slot).
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from c3jax.models.decoder import define_decoder
from c3jax.models.policy import Weights
from c3jax.rollout.tree import make_tree_sampler, take_problems, trim_messages

GOLDEN = Path(__file__).parent / "goldens" / "chain_tree.json"
NAMES = ("chain", "parallel", "debate")


def fold(key: jax.Array, *numbers: int) -> jax.Array:
    for number in numbers:
        key = jax.random.fold_in(key, number)
    return key


draw = jax.jit(lambda key, *numbers: jax.random.uniform(fold(key, *numbers)))


def list_support(logits_V: np.ndarray, sampling) -> tuple[np.ndarray, np.ndarray]:
    """Tokens that may be drawn and their probabilities, in the order in which they share the unit interval."""
    scaled_V = np.float64(logits_V) / sampling.temperature
    if sampling.top_k == 0:
        order = np.arange(len(scaled_V))
    else:
        order = np.argsort(-scaled_V, kind="stable")[: sampling.top_k]
    mass = np.exp(scaled_V[order] - scaled_V.max())
    mass /= mass.sum()
    is_in = np.cumsum(mass) - mass < sampling.top_p
    return order[is_in], mass[is_in] / mass[is_in].sum()


@pytest.mark.parametrize("name", NAMES)
def test_every_message_follows_from_its_context_and_its_address(tiny, name):
    tree = tiny.get_tree(name)
    logits_BSV = tiny.run_flat(tiny.params, [each.context + each.message for each in tree.sequences]).logits
    for each, logits_SV in zip(tree.sequences, logits_BSV, strict=True):
        turn = tree.rollout.turns[each.turn]
        for slot, token in enumerate(each.message):
            support, mass = list_support(logits_SV[len(each.context) + slot - 1], tree.sampling)
            uniform = draw(tree.key, int(tiny.problem_P[each.problem]), each.turn, each.alternative, slot)
            assert token == support[np.searchsorted(np.cumsum(mass), float(uniform), side="right")], (each, slot)
            logp = turn.behaviour_logp_NT[each.row, slot]
            np.testing.assert_allclose(logp, np.log(mass[support == token]), atol=1e-5)
            recorded = turn.support_NTK[each.row, slot]
            if tree.sampling.top_k:
                assert recorded[recorded >= 0].tolist() == support.tolist()
            else:
                assert recorded.shape == (0,)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_drawn_after_a_stop_token(tiny, name):
    tree = tiny.get_tree(name)
    stopped = 0
    for turn, plan in zip(tree.rollout.turns, tree.plans, strict=True):
        assert turn.tokens_NT.shape[1] == plan.max_tokens
        for row, tokens in enumerate(turn.tokens_NT.tolist()):
            stops = [slot for slot, token in enumerate(tokens) if token in tiny.stop_tokens]
            drawn = stops[0] + 1 if stops else plan.max_tokens
            slot_T = np.arange(plan.max_tokens)
            np.testing.assert_array_equal(turn.sampled_NT[row], slot_T < drawn)
            np.testing.assert_array_equal(turn.content_NT[row], slot_T < (stops[0] if stops else drawn))
            assert turn.truncated_N[row] == (not stops)
            assert not any(tokens[drawn:]) and not turn.behaviour_logp_NT[row, drawn:].any()
            assert (turn.support_NTK[row, drawn:] == -1).all()
            stopped += bool(stops)
    messages = sum(len(turn.truncated_N) for turn in tree.rollout.turns)
    assert 0 < stopped < messages


@pytest.mark.parametrize("name", NAMES)
def test_counts_are_those_of_the_messages_written_out(tiny, name):
    """A context's tokens are run once for all messages that share them: a piece counts once a row of its frame."""
    tree, questions = tiny.get_tree(name), [len(row) for row in tiny.questions]
    prefilled = {
        # planner: 2 + q + 2 a problem; actor: 1 + q + 1 a problem, the plan + 2 a plan.
        "chain": lambda length: sum(4 + q + 2 + q for q in questions) + length(0, 8, 2),
        # 2 + q a problem, twice; judge: 8 once, q a problem, a first message + 1, a second message + 1.
        "parallel": lambda length: sum(2 * (2 + q) + q for q in questions) + 8 + length(0, 8, 1) + length(1, 16, 1),
        # q + 1 a problem, three times; the reply's frame; the closing's, with the opening repeated for each reply.
        "debate": lambda length: (
            sum(3 * (q + 1) for q in questions) + length(0, 8, 1) + length(1, 16, 2) + 2 * length(0, 8, 0)
        ),
    }[name]

    def length(turn: int, rows: int, literals: int) -> int:
        content = [row for row in tree.rollout.turns[turn].content_NT]
        assert len(content) == rows
        return int(sum(row.sum() for row in content)) + rows * literals

    drawn = [each.message for each in tree.sequences]
    assert tree.counts.prefilled == prefilled(length)
    assert tree.counts.generated == sum(len(message) for message in drawn)
    assert tree.counts.truncated == sum(message[-1] not in tiny.stop_tokens for message in drawn)
    assert tree.counts.messages == len(drawn) == {"chain": 24, "parallel": 56, "debate": 56}[name]


def test_alternatives_differ_from_the_first_token_on(tiny):
    """At temperature 1 and with nothing cut off, two draws agree with probability sum p^2."""
    tree = tiny.get_tree("debate")
    logits_BSV = tiny.run_flat(tiny.params, [each.context for each in tree.sequences]).logits
    agree, expected, variance = 0, 0.0, 0.0
    for one, other, logits_SV in zip(tree.sequences[::2], tree.sequences[1::2], logits_BSV[::2], strict=True):
        assert one.context == other.context
        same = float(np.sum(np.square(jax.nn.softmax(logits_SV[len(one.context) - 1]))))
        agree, expected, variance = agree + (one.message[0] == other.message[0]), expected + same, variance + same
    assert len(tree.sequences) == 56 and expected < 14
    assert abs(agree - expected) < 3 * np.sqrt(variance)


def test_alternatives_of_parallel_turns_are_not_copies(tiny):
    """Turn 1 has the problem's context whatever turn 0 wrote, yet four messages of its own."""
    tree = tiny.get_tree("parallel")
    seconds = [each for each in tree.sequences if each.turn == 1]
    for problem in range(4):
        own = [each for each in seconds if each.problem == problem]
        assert len({tuple(each.context) for each in own}) == 1
        assert len({tuple(each.message) for each in own}) > 1


def test_messages_know_nothing_of_the_batch(tiny):
    tree = tiny.get_tree("chain")
    order = jnp.array([2, 0, 3, 1])
    question = take_problems(tiny.question, 4, order)
    turned, _ = tree.sampler(Weights(tiny.params, {}), question, tree.key, tiny.problem_P[order], tree.fan_out)
    check_same(turned, take_problems(tree.rollout, 4, order))
    question = take_problems(tiny.question, 4, jnp.array([2]))
    alone, _ = tree.sampler(Weights(tiny.params, {}), question, tree.key, tiny.problem_P[2:3], tree.fan_out)
    check_same(alone, take_problems(tree.rollout, 4, jnp.array([2])))


def check_same(got, expected):
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        if one.dtype == jnp.float32:
            np.testing.assert_allclose(one, other, atol=1e-5)
        else:
            np.testing.assert_array_equal(one, other)


def test_another_step_problem_or_policy_is_another_tree_and_no_new_trace(tiny):
    tree = tiny.get_tree("chain")
    traces = tree.sampler._cache_size()
    params = jax.tree.map(lambda leaf: leaf * 1.5, tiny.params)
    results = [
        tree.sampler(Weights(tiny.params, {}), tiny.question, jax.random.key(2), tiny.problem_P, tree.fan_out),
        tree.sampler(Weights(tiny.params, {}), tiny.question, tree.key, tiny.problem_P + 1, tree.fan_out),
        tree.sampler(Weights(params, {}), tiny.question, tree.key, tiny.problem_P, tree.fan_out),
    ]
    for rollout, _ in results:
        assert np.any(rollout.turns[0].tokens_NT != tree.rollout.turns[0].tokens_NT)
    again, _ = tree.sampler(Weights(tiny.params, {}), tiny.question, tree.key, tiny.problem_P, tree.fan_out)
    for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(tree.rollout), strict=True):
        np.testing.assert_array_equal(one, other)
    assert tree.sampler._cache_size() == traces


def test_golden_tree(tiny):
    """Recorded once: a new version of JAX or of this code must not quietly draw other messages.

    After a wanted change of addresses, write `describe(...)` of the new tree to the file with json.dumps.
    """
    golden, got = json.loads(GOLDEN.read_text()), describe(tiny.get_tree("chain"))
    assert [each["message"] for each in got] == [each["message"] for each in golden]
    np.testing.assert_allclose([each["logp"] for each in got], [each["logp"] for each in golden], atol=1e-4)


def describe(tree) -> list[dict]:
    logp = [tree.rollout.turns[each.turn].behaviour_logp_NT[each.row].sum() for each in tree.sequences]
    return [
        {"turn": each.turn, "message": each.message, "logp": round(float(total), 5)}
        for each, total in zip(tree.sequences, logp, strict=True)
    ]


def test_take_problems_takes_whole_problems():
    per_row = {"question": jnp.arange(3), "turn": jnp.arange(12).reshape(6, 2)}
    got = take_problems(per_row, 3, jnp.array([2, 0]))
    assert got["question"].tolist() == [2, 0]
    assert got["turn"].tolist() == [[8, 9], [10, 11], [0, 1], [2, 3]]


@pytest.mark.parametrize("is_scanned", [False, True])
def test_rows_that_leave_the_batch_say_what_they_would_have_said_in_it(tiny, is_scanned):
    """Sampled over two frames: sixteen actors, some stop at once, half of them not before the last slot.

    The same with layers as they are decoded on TPU.
    """
    tree = tiny.get_tree("chain")
    lengths = tree.rollout.turns[1].sampled_NT.sum(axis=1)
    assert min(lengths) == 1 and np.sum(lengths == max(lengths)) <= 8
    policy = tiny.policy
    if is_scanned:
        policy = policy._replace(graphdef=define_decoder(tiny.spec._replace(scans_decoding=True))[0])
    sampler = make_tree_sampler(policy, tree.plans, tree.sampling, tiny.stop_tokens, batches=4)
    rollout, counts = jax.device_get(
        sampler(Weights(tiny.params, {}), tiny.question, tree.key, tiny.problem_P, tree.fan_out)
    )
    assert counts == tree.counts
    for got, expected in zip(rollout.turns, tree.rollout.turns, strict=True):
        for name in ("tokens_NT", "content_NT", "sampled_NT", "support_NTK", "truncated_N"):
            np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))
        np.testing.assert_allclose(got.behaviour_logp_NT, expected.behaviour_logp_NT, atol=1e-6)


def test_messages_are_cut_to_the_share_of_their_slots_that_holds_them_all(tiny):
    """The planner's 5 slots and the actor's 4: cut to 3 and 2 only if both fit, and never below the longest."""
    rollout = tiny.get_tree("chain").rollout
    assert [turn.sampled_NT.any(axis=0).sum() for turn in rollout.turns] == [5, 4]
    (kept,) = trim_messages([rollout], 3)
    assert [turn.tokens_NT.shape[1] for turn in kept.turns] == [5, 4]

    def shorten(turn, slots):
        return turn._replace(sampled_NT=turn.sampled_NT & (np.arange(turn.sampled_NT.shape[1]) < slots))

    for needed, lengths, expected in (
        ((3, 1), 3, [3, 2]),
        ((2, 1), 3, [2, 1]),
        ((2, 1), 2, [3, 2]),
        ((1, 3), 3, [5, 4]),
    ):
        short = rollout._replace(turns=tuple(map(shorten, rollout.turns, needed)))
        (cut,) = trim_messages([short], lengths)
        assert [turn.tokens_NT.shape[1] for turn in cut.turns] == expected
        for before, after in zip(short.turns, cut.turns, strict=True):
            slots = after.tokens_NT.shape[1]
            np.testing.assert_array_equal(after.support_NTK, before.support_NTK[:, :slots])
            np.testing.assert_array_equal(after.truncated_N, before.truncated_N)
