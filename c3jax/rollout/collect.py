"""Waiting for the device without leaving the graders alone."""

from __future__ import annotations

from typing import Any

import jax

from c3jax.rewards import Evaluator

_PATIENCE_S = 0.02  # between two looks at the device


def wait_for(arrays: Any, evaluator: Evaluator) -> None:
    """Wait until arrays are computed; hand out answers and take verdicts in meanwhile.

    Args:
      arrays: a tree of them.
      evaluator: whose workers are kept busy.
    """
    leaves = jax.tree.leaves(arrays)
    while not all(leaf.is_ready() for leaf in leaves) and evaluator.pump(_PATIENCE_S):
        pass
    jax.block_until_ready(arrays)
