"""How a team's networks are made of weights: adapters against weights merged by hand, rows against each alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from c3jax.config import run as config_lib
from c3jax.models import decoder
from c3jax.models import policy as policy_lib
from c3jax.models.spec import QKV, DecoderSpec
from c3jax.types import Frame

SPEC = DecoderSpec(
    vocab_size=30, layers=2, width=16, heads=4, kv_heads=2, head_dim=6, mlp_width=24, context=64,
    rope_theta=100.0, norm_eps=1e-5, tied=True, biases=QKV,
)  # fmt: skip
TARGETS = ("query", "key", "value", "output", "gate", "up", "down")
FRAME = Frame(np.array([[4, 7, 9], [11, 3, 0], [8, 8, 2]]), np.array([[1, 1, 1], [1, 1, 0], [1, 1, 1]], bool))
NEXT = Frame(np.array([[5], [6], [7]]), np.ones((3, 1), bool))


@pytest.fixture(scope="module")
def base():
    _, shapes = decoder.define_decoder(SPEC)
    random = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.float32(0.4 * random.normal(size=leaf.shape)), shapes)


def make(base, kind, trained=("planner", "actor"), dtype="float32", **fields):
    section = config_lib.Policy(kind=kind, **fields)
    roles = ["planner", "actor"]
    return policy_lib.make_policy(section, SPEC._replace(dtype=dtype), base, roles, trained, jax.random.key(3))


def fill(weights, seed):
    """Adapters in which nothing is zero."""
    random = np.random.default_rng(seed)
    trained = jax.tree.map(lambda leaf: jnp.float32(0.3 * random.normal(size=leaf.shape)), weights.trained)
    return weights._replace(trained=trained)


@jax.jit
def run(model, frame, following):
    """Hidden states of a frame, and of one more that reads it."""
    graphdef, state = model
    model = nnx.merge(graphdef, state)
    hidden_NSD, past = model.extend((), frame)
    return hidden_NSD, model.extend((past,), following)[0]


def run_model(model, rows=slice(None)):
    pick = lambda frame: jax.tree.map(lambda leaf: jnp.asarray(leaf[rows]), frame)  # noqa: E731
    return run(nnx.split(model), pick(FRAME), pick(NEXT))


def check_close(got, expected, atol):
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=atol)


def test_before_the_first_update_every_adapter_is_the_network_as_it_was_loaded(base):
    policy, weights = make(base, "adapters", rank=3)
    loaded = run_model(nnx.merge(policy.graphdef, base))
    for role in ("planner", "actor"):
        check_close(run_model(policy_lib.make_model(policy, weights, role)), loaded, atol=0)
    starts = [weights.trained[role]["gate"]["a"] for role in ("planner", "actor")]
    assert jnp.abs(starts[0] - starts[1]).max() > 0.1  # drawn, and each role's its own
    assert jnp.abs(starts[0]).max() <= 16**-0.5


def test_an_adapter_is_the_weights_merged_by_hand(base):
    """W + (alpha / rank) a b for every projection: alpha 5, rank 2."""
    policy, weights = make(base, "adapters", rank=2, alpha=5.0)
    weights = fill(weights, 1)
    blocks = dict(base["blocks"])
    for name in TARGETS:
        part = weights.trained["actor"][name]
        kernel = np.asarray(blocks[name]["kernel"], np.float64)
        change = np.einsum("lir,lro->lio", np.asarray(part["a"], np.float64), np.asarray(part["b"], np.float64))
        blocks[name] = {**blocks[name], "kernel": jnp.float32(kernel + 2.5 * change)}
    merged = run_model(nnx.merge(policy.graphdef, {**base, "blocks": blocks}))
    check_close(run_model(policy_lib.make_model(policy, weights, "actor")), merged, atol=1e-5)
    assert np.abs(merged[0] - run_model(nnx.merge(policy.graphdef, base))[0]).max() > 1


def test_in_bfloat16_an_adapter_is_the_merged_network_within_its_rounding(base):
    """The stream keeps the products' type, frame by frame and where layers are taken apart."""
    policy, weights = make(base, "adapters", dtype="bfloat16", rank=2)
    weights = jax.tree.map(lambda leaf: 0.3 * leaf, fill(weights, 1))._replace(frozen=base)
    exact, _ = make(base, "adapters", rank=2)
    wanted = run_model(policy_lib.make_model(exact, weights, "actor"))
    one = policy_lib.make_model(policy, weights, "actor")
    for got, truth in zip(run_model(one), wanted, strict=True):
        # bfloat16 keeps 8 bits: some percent after two layers, and not nothing.
        assert 1e-4 < jnp.std(got - truth) / jnp.std(truth) < 0.05
    _, past = one.extend((), jax.tree.map(jnp.asarray, FRAME))
    cut = past._replace(key_LNHSD=tuple(past.key_LNHSD), value_LNHSD=tuple(past.value_LNHSD))
    hidden, own = one.extend((cut,), jax.tree.map(jnp.asarray, NEXT), one.prepare_layers())
    assert own.key_LNHSD[0].dtype == jnp.bfloat16
    assert jnp.std(hidden - wanted[1]) / jnp.std(wanted[1]) < 0.05


