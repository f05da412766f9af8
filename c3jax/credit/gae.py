"""Generalised advantage estimation over the turns of an episode, with its return at the end or paid on the way.

Dimension key: N episode    K turn
Source: arXiv:1506.02438, eq. 16; over the turns of a team as arXiv:2103.01955.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp


def compute_gae(
    return_N: jax.Array,
    value_NK: jax.Array,
    discount: float | jax.Array,
    decay: float | jax.Array,
    paid_NK: jax.Array | None = None,
) -> jax.Array:
    """Advantage of every turn's message, from a critic's values of the contexts.

    A_u = sum_l (discount decay)^l delta_{u+l}, with delta_u = r_u + discount V_{u+1} - V_u, and r_u - V_u at the last
    turn; r_u is what is paid between turn u and the next, all of the return at the end if nothing is on the way.
    With discount = decay = 1 it is the return to go less V_u. Gradients are not stopped here.

    Args:
      return_N: return of each episode, all that it is paid, in units of return.
      value_NK: the critic's value of the context of each turn, in the same units.
      discount: per turn, in [0, 1].
      decay: weight of later errors (lambda), in [0, 1]; 0 trusts the critic after one turn.
      paid_NK: what was paid before each turn, in units of return; None for nothing on the way.

    Returns:
      advantage_NK, f32, in units of return.

    Raises:
      AssertionError: if the shapes do not fit.
    """
    chex.assert_rank([return_N, value_NK], [1, 2])
    chex.assert_equal_shape_prefix([return_N, value_NK], 1)
    return_N, value_NK = jnp.asarray(return_N, jnp.float32), jnp.asarray(value_NK, jnp.float32)
    next_NK = jnp.concatenate([discount * value_NK[:, 1:], return_N[:, None]], axis=1)
    if paid_NK is not None:
        chex.assert_equal_shape([value_NK, paid_NK])
        next_NK += jnp.concatenate([jnp.diff(paid_NK, axis=1), -paid_NK[:, -1:]], axis=1)

    def step(later_N: jax.Array, delta_N: jax.Array) -> tuple[jax.Array, jax.Array]:
        advantage_N = delta_N + discount * decay * later_N
        return advantage_N, advantage_N

    _, advantage_KN = jax.lax.scan(step, jnp.zeros_like(return_N), (next_NK - value_NK).T, reverse=True)
    return advantage_KN.T
