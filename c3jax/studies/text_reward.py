"""The dial's evaluator on the device: from the tokens of answers to returns, as its grader gives them on their text.

The grader reads the last number of a text. Here every token is a word between single spaces, so each digit is a number
of its own, and the number read is the last digit. That holds as long as no other word takes part in a number.

Dimension key beside types.py: P problem    L leaf of one problem's tree
"""

from __future__ import annotations

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np

from c3jax.types import Messages, Tokenizer, UserError

# Signs, currency, LaTeX and the mark of a conclusion: what else a grader of numbers goes by.
_MARKS = re.compile(r"[-+−$€£¥₹\\#]")
_NONE = -1


def list_digits(tokenizer: Tokenizer) -> np.ndarray:
    """The digit that each token of a word tokenizer is [V], int32; -1 for the words that are no number.

    Raises UserError where a word could be a part of a number and is not one of the ten digits.
    """
    words = [tokenizer.decode([token]) for token in range(tokenizer.vocab_size)]
    digits = {digit: value for value, digit in enumerate("0123456789")}
    for word in words:
        if word not in digits and (_MARKS.search(word) or any(map(str.isnumeric, word))):
            raise UserError(
                f"run.protocol.turns: expected prompts whose words have no number or sign in them, got {word!r}"
            )
    return np.array([digits.get(word, _NONE) for word in words], np.int32)


def compute_returns(digit_V: chex.Array, answers: Messages, answer_P: jax.Array) -> jax.Array:
    """Return [P, L] of every answer: 1 where its last digit is the problem's answer, else 0; 0 where it has no digit.

    Args:
      digit_V: from `list_digits`.
      answers: messages of the last turn, in path order.
      answer_P: each problem's answer, a digit.
    """
    chex.assert_equal_shape([answers.tokens_NT, answers.content_NT])
    chex.assert_rank(answer_P, 1)
    digit_NT = jnp.where(answers.content_NT, jnp.asarray(digit_V)[answers.tokens_NT], _NONE)
    slots = digit_NT.shape[1]
    last_N = slots - 1 - jnp.argmax(digit_NT[:, ::-1] != _NONE, axis=1)
    # Where there is no digit at all this points at a slot without one, and -1 is no answer.
    read_N = jnp.take_along_axis(digit_NT, last_N[:, None], axis=1)[:, 0]
    return (read_N.reshape(answer_P.shape[0], -1) == answer_P[:, None]).astype(jnp.float32)
