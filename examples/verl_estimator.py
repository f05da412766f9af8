"""verl: credit of c3jax as an advantage estimator, a row an episode or a message.

VERL_USE_EXTERNAL_MODULES=verl_estimator python -m verl.trainer.main_ppo algorithm.adv_estimator=c3jax ...

Against verl 0.9: an estimator registered in verl/trainer/ppo/core_algos.py gets token_level_rewards and response_mask,
tensors [B, T], index, which is the rows' uid, and config; it returns advantages and returns, [B, T].
"""

# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any

import torch
from verl.trainer.ppo.core_algos import register_adv_est

import c3jax

METHOD, NORMALISE = "rloo", "none"  # with uids of contexts, c3


@register_adv_est("c3jax")
def compute_advantage(
    token_level_rewards: torch.Tensor, response_mask: torch.Tensor, index: Any, config: Any = None, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantages of all tokens.

    verl gives the rows of a prompt one uid. Where a sampler of yours continues a message several times, let it give
    the rows the uid problem/context/..., with an id of the context of each later turn.
    """
    context_BK = [str(uid).split("/") for uid in index]
    credit = c3jax.compute_batch_credit(METHOD, token_level_rewards.sum(-1), context_BK, normalise=NORMALISE)
    once_BK = credit.advantage_BK * credit.is_first_BK  # what several rows share is trained on in one of them
    advantages = torch.as_tensor(c3jax.spread_over_tokens(once_BK, response_mask))
    return advantages, advantages
