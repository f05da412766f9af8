"""TRL: a GRPOTrainer whose advantages are those of c3jax, one for each message of a completion.

trainer = CreditTrainer(model=..., reward_funcs=..., args=GRPOConfig(beta=0.0, ...), train_dataset=...)

Against TRL 1.16: `_calculate_rewards` gives [B, functions]; `_generate_and_score_completions` gives a dict whose
advantages may be [B] or, by a subclass, [B, T]. TRL compares the num_generations consecutive rows of a prompt. In one
process: with several, rewards are gathered and rows are not. A reward function alone is enough for flat methods: see
`reward_as_advantage`.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any

import torch
from trl import GRPOTrainer

import c3jax

METHOD, NORMALISE = "rloo", "none"  # with contexts, c3


class CreditTrainer(GRPOTrainer):
    """Rows are trees where a `rollout_func` returns the field context: for each row the ids of its later contexts."""

    def _calculate_rewards(self, *inputs: Any) -> torch.Tensor:
        rewards = super()._calculate_rewards(*inputs)
        self.return_B = (rewards * self.reward_weights.to(rewards.device)).nansum(dim=1)
        return rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        mask = output["completion_mask"] * output.get("tool_mask", 1)  # 0 for padding and for what tools wrote
        group = self.num_generations if self.model.training else self.num_generations_eval
        context_BK = [[row // group, *fields.get("context", [])] for row, fields in enumerate(inputs)]
        credit = c3jax.compute_batch_credit(METHOD, self.return_B.tolist(), context_BK, normalise=NORMALISE)
        advantages = c3jax.spread_over_tokens(credit.advantage_BK * credit.is_first_BK, mask.tolist())
        output["advantages"] = torch.as_tensor(advantages).to(mask.device)
        return output


def reward_as_advantage(prompts: list[Any], completions: list[Any], answer: list[str], **columns: Any) -> list[float]:
    """For GRPOConfig(scale_rewards="none"), which leaves as it is what has a mean of 0 over a prompt's group."""
    returns = [float(answer in str(text)) for text, answer in zip(completions, answer, strict=True)]
    credit = c3jax.compute_batch_credit("rloo", returns, [[str(prompt)] for prompt in prompts], normalise="none")
    return credit.advantage_BK[:, 0].tolist()