def test_only_the_chosen_projections_have_an_adapter(base):
    policy, weights = make(base, "adapters", rank=2, targets=("value", "down"))
    assert set(weights.trained["planner"]) == {"value", "down"}
    assert jax.tree.map(jnp.shape, weights.trained["planner"]["value"]) == {"a": (2, 16, 2), "b": (2, 2, 12)}
    assert jax.tree.map(jnp.shape, weights.trained["planner"]["down"]) == {"a": (2, 24, 2), "b": (2, 2, 16)}


def test_paths_of_several_roles_run_together_are_each_alone_and_so_are_their_gradients(base):
    """Of actor, planner and actor again: the adapters' rows of zeros must pass nothing on, forward and backward."""
    policy, weights = make(base, "adapters", rank=3)
    weights, roles = fill(weights, 2), ["actor", "planner", "actor"]
    frames = [jax.tree.map(jnp.asarray, each) for each in (FRAME, NEXT)]
    paths = [frames, [frames[0]], [frames[1]]]

    def run_alone(trained):
        def run_path(path, role):
            model = policy_lib.make_model(policy, weights._replace(trained=trained), role)
            return model.extend_paths((), [path])[0][0]

        return list(map(run_path, paths, roles))

    def run_together(trained):
        model, adapters = policy_lib.make_joint_model(policy, weights._replace(trained=trained), roles)
        return model.extend_paths((), paths, adapters=adapters)[0]

    def differentiate(run_paths):
        def compute(trained):
            hidden = run_paths(trained)
            # Every hidden state counts, and each path differently; gradients are of the size of one.
            return sum(number * jnp.sin(leaf).mean() for number, leaf in enumerate(jax.tree.leaves(hidden), 1)), hidden

        return jax.jit(jax.value_and_grad(compute, has_aux=True))(weights.trained)

    (_, together), of_together = differentiate(run_together)
    (_, alone), of_alone = differentiate(run_alone)
    check_close(together, alone, atol=1e-5)
    check_close(of_together, of_alone, atol=1e-5)
    assert all(jnp.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(of_alone))
    assert jnp.abs(together[0][0] - together[1][0]).max() > 0.1  # the same frame, by two roles


def test_a_role_that_is_not_trained_is_the_loaded_network_and_nothing_is_copied(base):
    for kind in ("per_role", "adapters"):
        policy, weights = make(base, kind, trained=("planner",))
        assert set(weights.trained) == {"planner"}
        model = policy_lib.make_model(policy, fill(weights, 3), "actor")
        check_close(run_model(model), run_model(nnx.merge(policy.graphdef, base)), atol=0)
        turns = ("actor", "planner", "actor")
        assert policy_lib.list_networks(policy, weights, turns) == [[0, 2], [1]]
        assert policy_lib.make_joint_model(policy, weights, ["actor", "actor"])[1] is None
        for held, loaded in zip(jax.tree.leaves(weights.frozen), jax.tree.leaves(base), strict=True):
            assert held is loaded


def test_turns_of_one_network_are_found(base):
    turns = ("planner", "actor", "planner")
    assert policy_lib.list_networks(*make(base, "shared"), turns) == [[0, 1, 2]]
    policy, weights = make(base, "adapters")
    assert policy_lib.list_networks(policy, weights, turns) == [[0, 1, 2]]
    assert policy_lib.make_joint_model(policy, weights, turns)[1] == [0, 1, 0]
    # What they are measured from has no adapters.
    before = weights._replace(trained={})
    assert policy_lib.list_networks(policy, before, turns) == [[0, 1, 2]]
    assert policy_lib.make_joint_model(policy, before, turns)[1] is None
    policy, weights = make(base, "per_role")
    assert policy_lib.list_networks(policy, weights, turns) == [[0, 2], [1]]


def test_per_role_starts_with_equal_networks_of_their_own(base):
    policy, weights = make(base, "per_role")
    check_close(weights.trained["planner"], base, atol=0)
    for one, other in zip(*(jax.tree.leaves(part) for part in weights.trained.values()), strict=True):
        assert one.unsafe_buffer_pointer() != other.unsafe_buffer_pointer()
    moved = weights.trained["actor"] | {"final_norm": base["final_norm"] + 1.0}
    weights = weights._replace(trained=weights.trained | {"actor": moved})
    hidden = [run_model(policy_lib.make_model(policy, weights, role))[0] for role in ("planner", "actor")]
    assert jnp.abs(hidden[0] - hidden[1]).max() > 0.1
