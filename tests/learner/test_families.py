"""A decoder with everything that a family may add, from drawing to the update: windows, caps, two rotary bases.

What is drawn, a stage of decoding at a time, is what plain rows of tokens give, and what the learner computes again.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from c3jax.config import run as config_lib
from c3jax.credit.plans import make_tree
from c3jax.learner import forward
from c3jax.learner import state as state_lib
from c3jax.learner import update as update_lib
from c3jax.models import decoder
from c3jax.models.huggingface.families import FAMILIES
from c3jax.models.policy import Policy, Weights
from c3jax.rollout import context, tree
from c3jax.types import Frame

SAMPLING = config_lib.Sampling(temperature=0.7, top_k=8)


@pytest.fixture(scope="module")
def case(tiny):
    """The chain's plans, and a tree of a policy whose windows end in the message, the context or before them."""
    spec = tiny.spec._replace(
        family=FAMILIES["gemma2"]._replace(qk_norm="head"), layers=3, activation="gelu_pytorch_tanh", query_scalar=5,
        attention_softcap=2.0, logit_softcap=3.0, window=6, windowed_layers=(0, 2), local_rope_theta=10.0,
    )  # fmt: skip
    graphdef, shapes = decoder.define_decoder(spec)
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.float32(0.5 * random.normal(size=leaf.shape)), shapes)
    policy, chain = Policy("shared", graphdef, None), tiny.get_tree("chain")
    sampler = tree.make_tree_sampler(policy, chain.plans, SAMPLING, tiny.stop_tokens, batches=2)
    rollout, _ = sampler(Weights(params, {}), tiny.question, jax.random.key(2), tiny.problem_P, chain.fan_out)
    return policy, params, chain, rollout


def compute_flat_logp(policy, params, contexts, messages):
    """Log-probabilities [N, T] of messages, each with its context as one row of tokens without holes."""
    rows = [[*before, *message] for before, message in zip(contexts, messages, strict=True)]
    frame = context.make_frame(rows, max(map(len, rows)))
    logits = jax.jit(lambda params, frame: _compute_logits(policy, params, frame))(params, frame)
    logp = np.full((len(rows), max(map(len, messages))), np.nan)
    for row, (before, message) in enumerate(zip(contexts, messages, strict=True)):
        for slot, token in enumerate(message):
            scaled = np.float64(logits[row, len(before) + slot - 1]) / SAMPLING.temperature
            logp[row, slot] = scaled[token] - np.log(np.sum(np.exp(np.sort(scaled)[-SAMPLING.top_k :])))
    return logp


def _compute_logits(policy, params, frame):
    model = nnx.merge(policy.graphdef, params)
    return model.compute_logits(model.extend((), frame)[0])


def write_out(path: tuple[Frame, ...], rows: int) -> list[list[int]]:
    """The kept tokens of every row's path."""
    parts = [[np.repeat(np.asarray(part), rows // len(part), axis=0) for part in frame] for frame in path]
    tokens, keep = (np.concatenate(part, axis=1) for part in zip(*parts, strict=True))
    return [row[kept].tolist() for row, kept in zip(tokens, keep, strict=True)]


def test_what_is_drawn_is_what_plain_rows_and_the_learner_give(tiny, case):
    policy, params, chain, rollout = case
    for turn, drawn in enumerate(rollout.turns):
        plan, sampled = chain.plans[turn], np.asarray(drawn.sampled_NT)
        contexts = write_out(context.make_path(plan, tiny.question, rollout.turns, chain.fan_out), len(sampled))
        messages = [row[kept].tolist() for row, kept in zip(np.asarray(drawn.tokens_NT), sampled, strict=True)]
        assert max(map(len, contexts)) + max(map(len, messages)) > 2 * 6  # windows leave out the context's first tokens
        flat = compute_flat_logp(policy, params, contexts, messages)
        np.testing.assert_allclose(drawn.behaviour_logp_NT[sampled], flat[sampled[:, : flat.shape[1]]], atol=2e-5)
        assert np.nanmin(flat) < -1
        again = jax.jit(
            lambda params, rollout, turn=turn: forward.compute_turns_logp(
                nnx.merge(policy.graphdef, params),
                chain.plans,
                [forward.Spoken(turn, rollout, chain.fan_out)],
                SAMPLING,
            )[0]
        )(params, rollout)
        np.testing.assert_allclose(again[sampled], drawn.behaviour_logp_NT[sampled], atol=2e-5)


def test_the_first_update_is_on_policy(tiny, case):
    policy, params, chain, rollout = case
    plans = [plan._replace(is_trained=turn == 1) for turn, plan in enumerate(chain.plans)]
    credit = config_lib.Credit(method="c3", fan_out=chain.fan_out, budget=4, normalise="none")
    learner = config_lib.Learner(learning_rate=1e-3)
    update = update_lib.make_update(credit, learner, SAMPLING, 10, policy, plans)
    state = state_lib.init_state(policy, Weights(jax.tree.map(jnp.array, params), {}), plans, credit, learner)
    return_PL = jnp.float32(np.random.default_rng(1).random((4, 4)))
    _, _, figures = update(state, {}, None, (rollout,), return_PL, jax.random.key(0), make_tree(chain.fan_out))
    assert figures["first_ratio_deviation"] < 2e-5 and figures["grad_norm"] > 1e-3
