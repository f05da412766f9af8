"""Experiments that are run from a checkout and are no part of the package."""
