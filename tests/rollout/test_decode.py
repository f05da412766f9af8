"""The decoding loop, against a plain loop that runs each row's whole text again for every token."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from c3jax.models import decoder
from c3jax.rollout import context, decode
from c3jax.rollout.sampling import GREEDY
from c3jax.types import Frame

MAX_TOKENS = 8
CONTEXTS = [[20, 21, 22], [23], [24, 25, 26, 27]]


def decode_plainly(tiny, stop_tokens: tuple[int, ...]) -> list[list[int]]:
    rows = [[4, 5, *question, 6] for question in CONTEXTS]
    messages: list[list[int]] = [[] for _ in rows]
    for _ in range(MAX_TOKENS):
        logits_BSV = tiny.run_flat(tiny.params, rows).logits
        for row, message, logits_SV in zip(rows, messages, logits_BSV, strict=True):
            if not message or message[-1] not in stop_tokens:
                message.append(int(np.argmax(logits_SV[len(row) - 1])))
                row.append(message[-1])
    return messages


def list_passes(lengths: list[int], sizes: tuple[int, ...]) -> list[tuple[int, int]]:
    """(rows, slots) of each token's pass after the first: in the smallest batch for the rows not stopped."""
    passes = []
    for drawn in range(1, max(lengths)):
        alive = sum(length > drawn for length in lengths)
        passes.append((min(size for size in sizes if size >= alive), 1))
    return passes


@pytest.mark.parametrize(("batches", "sizes"), [(1, (6,)), (3, (6, 3, 2)), (9, (6, 3, 2, 1))])
def test_greedy_decoding_equals_a_plain_loop_and_ends_with_its_longest_message(tiny, batches, sizes):
    """Every frame costs one pass, and every token after the first one more, until the last row has stopped."""
    passes: list[tuple[int, int]] = []

    class CountingDecoder(decoder.Decoder):
        def extend_paths(self, past, paths, *rest):
            for frame in itertools.chain(*paths):
                jax.debug.callback(lambda shape=frame.tokens_NS.shape: passes.append(shape))
            return super().extend_paths(past, paths, *rest)

    graphdef, _ = nnx.split(nnx.eval_shape(lambda: CountingDecoder(tiny.spec, rngs=nnx.Rngs(0))), nnx.Param)
    shared = Frame(jnp.array([[4, 5]]), jnp.ones((1, 2), bool))
    question = context.make_frame([[*tokens, 6] for tokens in CONTEXTS], 5)
    # Padding before the end, so that the last slot is kept: as in a question's frame with text after it.
    order = jnp.argsort(question.keep_NS, axis=1, stable=True)
    path = (shared, Frame(*(jnp.take_along_axis(part, order, axis=1) for part in question)))
    stop_tokens = tuple(range(1, 18))

    @jax.jit
    def run(params, key_N):
        model = nnx.merge(graphdef, params)
        return decode.sample_messages(
            model, path, key_N, MAX_TOKENS, GREEDY, stop_tokens, batches, keeps_gradients=True
        )

    messages = jax.device_get(run(tiny.params, jax.random.split(jax.random.key(0), 6)))
    jax.effects_barrier()
    expected = decode_plainly(tiny, stop_tokens)
    lengths = [len(message) for message in expected]
    assert min(lengths) < max(lengths) < MAX_TOKENS
    # Two messages a context; the frames first, once.
    assert sorted(passes) == sorted([(1, 2), (3, 5), *list_passes([*lengths, *lengths], sizes)])
    for row in range(6):  # two messages a context
        message = expected[row // 2]
        padded = [*message, *[0] * (MAX_TOKENS - len(message))]
        slot_T = np.arange(MAX_TOKENS)
        assert messages.tokens_NT[row].tolist() == padded
        np.testing.assert_array_equal(messages.sampled_NT[row], slot_T < len(message))
        np.testing.assert_array_equal(messages.content_NT[row], slot_T < len(message) - 1)
        np.testing.assert_array_equal(messages.support_NTK[row, :, 0], np.where(slot_T < len(message), padded, -1))
    assert not messages.truncated_N.any() and not messages.behaviour_logp_NT.any()
    assert messages.gradient_N.shape == (6,) and not messages.gradient_N.any()  # nothing can be learnt of what is sure
