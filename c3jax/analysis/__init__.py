"""Diagnostics: what a set of measurements says, with its uncertainty, as figures and tables."""
