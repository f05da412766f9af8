"""Benchmarks: each measures two things in one process and prints its figures, and their ratio, as one JSON object.

Machines are shared and noisy, so compared runs alternate, every single time is printed, and figures are taken from the
fastest run of each: what else a machine does can only make a run slower.
"""
