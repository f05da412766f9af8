"""Nineteen claims about counterfactual credit, each with its prediction, measured on games whose truth is known."""
