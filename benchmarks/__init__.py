"""Benchmarks: each measures two things in one process and prints its figures, and their ratio, as one JSON object.

    python -m benchmarks rollout     (from a checkout, with c3jax installed)

Machines are shared and noisy, so compared runs alternate, every single time is printed, and figures are taken from the
fastest run of each: what else a machine does can only make a run slower.
"""
