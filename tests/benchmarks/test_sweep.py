"""The benchmark of the sweep: its ratios are those of its seconds, and it leaves the compilation cache as it was."""

from __future__ import annotations

import jax
import pytest

from benchmarks.sweep import bench_sweep, without_compilation_cache


def test_ratios_are_those_of_the_seconds():
    """Two seeds of seven estimators in four programs: trees, episodes, the shrunk baseline and the critic."""
    found = bench_sweep(is_small=True)
    assert (found["runs"], found["programs"]) == (14, 4)
    together, alone = (sum(found[name].values()) for name in ("seconds", "seconds_alone"))
    assert min(*found["seconds"].values(), *found["seconds_alone"].values()) > 0.0
    assert found["alone_over_together"] == pytest.approx(14 * alone / together)
    once = 4 * found["seconds_alone"]["compiling"] + 14 * found["seconds_alone"]["running"]
    assert found["alone_compiled_once_over_together"] == pytest.approx(once / together)


def test_the_cache_is_used_again_whatever_happens():
    before = jax.config.values["jax_enable_compilation_cache"]
    with pytest.raises(ZeroDivisionError), without_compilation_cache():
        assert not jax.config.values["jax_enable_compilation_cache"]
        raise ZeroDivisionError
    assert jax.config.values["jax_enable_compilation_cache"] == before
