"""prime-rl: c3 as an algorithm for environments in which one agent proposes and several attempts follow.

Against prime-rl 0.8 with verifiers 0.3 and 0.4: `score_group` gets the episodes of one task, each with a trace an
agent, and `assign_advantages` takes one number for all sampled tokens of a trace. prime-rl has no hook for code of
yours: the file goes into src/prime_rl/orchestrator/algo/, the class into ALGORITHM_CLASSES, its config into
prime_rl.configs.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any

from prime_rl.orchestrator.algo.base import Algorithm, iter_trainable_traces
from prime_rl.orchestrator.algo.routing import assign_advantages

import c3jax


class C3Algorithm(Algorithm):
    """A group is a tree of fan-out (group_size, n): proposals, and the attempts at each, whose rewards are the returns.

    A proposal is worth the mean reward of its attempts and is compared with the group's other proposals; an attempt is
    compared with the others at the same proposal. All episodes must have as many attempts.
    """

    proposer = "proposer"

    async def score_group(self, episodes: list[Any]) -> None:
        """Assign every trainable trace the advantage of its message."""
        traces = list(iter_trainable_traces(episodes))
        attempts = [(episode, trace) for episode, trace in traces if trace.agent.name != self.proposer]
        context_BK = [["task", episode.id] for episode, _ in attempts]
        credit = c3jax.compute_batch_credit("c3", [t.reward for _, t in attempts], context_BK, normalise="none")
        proposal = {}
        for (episode, trace), (first, last) in zip(attempts, credit.advantage_BK.tolist(), strict=True):
            assign_advantages(trace, last)
            proposal[episode.id] = first
        for episode, trace in traces:
            if trace.agent.name == self.proposer:
                assign_advantages(trace, proposal[episode.id])
