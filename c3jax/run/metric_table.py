"""What every figure of metrics.jsonl is: the one home of its unit, its meaning and what a healthy run shows.

Trackers use the same names (a TensorBoard tag, a name at Weights & Biases). docs/metrics.md is this table as a page,
the report takes its sentences from it, and a test holds both against what a run writes.
"""

from __future__ import annotations

from typing import NamedTuple


class Metric(NamedTuple):
    """A figure of a step."""

    unit: str  # "" where it is a name or a list
    meaning: str
    healthy: str = ""  # what a run that learns shows; "" where nothing is to be expected


_RETURN, _SHARE, _TOKENS, _SECONDS, _COUNT = "return", "share", "tokens", "seconds", "count"

# A name that ends in braces stands for all that begin so: {turn} is a turn of the protocol, {set} a training set.
METRICS: dict[str, Metric] = {
    # Outcomes
    "return": Metric(_RETURN, "mean over the leaves of a step's own problems", "rises, with noise from step to step"),
    "return_partial": Metric(
        _RETURN, "of that mean, what answers with a verdict of partial add", "no large part of it"
    ),
    "return_{set}": Metric(_RETURN, "mean over the leaves of one training set's problems", "rises for each set"),
    "problems_{set}": Metric(_COUNT, "problems of one training set in the step", "as the sets' weights say"),
    "correct_share": Metric(_SHARE, "of the leaves: full return", "rises"),
    "partial_share": Metric(_SHARE, "of the leaves: part of the return", "falls as correct_share rises"),
    "wrong_share": Metric(_SHARE, "of the leaves: an answer was read and is wrong", "falls"),
    "unparsable_share": Metric(_SHARE, "of the leaves: no answer could be read", "near 0 soon; format is learnt first"),
    "timeout_share": Metric(_SHARE, "of the leaves: no verdict in time", "near 0"),
    "error_share": Metric(_SHARE, "of the leaves: the grader raised, or its process died", "0"),
    "unsafe_share": Metric(_SHARE, "of the leaves: a program asked for what it may not have", "0"),
    "failed_share": Metric(_SHARE, "timeout_share and error_share together", "near 0"),
    "grader_disagreement": Metric(
        _SHARE, "of the leaves: the task's second rule contradicts the verdict", "small, and not rising with the return"
    ),
    "greedy_accuracy": Metric(_RETURN, "held-out, of the likeliest tokens; only in steps with an evaluation", "rises"),
    "sampled_accuracy": Metric(_RETURN, "held-out, of sampled tokens; only in steps with an evaluation", "rises"),
    # Messages
    "message_tokens": Metric(_TOKENS, "mean length of all messages drawn, stop tokens included", "moves slowly"),
    "message_tokens_{turn}": Metric(_TOKENS, "mean length of one turn's credited messages", "moves slowly"),
    "truncated_share": Metric(_SHARE, "of all messages drawn: the token limit came before a stop token", "below 0.05"),
    "truncated_share_{turn}": Metric(_SHARE, "the same of one turn's credited messages", "below 0.05"),
    "environment_calls": Metric(_COUNT, "of environments; equal transcripts are one", "at most as planned"),
    "environment_reward": Metric(_RETURN, "mean of an environment's answers", "rises"),
    "environment_done_share": Metric(_SHARE, "of the answers: the episode was over", "as the game has it"),
    "environment_failed_share": Metric(_SHARE, "of the answers: raised, too late, or unknown words", "near 0"),
    "hidden_share": Metric(_SHARE, "of all messages drawn: others read nothing of it (`visible`)", "below 0.1"),
    "duplicate_share": Metric(
        _SHARE,
        "of the trained turns' alternatives after the first of their context: the tokens of an earlier one",
        "well below 1; high where messages are a few tokens",
    ),
    "duplicate_share_{turn}": Metric(_SHARE, "the same of one turn", "well below 1, but for turns of a few tokens"),
    # Credit
    "advantage_std": Metric(
        "return, or 1 where normalised", "standard deviation of the trained turns' advantages", "above 0"
    ),
    "advantage_std_{turn}": Metric("return, or 1 where normalised", "the same of one trained turn", "above 0"),
    "zero_credit_share": Metric(
        _SHARE,
        "of a trained turn's messages: an advantage of exactly 0, which teaches nothing; mean over these turns",
        "below 0.9; near 1 problems are all solved, or none is",
    ),
    "zero_credit_share_{turn}": Metric(_SHARE, "the same of one turn; 1 where it is not trained", "below 0.9"),
    "further_problems": Metric(
        _COUNT, "with zero_signal resample: problems drawn beside the step's own, used or not", "well below the most"
    ),
    "replaced_share": Metric(
        _SHARE, "with zero_signal resample: of the batch's trees, those of further problems", "below 0.5"
    ),
    "skipped_share": Metric(
        _SHARE, "with zero_signal skip or resample: of the batch's trees, those left out of the loss", "below 0.9"
    ),
    "fan_out": Metric(_COUNT, "alternatives a turn in the step, where credit.fan_out is auto; a list"),
    "explained_variance": Metric(
        "1", "of the critic's targets: the share of variance its values explain; at most 1", "rises from 0 or below"
    ),
    "critic_loss": Metric("1", "mean loss of the critic's updates", "falls, then levels out"),
    # Update
    "loss": Metric("1", "what is minimised: policy_loss and kl_coefficient times kl", "says little by itself"),
    "policy_loss": Metric("1", "the loss of ratios and advantages", "says little by itself; near 0"),
    "kl": Metric("nats a token", "divergence from the policy at the start; 0 where the loss has none", "rises, levels"),
    "kl_coefficient": Metric("1", "weight of kl in the loss", "constant without learner.kl.target"),
    "entropy": Metric("nats a token", "entropy of the policy over tokens", "falls slowly, and not to 0"),
    "clip_share": Metric(_SHARE, "of tokens, or messages: a ratio beyond the clip", "0 to 0.2"),
    "ratio_deviation": Metric("1", "mean distance of a token's ratio from 1, over the step's updates", "0 to 0.2"),
    "first_ratio_deviation": Metric(
        "1",
        "the same in the first update, before any weight has moved: how far learner and sampler differ",
        "1e-5 in float32, 0.01 in bfloat16; with async_steps, how far a step moves the policy",
    ),
    "first_clip_share": Metric(
        _SHARE, "clip_share of the first update, with async_steps: what older weights alone cost", "0 to 0.1"
    ),
    "staleness": Metric("steps", "with async_steps: by how many the weights that drew are older", "1, in step 0 0"),
    "grad_norm": Metric("1", "global norm of the gradient before clipping", "finite, without a trend upwards"),
    "learning_rate": Metric("1", "of the optimiser, mean over the step's updates", "as learner.schedule says"),
    "bad_updates": Metric(_COUNT, "updates skipped so far for a loss or gradient that is not finite", "0"),
    "bad_in_row": Metric(_COUNT, "of these, the ones since the last good update", "0"),
    "critic_bad_updates": Metric(_COUNT, "bad_updates of the critic", "0"),
    "critic_bad_in_row": Metric(_COUNT, "bad_in_row of the critic", "0"),
    "alarms": Metric("", "names of the alarms that are on, a list; no such key where none is", "no such key"),
    # Ledger and time
    "step": Metric(_COUNT, "the step, from 0", "each once, in order, resumed or not"),
    "evaluator_calls": Metric(
        _COUNT, "answers graded", "problems, further ones too, times credit.budget, or less with auto"
    ),
    "messages": Metric(_COUNT, "messages drawn"),
    "generated_tokens": Metric(_TOKENS, "tokens drawn, stop tokens included"),
    "prefilled_tokens": Metric(
        _TOKENS, "tokens of contexts, and of answers that are read, run through the model; a shared prefix counts once"
    ),
    "traces": Metric(_COUNT, "programs compiled so far by this process", "constant after the first steps"),
    "seconds_rollout": Metric(
        _SECONDS, "drawing the trees; with async_steps what of it is waited for", "most of a step"
    ),
    "seconds_score": Metric(_SECONDS, "waiting for graders with nothing to draw meanwhile", "a small part of a step"),
    "seconds_update": Metric(_SECONDS, "credit and update; with async_steps what is drawn before it on the device too"),
    "tokens_per_second": Metric("tokens a second", "generated_tokens by seconds_rollout", "constant after the first"),
}


def find_metric(name: str) -> Metric | None:
    """The row of a figure; None for one that the table does not have."""
    if name in METRICS:
        return METRICS[name]
    families = [known for known in METRICS if known.endswith("}") and name.startswith(known.partition("{")[0])]
    return METRICS[max(families, key=len)] if families else None
