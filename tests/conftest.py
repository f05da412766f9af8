"""A tiny policy, three protocols and a tree of each, shared by the tests of sampling and of learning.

Compiling is what these tests cost, so every program here is compiled once a session. What they are compared with is
`Tiny.run_flat`: every message with its whole context as one plain sequence, without frames, caches or a tree.
"""

from __future__ import annotations

import functools
import gc
import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental.compilation_cache import compilation_cache

from c3jax.config.run import Sampling
from c3jax.models import decoder
from c3jax.models.policy import Policy, Weights
from c3jax.protocol import FramePlan, Literal, Slot, TurnPlan
from c3jax.rollout import context, tree
from c3jax.types import Frame, Rollout

# Without XLA's newer code for fusions, programs for a CPU compile in half the time, and round otherwise. The quickstart
# learns with it, as users have it (test_train.py); later versions of jax have no other. Parts of a program that are
# compiled side by side cost more than they give where tests already keep every core busy.
if jax.__version_info__ < (0, 11):
    flags = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ.setdefault("XLA_FLAGS", flags)
# Tracing a program makes hundreds of thousands of objects and hardly any garbage: it is looked for less often.
gc.set_threshold(100_000, 50, 50)

SPEC = decoder.DecoderSpec(
    vocab_size=30, layers=2, width=16, heads=2, kv_heads=1, head_dim=8, mlp_width=24, context=64,
    rope_theta=100.0, norm_eps=1e-5, tied=True,
)  # fmt: skip
STOP_TOKENS = (1, 2, 6, 28)
QUESTIONS = ([20, 21, 22], [23], [24, 25, 26, 27], [28, 29])
PROBLEMS = (7, 3, 11, 5)  # their indices
FLAT_ROWS, FLAT_SLOTS = 64, 40

TRUNCATED = Sampling(temperature=0.7, top_k=20, top_p=0.8)
QUESTION, FIRST, SECOND = Slot(1), Slot(2), Slot(3)
SHARED = Literal(tuple(range(4, 12)))


def _plan(name: str, max_tokens: int, *frames: tuple[int, tuple]) -> TurnPlan:
    plans = tuple(
        FramePlan(level, tuple(Literal(piece) if type(piece) is tuple else piece for piece in pieces))
        for level, pieces in frames
    )
    return TurnPlan(name, name, plans, max_tokens, is_trained=True)


PLANS = {
    "chain": (
        _plan("planner", 5, (1, ((4, 5), QUESTION, (12, 13)))),
        _plan("actor", 4, (1, ((4,), QUESTION, (14,))), (2, (FIRST, (15, 16)))),
    ),
    # The second turn does not see the first; the judge sees both, after a prompt that all problems share.
    "parallel": (
        _plan("one", 3, (1, ((4,), QUESTION, (12,)))),
        _plan("two", 4, (1, ((5,), QUESTION, (13,)))),
        _plan("judge", 3, (0, (SHARED,)), (1, (QUESTION,)), (2, (FIRST, (15,))), (3, (SECOND, (16,)))),
    ),
    # The opener speaks again, and reads the reply before its own opening: a coarser piece after a finer one.
    "debate": (
        _plan("opening", 4, (1, (QUESTION, (12,)))),
        _plan("reply", 3, (1, (QUESTION, (13,))), (2, (FIRST, (14,)))),
        _plan("closing", 4, (1, (QUESTION, (12,))), (3, (SECOND, (15,), FIRST, (16,)))),
    ),
}
FAN_OUT = {"chain": (2, 2), "parallel": (2, 2, 2), "debate": (2, 2, 2)}
SAMPLING = {"chain": TRUNCATED, "parallel": TRUNCATED, "debate": Sampling()}


class Sequence(NamedTuple):
    """One message of a tree, written out."""

    turn: int
    row: int
    problem: int  # place in the batch
    alternative: int  # among the problem's messages of this turn
    context: list[int]
    message: list[int]  # the stop token included


class Tree(NamedTuple):
    """A sampled tree, and what it was sampled with."""

    plans: tuple[TurnPlan, ...]
    fan_out: tuple[int, ...]
    sampling: Sampling
    sampler: Callable[..., tuple[Rollout, tree.RolloutCounts]]
    key: jax.Array
    rollout: Rollout
    counts: tree.RolloutCounts
    sequences: list[Sequence]
    supports: dict[tuple[int, int], list[int]]  # recorded for each drawn token, by (sequence, slot before the token)


class Flat(NamedTuple):
    """What plain sequences give; slot s of a row speaks of the token in slot s + 1."""

    logits: np.ndarray  # [B, S, V]
    logp: np.ndarray  # [B, S], of the next token in its support
    gradient: Any  # of sum(weight * logp)


