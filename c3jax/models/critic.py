"""The critic: one linear head on a decoder's last hidden state.

The decoder is either the policy itself, which the critic reads without teaching it (network "trunk"), or a copy of the
starting policy that is the critic's own (network "own"). The head starts at zero, so every score does.

Dimension key: N message or context    D model width
"""

from __future__ import annotations

import functools
from typing import Literal

import chex
import jax
import jax.numpy as jnp
from flax import nnx

from c3jax.models.decoder import Decoder, count_params, define_decoder
from c3jax.models.policy import Policy, Weights, find_start, make_model
from c3jax.models.spec import DecoderSpec
from c3jax.types import Params


def init_critic(network: Literal["own", "trunk"], policy: Params) -> Params:
    """A critic before the run.

    Args:
      network: whether it has a decoder of its own.
      policy: the parameters of the decoder that it starts from or reads.

    Returns:
      f32: `head`, and for "own" the `network`, a copy of the decoder without its output head.
    """
    head = {"weight": jnp.zeros(policy["final_norm"].shape, jnp.float32), "bias": jnp.float32(0.0)}
    if network == "trunk":
        return {"head": head}
    # Copied, because the policy's buffers are given up by its update.
    own = {name: part for name, part in policy.items() if name != "head"}
    return {"head": head, "network": jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), own)}


def count_network(spec: DecoderSpec) -> int:
    """Numbers of parameters of a critic's own network; nothing is allocated."""
    return count_params(jax.eval_shape(functools.partial(init_critic, "own"), define_decoder(spec)[1])["network"])


def merge_network(policy: Policy, critic: Params, weights: Weights, role: str) -> Decoder:
    """The decoder that the critic reads for a role: its own, or the role's with the gradient stopped.

    Args:
      policy: the team's.
      critic: parameters, from `init_critic`.
      weights: the policy's.
      role: whose contexts are read.
    """
    weights = jax.lax.stop_gradient(weights)
    if "network" not in critic:
        return make_model(policy, weights, role)
    return nnx.merge(policy.graphdef, find_start(policy, weights) | critic["network"])


def compute_score(critic: Params, hidden_ND: jax.Array) -> jax.Array:
    """The head's scores: score = hidden . weight + bias.

    Args:
      critic: its parameters.
      hidden_ND: last hidden states, f32.

    Returns:
      Scores [N], f32.
    """
    head = critic["head"]
    chex.assert_shape(hidden_ND, (None, head["weight"].shape[0]))
    return jnp.einsum("nd,d->n", hidden_ND, head["weight"], precision=jax.lax.Precision.HIGHEST) + head["bias"]
