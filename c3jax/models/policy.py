"""How the networks of a team's roles are made of weights: one for all, one each, or adapters over one frozen network.

Weights come in two trees. What is trained is carried by the run's state, has gradients and optimiser moments, and is
what checkpoints hold; what is frozen comes from the loaded model again whenever a run starts.

    kind        trained                          frozen
    shared      the decoder                      nothing
    per_role    a decoder for each trained role  the loaded decoder, for each role that is not trained
    adapters    an adapter for each trained role the loaded decoder; a role without an adapter is that decoder

An adapter is {projection: {"a": [L, in, rank], "b": [L, rank, out]}} (LoRA, arXiv 2106.09685). b starts at zero, so at
step 0 every role is the loaded decoder, and the policy that the loss compares with is the frozen tree itself.

Dimension key: L layer
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from c3jax.config import run as config_lib
from c3jax.models import decoder
from c3jax.models.decoder import Decoder
from c3jax.models.spec import Adapters, DecoderSpec
from c3jax.types import Params


class Policy(NamedTuple):
    """What is fixed of a team's policy."""

    kind: Literal["shared", "per_role", "adapters"]
    graphdef: nnx.GraphDef  # of the network as it was loaded
    adapted: nnx.GraphDef | None  # of the same network with adapters, where the kind is adapters


class Weights(NamedTuple):
    """The parameters of a team's policy."""

    trained: Params
    frozen: Params


def make_policy(
    section: config_lib.Policy,
    spec: DecoderSpec,
    params: Params,
    roles: Sequence[str],
    trained_roles: Sequence[str],
    key: jax.Array,
) -> tuple[Policy, Weights]:
    """The policy that a config asks for, of a loaded decoder.

    Args:
      section: the config's `policy`.
      spec, params: the loaded decoder; the weights take hold of its parameters.
      roles: all roles of the protocol.
      trained_roles: those with a trained turn.
      key: of the adapters' first values.

    Returns:
      The policy, and its weights before the run.
    """
    graphdef, _ = decoder.define_decoder(spec)
    if section.kind == "shared":
        return Policy("shared", graphdef, None), Weights(params, {})
    if section.kind == "per_role":
        # Every role has buffers of its own, for the update gives them up one by one.
        trained = {role: jax.tree.map(jnp.copy, params) for role in trained_roles}
        frozen = {role: params for role in roles if role not in trained_roles}
        return Policy("per_role", graphdef, None), Weights(trained, frozen)
    spec = _add_adapters(section, spec)
    keys = dict(zip(trained_roles, jax.random.split(key, len(trained_roles)), strict=True))
    adapters = {role: init_adapter(spec, keys[role]) for role in trained_roles}
    return Policy("adapters", graphdef, decoder.define_decoder(spec)[0]), Weights(adapters, params)


def count_weights(
    section: config_lib.Policy, spec: DecoderSpec, roles: Sequence[str], trained_roles: Sequence[str]
) -> tuple[int, int]:
    """How many numbers a policy's weights are; nothing is loaded.

    Args:
      section: the config's `policy`.
      spec: the decoder below it.
      roles, trained_roles: as for make_policy.

    Returns:
      Numbers of trained and of frozen parameters.
    """
    whole = decoder.count_params(decoder.define_decoder(spec)[1])
    if section.kind == "shared":
        return whole, 0
    if section.kind == "per_role":
        return whole * len(trained_roles), 0 if len(trained_roles) == len(roles) else whole
    adapted = decoder.count_params(decoder.define_decoder(_add_adapters(section, spec))[1])
    return (adapted - whole) * len(trained_roles), whole


def _add_adapters(section: config_lib.Policy, spec: DecoderSpec) -> DecoderSpec:
    return spec._replace(adapters=Adapters(section.rank, section.alpha / section.rank, tuple(section.targets)))


def init_adapter(spec: DecoderSpec, key: jax.Array) -> Params:
    """An adapter that changes nothing yet.

    Args:
      spec: a decoder's, with adapters.
      key: of a's values.

    Returns:
      a uniform within 1 / sqrt(in), b zero, f32, for each target.
    """
    assert spec.adapters is not None
    _, shapes = decoder.define_decoder(spec)
    adapter = {}
    for index, name in enumerate(spec.adapters.targets):
        a, b = shapes["blocks"][name]["a"].shape, shapes["blocks"][name]["b"].shape
        bound = a[1] ** -0.5
        start = jax.random.uniform(jax.random.fold_in(key, index), a, jnp.float32, -bound, bound)
        adapter[name] = {"a": start, "b": jnp.zeros(b, jnp.float32)}
    return adapter


def make_model(policy: Policy, weights: Weights, role: str) -> Decoder:
    """A role's network.

    Args:
      policy: the team's.
      weights: trained and frozen.
      role: one of the team's.
    """
    if policy.kind == "shared":
        return nnx.merge(policy.graphdef, weights.trained)
    if policy.kind == "per_role":
        return nnx.merge(policy.graphdef, weights.trained[role] if role in weights.trained else weights.frozen[role])
    if role not in weights.trained:
        return nnx.merge(policy.graphdef, weights.frozen)
    assert policy.adapted is not None
    return nnx.merge(policy.adapted, attach_adapter(weights.frozen, weights.trained[role]))


def list_networks(policy: Policy, weights: Weights, roles: Sequence[str]) -> list[list[int]]:
    """Which roles pass through a network together: those that speak with one, and all that have adapters over one.

    Args:
      policy, weights: of the team.
      roles: a name a turn.

    Returns:
      For each network the indices of its roles, in their order.
    """
    found: dict[Any, list[int]] = {}
    for index, role in enumerate(roles):
        name = {"shared": None, "per_role": role, "adapters": role in weights.trained}[policy.kind]
        found.setdefault(name, []).append(index)
    return list(found.values())


def make_joint_model(policy: Policy, weights: Weights, roles: Sequence[str]) -> tuple[Decoder, list[int] | None]:
    """The network through which roles that `list_networks` names together pass together.

    Args:
      policy, weights: of the team.
      roles: a name a path.

    Returns:
      The network and, where it has the adapters of several roles side by side, which of them each path has: what
      `Decoder.extend_paths` asks for.
    """
    names = list(dict.fromkeys(roles))
    if len(names) == 1 or policy.kind == "shared" or names[0] not in weights.trained:
        return make_model(policy, weights, names[0]), None
    assert policy.adapted is not None
    rank_axis = {"a": -1, "b": -2}
    side_by_side = jax.tree_util.tree_map_with_path(
        lambda path, *parts: jnp.concatenate(parts, axis=rank_axis[path[-1].key]),
        *(weights.trained[name] for name in names),
    )
    model = nnx.merge(policy.adapted, attach_adapter(weights.frozen, side_by_side))
    return model, [names.index(role) for role in roles]


def attach_adapter(params: Params, adapter: Params) -> Params:
    """The decoder's parameters with an adapter's among them; nothing is copied."""
    blocks = params["blocks"]
    return params | {"blocks": blocks | {name: blocks[name] | part for name, part in adapter.items()}}


def find_start(policy: Policy, weights: Weights) -> Params:
    """Parameters of one whole decoder: the shared one, the first trained role's, or the frozen one below adapters."""
    if policy.kind == "shared":
        return weights.trained
    return next(iter(weights.trained.values())) if policy.kind == "per_role" else weights.frozen
