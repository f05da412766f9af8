"""Right answers read after every message of a tree: their probabilities are those of plain rows of tokens."""

import jax
import jax.numpy as jnp
import numpy as np

from c3jax.learner.likelihood import make_answer_reader
from c3jax.models.policy import Weights
from c3jax.protocol import Literal
from c3jax.rollout.context import make_frame
from c3jax.types import Messages

NULL, TEMPERATURE = (9, 3), 1.3
LEADS, ANSWERS = ([10], [10], [], [10, 11]), ([4, 5], [7], [8], [17, 18])  # of each problem


def make_answers() -> Messages:
    frame = make_frame([lead + own for lead, own in zip(LEADS, ANSWERS, strict=True)], 4)
    content = frame.keep_NS & (np.arange(4) >= np.array([[len(lead)] for lead in LEADS]))
    return Messages(frame.tokens_NS, content, frame.keep_NS, jnp.zeros((4, 4)), jnp.zeros((4, 4, 0), int), jnp.ones(4))


def write_out(tiny, tree, problem: int, said: list[list[int]]) -> list[int]:
    """The last turn's context after these messages."""
    row: list[int] = []
    for piece in (piece for frame in tree.plans[-1].frames for piece in frame.pieces):
        row += piece.tokens if isinstance(piece, Literal) else [tiny.questions[problem], *said][piece.level - 1]
    return row


def test_an_answer_is_read_in_the_last_turn_s_context_with_null_messages_for_those_to_come(tiny):
    tree = tiny.get_tree("parallel")
    read = make_answer_reader(tiny.policy, tree.plans, NULL, TEMPERATURE)
    rollout, tokens = jax.device_get(read(Weights(tiny.params, {}), tree.rollout, make_answers(), tree.fan_out))
    rows, starts = [], []
    for turn, messages in enumerate(tree.rollout.turns):
        count = len(messages.tokens_NT) // tree.fan_out[turn]
        for start in range(count):
            problem = start * 4 // count
            earlier = [(part, start * len(part.tokens_NT) // count) for part in tree.rollout.turns[:turn]]
            said = [part.tokens_NT[row][part.content_NT[row]].tolist() for part, row in earlier]
            context = write_out(tiny, tree, problem, [*said, *[list(NULL)] * (2 - turn)])
            rows.append(context + LEADS[problem] + ANSWERS[problem])
            starts.append((turn, len(context) + len(LEADS[problem])))
    logp_BS = tiny.run_flat(tiny.params, rows, temperature=TEMPERATURE).logp
    for turn, messages in enumerate(rollout.turns):
        own = [(at, row, logp) for (of, at), row, logp in zip(starts, rows, logp_BS, strict=True) if of == turn]
        expected = [np.exp(np.mean(logp_S[at - 1 : len(row) - 1])) for at, row, logp_S in own]
        np.testing.assert_allclose(messages.likelihood_N, np.repeat(expected, tree.fan_out[turn]), rtol=1e-4)
        assert np.std(expected) > 1e-3
        np.testing.assert_array_equal(messages.tokens_NT, tree.rollout.turns[turn].tokens_NT)
    # Text that all problems share is run once a problem, or once in all.
    assert 0.5 * sum(map(len, rows)) < tokens <= sum(map(len, rows))
