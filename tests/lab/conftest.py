"""How the tests of the games compile."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def compile_quickly(request: pytest.FixtureRequest) -> Iterator[None]:
    """Without the compiler's costly passes where programs compile for seconds and run for milliseconds."""
    is_quick = request.path.name in (
        *("test_games.py", "test_policies.py", "test_play.py", "test_oracle.py", "test_run.py", "test_analyse.py"),
    )
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", is_quick or before)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
