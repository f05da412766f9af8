"""The learner's log-probabilities of sampled trees: those they were drawn with, and those of plain text."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from c3jax.learner import forward


@functools.cache
def make_compute(graphdef, plans, fan_out, sampling):
    @jax.jit
    def compute(params, rollout):
        model = nnx.merge(graphdef, params)
        spoken = [forward.Spoken(turn, rollout, fan_out) for turn in range(len(plans))]
        return forward.compute_turns_logp(model, plans, spoken, sampling)

    return compute


def run(tiny, tree, params=None):
    compute = make_compute(tiny.policy.graphdef, tree.plans, tree.fan_out, tree.sampling)
    return jax.device_get(compute(tiny.params if params is None else params, tree.rollout))


@pytest.mark.parametrize("name", ["chain", "debate"])
def test_ratio_is_one_where_nothing_has_moved(tiny, name):
    """The chain is drawn at temperature .7, top-p .8 and top-k 20, the debate from the whole softmax."""
    tree = tiny.get_tree(name)
    for turn, logp_NT in zip(tree.rollout.turns, run(tiny, tree), strict=True):
        gap_NT = (logp_NT - turn.behaviour_logp_NT)[turn.sampled_NT]
        assert gap_NT.size and np.abs(gap_NT).max() < 1e-5
        assert turn.behaviour_logp_NT[turn.sampled_NT].min() < -1
        assert np.isfinite(logp_NT).all()  # the slots that were not drawn too


@pytest.mark.parametrize("name", ["chain", "debate"])
def test_another_policy_is_measured_over_the_recorded_support(tiny, name):
    """What the moved policy itself would cut off plays no part: plain sequences with the recorded sets agree."""
    tree = tiny.get_tree(name)
    random = np.random.default_rng(1)
    moved = jax.tree.map(lambda leaf: leaf + 0.1 * jnp.float32(random.normal(size=leaf.shape)), tiny.params)
    flat = tiny.run_flat(
        moved,
        [each.context + each.message for each in tree.sequences],
        tree.supports,
        tree.sampling.temperature,
    )
    logp = run(tiny, tree, moved)
    for row, each in enumerate(tree.sequences):
        first, length = len(each.context) - 1, len(each.message)
        got = logp[each.turn][each.row, :length]
        np.testing.assert_allclose(got, flat.logp[row, first : first + length], atol=2e-5)
    gap = logp[0] - tree.rollout.turns[0].behaviour_logp_NT
    assert np.abs(gap[tree.rollout.turns[0].sampled_NT]).max() > 0.1


def test_junk_after_a_message_changes_nothing(tiny):
    tree = tiny.get_tree("chain")
    junk = tuple(
        turn._replace(tokens_NT=np.where(turn.sampled_NT, turn.tokens_NT, 17), truncated_N=~turn.truncated_N)
        for turn in tree.rollout.turns
    )
    changed = tree._replace(rollout=tree.rollout._replace(turns=junk))
    for turn, one, other in zip(junk, run(tiny, tree), run(tiny, changed), strict=True):
        assert not turn.sampled_NT.all()
        np.testing.assert_array_equal(one[turn.sampled_NT], other[turn.sampled_NT])
