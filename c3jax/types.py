"""The records that flow through c3jax, with the shape of every field.

A NamedTuple is frozen and is a pytree wherever JAX meets it, so this file needs no JAX and the
rooms that must not import it (tasks, protocol) can share these records.

Dimension key, used as a suffix on every array of rank two or more:
    P problem      N row of a frame (P times the fan-outs of the levels above)
    L leaf of one problem's tree, and layer where it stands first (key_LNHSD)
    S slot of a frame     T slot of a message     K entry of a sampled token's support
    H head    D head size or model width    V vocabulary    B batch row
A rollout tree has no node ids. Turn d of a problem with fan-out (f0, f1, ...) has
f0 * ... * fd messages, stored in path order; row n of a finer frame descends from row
n // (N_fine / N_coarse) of a coarser one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    import jax

FanOut = tuple[int, ...]  # alternatives that each turn draws at each context
Params = dict[str, Any]  # a network's parameters, or their gradient: a tree of arrays by the names of its parts

ENVIRONMENT = "environment"  # the role of a turn in which no policy speaks

VerdictName = Literal["correct", "partial", "wrong", "unparsable", "timeout", "error", "unsafe"]


class UserError(ValueError):
    """Something the user can mend, said in one sentence. The command line prints it and exits with 2."""


class LostError(RuntimeError):
    """Another process of the run is gone. The command line prints the sentence and exits with 1."""


class Problem(NamedTuple):
    """One problem of a task. `answer` is in no context that a policy speaks in."""

    index: int  # its row in the set it came from: part of every draw's address
    id: str
    question: str
    answer: str
    columns: Mapping[str, Any] = {}  # what else its row holds, for a grader of a user's own; read only


class Verdict(NamedTuple):
    """What one evaluator call says of one leaf's answer."""

    score: float  # the terminal return, in [0, 1]
    verdict: VerdictName
    answer: str | None  # what was read out of the message, None when nothing could be
    detail: str = ""
    second: bool | None = None  # whether a second, independent rule accepts the answer; None where there is none


class Tokenizer(NamedTuple):
    """A tokenizer as the functions the program needs of it."""

    # Prompt text: special tokens written in it are meant. (text, is_start=True, is_cut=False): whether a context begins
    # with it, and whether other text follows it.
    encode_prompt: Callable[..., list[int]]
    # Anybody else's text, inside a context: special tokens written in it are plain characters.
    encode_text: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]
    # (system, user) -> the chat template's text, up to where the role speaks; a third argument is its enable_thinking.
    render: Callable[..., str]
    stop_tokens: tuple[int, ...]
    vocab_size: int
    save: Callable[[str], None]  # writes the tokenizer's files into a folder
    # What each token adds in the middle of a text, token by token; a byte may be no whole character.
    list_bytes: Callable[[], list[bytes]]
    added_tokens: Mapping[str, int]  # tokens that are found in a prompt before it is split, by their text


class Frame(NamedTuple):
    """Tokens of one level of a context. Slots with `keep` false hold no token at all."""

    tokens_NS: jax.Array  # int32
    keep_NS: jax.Array  # bool


class KeysValues(NamedTuple):
    """Keys and values of one frame, for all layers: stacked, or a tuple of [N, H, S, D] while decoding."""

    key_LNHSD: jax.Array | tuple[jax.Array, ...]
    value_LNHSD: jax.Array | tuple[jax.Array, ...]
    keep_NS: jax.Array  # bool


class Observed(NamedTuple):
    """What an environment said beside its messages' text."""

    reward_N: jax.Array  # f32, added to the returns of all leaves below
    done_N: jax.Array  # bool: the episode is over
    failed_N: jax.Array  # bool: it raised, took too long, or said what the tokenizer does not know


class Messages(NamedTuple):
    """All messages of one turn, as sampled from the behaviour policy. K is 0 where nothing was truncated.

    An environment's are content alone: no token of them was drawn.
    """

    tokens_NT: jax.Array  # int32
    content_NT: jax.Array  # bool: tokens that later turns see (of the visible part; never the stop token)
    sampled_NT: jax.Array  # bool: tokens that were drawn, the stop token included; the loss runs over these
    behaviour_logp_NT: jax.Array  # f32, nats, under the distribution sampled from, truncation included
    support_NTK: jax.Array  # int32: tokens that truncation left to draw from, -1 where there are fewer than K
    truncated_N: jax.Array  # bool: the token limit came before a stop token
    observed: Observed | None = None  # of an environment
    # f32: |d log pi / d logits|^2 = 1 - 2 pi + sum pi^2, summed over the drawn tokens; kept where a method reads it
    gradient_N: jax.Array | None = None
    # f32: probability of the problem's right answer before the message is there, a token's on geometric average, where
    # a method reads it: of `learner.likelihood`
    likelihood_N: jax.Array | None = None


class Rollout(NamedTuple):
    """One tree of messages per problem: the questions and a level per turn."""

    question: Frame  # [P, S]
    turns: tuple[Messages, ...]  # N = P * f0 * ... * fd


class Credit(NamedTuple):
    """Credit of every message of a batch; a tuple entry per turn, each [P, f0 * ... * fd], f32, in units of return."""

    value: tuple[jax.Array, ...]
    baseline: tuple[jax.Array, ...]
    advantage: tuple[jax.Array, ...]