class Tiny(NamedTuple):
    """The policy and everything about it that tests share."""

    spec: decoder.DecoderSpec
    policy: Policy
    params: dict
    stop_tokens: tuple[int, ...]
    questions: tuple[list[int], ...]
    question: Frame
    problem_P: jax.Array
    get_tree: Callable[[str], Tree]
    run_flat: Callable[..., Flat]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with whole runs: one that takes minutes, begun last, would keep one worker waiting for the other."""
    items.sort(key=lambda item: item.path.name not in ("test_train.py", "test_examples.py"))


@pytest.fixture(scope="session", autouse=True)
def compile_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One compilation cache for all workers: a program that several starts of a run make is compiled by the first."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    compilation_cache.reset_cache()  # what tests compiled at their import was without it


@pytest.fixture(scope="module", autouse=True)
def compile_quickly(request: pytest.FixtureRequest) -> Iterator[None]:
    """Without the compiler's costly passes where programs compile for seconds and run for milliseconds."""
    is_quick = request.path.parent.name != "claims"
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", is_quick or before)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    graphdef, shapes = decoder.define_decoder(SPEC)
    random = np.random.default_rng(0)
    # Scale 0.5, so that attention is far from uniform and what a context says matters.
    params = jax.tree.map(lambda leaf: jnp.float32(0.5 * random.normal(size=leaf.shape)), shapes)
    policy = Policy("shared", graphdef, None)
    question, problem_P = context.make_frame(QUESTIONS, 4), jnp.array(PROBLEMS, jnp.int32)

    @functools.cache
    def get_tree(name: str) -> Tree:
        plans, fan_out, sampling = PLANS[name], FAN_OUT[name], SAMPLING[name]
        sampler = tree.make_tree_sampler(policy, plans, sampling, STOP_TOKENS)
        key = jax.random.key(1)
        rollout, counts = jax.device_get(sampler(Weights(params, {}), question, key, problem_P, fan_out))
        sequences = _write_out(plans, fan_out, rollout)
        supports = _write_supports(rollout, sequences) if sampling.top_k else {}
        return Tree(plans, fan_out, sampling, sampler, key, rollout, counts, sequences, supports)

    run_flat = functools.partial(_run_flat, graphdef)
    return Tiny(SPEC, policy, params, STOP_TOKENS, QUESTIONS, question, problem_P, get_tree, run_flat)


def _write_out(plans: tuple[TurnPlan, ...], fan_out: tuple[int, ...], rollout: Rollout) -> list[Sequence]:
    sequences = []
    for turn, plan in enumerate(plans):
        below = list(itertools.product(*map(range, fan_out[: turn + 1])))
        for problem, path in itertools.product(range(len(QUESTIONS)), below):
            rows = []
            for place, fan in enumerate(fan_out[: turn + 1]):
                rows.append((rows[-1] if rows else problem) * fan + path[place])
            before: list[int] = []
            for piece in (piece for frame in plan.frames for piece in frame.pieces):
                if isinstance(piece, Literal):
                    before += piece.tokens
                elif piece == QUESTION:
                    before += QUESTIONS[problem]
                else:
                    seen = rollout.turns[piece.level - 2]
                    row = rows[piece.level - 2]
                    before += seen.tokens_NT[row][seen.content_NT[row]].tolist()
            drawn = rollout.turns[turn]
            message = drawn.tokens_NT[rows[-1]][drawn.sampled_NT[rows[-1]]].tolist()
            sequences.append(Sequence(turn, rows[-1], problem, below.index(path), before, message))
    return sequences


def _write_supports(rollout: Rollout, sequences: list[Sequence]) -> dict[tuple[int, int], list[int]]:
    return {
        (row, len(each.context) - 1 + place): rollout.turns[each.turn].support_NTK[each.row, place].tolist()
        for row, each in enumerate(sequences)
        for place in range(len(each.message))
    }


def _run_flat(
    graphdef: nnx.GraphDef,
    params: dict,
    rows: list[list[int]],
    supports: dict[tuple[int, int], list[int]] | None = None,
    temperature: float = 1.0,
    weight: dict[tuple[int, int], float] | None = None,
) -> Flat:
    """Run plain token rows. Supports (all tokens where not given) and weights are by (row, slot)."""
    tokens = np.zeros((FLAT_ROWS, FLAT_SLOTS), np.int32)
    keep = np.zeros((FLAT_ROWS, FLAT_SLOTS), bool)
    is_in = np.ones((FLAT_ROWS, FLAT_SLOTS, SPEC.vocab_size), bool)
    weights = np.zeros((FLAT_ROWS, FLAT_SLOTS), np.float32)
    for place, row in enumerate(rows):
        tokens[place, : len(row)], keep[place, : len(row)] = row, True
    for where, support in (supports or {}).items():
        is_in[where] = np.isin(np.arange(SPEC.vocab_size), support)
    for where, value in (weight or {}).items():
        weights[where] = value
    logits, logp, gradient = _flat_program(graphdef, params, Frame(tokens, keep), is_in, temperature, weights)
    return Flat(np.asarray(logits)[: len(rows)], np.asarray(logp)[: len(rows)], jax.device_get(gradient))


@functools.partial(jax.jit, static_argnums=0)
def _flat_program(graphdef, params, frame, is_in_BSV, temperature, weight_BS):
    def run(params):
        model = nnx.merge(graphdef, params)
        logits_BSV = model.compute_logits(model.extend((), frame)[0])
        logp_BSV = jax.nn.log_softmax(jnp.where(is_in_BSV, logits_BSV / temperature, -1e30))
        next_BS1 = jnp.roll(frame.tokens_NS, -1, axis=1)[..., None]
        return jnp.take_along_axis(logp_BSV, next_BS1, axis=2)[..., 0], logits_BSV

    logp_BS, pull_back, logits_BSV = jax.vjp(run, params, has_aux=True)
    return logits_BSV, logp_BS, pull_back(weight_BS)[0]
