"""The policy that a config asks for: loaded, or in outline, and the memory that a run with it takes."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from c3jax import protocol as protocol_lib
from c3jax.config import run as config_lib
from c3jax.config.credit import widen_fan_out
from c3jax.learner.optimiser import count_state
from c3jax.models import load as load_lib
from c3jax.models import sharding
from c3jax.models.critic import count_network
from c3jax.models.decoder import define_decoder
from c3jax.models.policy import Policy, Weights, count_weights, make_policy
from c3jax.models.spec import DecoderSpec
from c3jax.rollout import address
from c3jax.setup import memory
from c3jax.types import Params


def estimate_run(
    config: config_lib.RunConfig,
    spec: DecoderSpec,
    plans: tuple[protocol_lib.TurnPlan, ...],
    mesh: sharding.Mesh | None,
    rollout_mesh: sharding.Mesh | None,
) -> tuple[memory.Estimate, memory.Estimate]:
    """What training takes of a device that learns and of one that draws trees, which may be the same.

    Args:
      config: of the run.
      spec, plans: the team's.
      mesh: over which it learns; None for one device.
      rollout_mesh: of devices that only draw; None where the others draw.
    """
    config = config.model_copy(update={"credit": widen_fan_out(config.credit, len(plans))})

    def estimate(mesh: sharding.Mesh | None) -> memory.Estimate:
        held = count_held(config, spec, mesh)
        return memory.estimate_memory(config, spec, plans, held, sharding.count_parts(mesh))

    learning = estimate(mesh)
    if rollout_mesh is None:
        return learning, learning
    return learning.keep(does_draw=False), estimate(rollout_mesh).keep(does_draw=True)


def count_held(config: config_lib.RunConfig, spec: DecoderSpec, mesh: sharding.Mesh | None) -> memory.Weights:
    """Numbers of parameters that each device of a training run holds.

    Args:
      config: of the run.
      spec: the decoder.
      mesh: over which weights are cut; None for one device.
    """
    trained, frozen = count_weights(config.policy, spec, *_list_roles(config))
    has_reference = config.policy.kind != "adapters" and config_lib.uses_reference(config.learner)
    critic = config.credit.critic
    own = count_network(spec) if critic is not None and critic.network == "own" else 0
    cuts = 1 if mesh is None else mesh.shape["fsdp"] * mesh.shape["tensor"]
    frozen_bytes = jnp.dtype(_frozen_dtype(config)).itemsize
    _, shapes = outline_policy(config, spec)
    kept = count_state(config.learner, shapes.trained, is_per_role=config.policy.kind != "shared")
    critic_kept = count_state(config.learner, define_decoder(spec)[1]) if own else 0
    is_apart = mesh is not None and mesh.shape["fsdp"] > 1 and config.policy.kind != "adapters"
    head = spec.vocab_size * spec.width if is_apart else 0
    held = (trained // cuts, frozen // cuts, frozen_bytes, has_reference, own // cuts)
    return memory.Weights(*held, kept // cuts, critic_kept // cuts, head)


def load_policy(config: config_lib.RunConfig, model: load_lib.Description) -> tuple[Policy, Weights]:
    """The policy with the weights that a run starts from, on the default device."""
    key = address.make_stream(config.seed, address.INIT)
    params = load_lib.load_params(model, key, _frozen_dtype(config))
    key = address.make_stream(config.seed, address.ADAPT)
    return make_policy(config.policy, model.spec, params, *_list_roles(config), key)


def outline_policy(config: config_lib.RunConfig, spec: DecoderSpec) -> tuple[Policy, Weights]:
    """The policy with the shapes of its weights."""
    dtype, made = jnp.dtype(_frozen_dtype(config)), []

    def make(params: Params, key: jax.Array) -> Weights:
        policy, weights = make_policy(config.policy, spec, params, *_list_roles(config), key)
        made.append(policy)  # it is static, and not among what an abstract call may give
        return weights

    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), define_decoder(spec)[1])
    weights = jax.eval_shape(make, params, address.make_stream(config.seed, address.ADAPT))
    return made[0], weights


def _list_roles(config: config_lib.RunConfig) -> tuple[list[str], list[str]]:
    """All roles, and the trained ones."""
    return config_lib.list_roles(config.protocol), config_lib.trained_roles(config.protocol)


def _frozen_dtype(config: config_lib.RunConfig) -> str:
    """The type that the loaded network is held in: f32 where it is trained, that of the products where it is not."""
    return config.model.dtype if config.policy.kind == "adapters" else "float32"
