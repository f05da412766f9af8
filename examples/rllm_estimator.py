"""rLLM: credit of c3jax as an advantage estimator.

Import the file where the trainer is made, and name the estimator of each role there:
AgentTrainer(..., traj_group_adv_estimator_map={"solver": "c3jax"}); in YAML a name of one's own is not kept.

Against rLLM 0.3, rllm/trainer/algorithms/advantage.py: an estimator is called once a role with rewards, a 1-D array for
each TrajectoryGroup (a task's trajectories of the role), algorithm_config, and traj_groups, aligned with rewards; it
returns advantages and returns of the same shapes, one number a trajectory, which all its steps get.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any

import numpy as np
from rllm.trainer.algorithms.advantage import register_rllm_adv_estimator

import c3jax


@register_rllm_adv_estimator("c3jax")
def compute_advantages(
    rewards: list[np.ndarray], algorithm_config: Any, traj_groups: list[Any], **kwargs: Any
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Each trajectory against the others of its task, or of its context where the workflow wrote one.

    With `trajectory.info["context"] = ...` this is c3's comparison: a trajectory is a message, its reward the mean
    return of what followed it, and it is compared with those drawn in exactly the same context.
    """
    context_BK = [
        [f"{number} {trajectory.info.get('context')}"]
        for number, group in enumerate(traj_groups)
        for trajectory in group.trajectories
    ]
    credit = c3jax.compute_batch_credit("rloo", np.concatenate(rewards), context_BK, normalise="none")
    ends = np.cumsum([len(group) for group in rewards])[:-1]
    advantages = np.split(credit.advantage_BK[:, 0], ends)
    return advantages, advantages
