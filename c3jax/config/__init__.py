"""The configuration of a run: its schema, how a file becomes one, and what its fields say against each other."""
