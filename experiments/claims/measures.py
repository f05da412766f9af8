"""How each claim of claims.yaml is measured."""

from __future__ import annotations

from collections.abc import Callable

from experiments.claims import credit, diagnostics, gradients, learning
from experiments.claims.claim import Rows, Scale

MEASURES: dict[str, Callable[[Scale], Rows]] = {
    "01-unbiased": credit.measure_bias,
    "02-offset": credit.measure_offset,
    "03-variance-law": credit.measure_variance_law,
    "04-leave-one-out-is-scaling": credit.measure_identities,
    "05-fidelity": gradients.measure_fidelity,
    "06-two-rankings": gradients.measure_rankings,
    "07-four-arms": credit.measure_arms,
    "08-removal": credit.measure_removal,
    "09-learning-curves": learning.measure_curves,
    "10-token-arithmetic": gradients.measure_tokens,
    "11-fan-out": learning.measure_fan_out,
    "12-depth": learning.measure_depth,
    "13-team-mates": learning.measure_mates,
    "14-influence": diagnostics.measure_influence,
    "15-diagnostics-confound": diagnostics.measure_confound,
    "16-critic-error": gradients.measure_critic,
    "17-stale-policy": gradients.measure_stale,
    "18-zero-groups": diagnostics.measure_zero_groups,
    "19-message-length": gradients.measure_length,
}
