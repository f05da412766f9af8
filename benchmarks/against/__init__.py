"""c3jax beside other programs, each of which has an environment of its own."""
