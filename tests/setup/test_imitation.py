"""The warm-up: stopped and taken up again it is the one that was never stopped."""

from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

from c3jax.config.file import load_config
from c3jax.learner import imitate
from c3jax.run.checkpoint import list_steps
from c3jax.setup.imitation import check_demonstrations, warm_up
from c3jax.setup.team import make_setup
from c3jax.train import train
from c3jax.types import UserError

SMALL = {
    **{"task.train_problems": 16, "task.heldout_problems": 8, "problems": 4, "learner.minibatches": 1},
    **{"model.layers": 1, "model.width": 8, "model.heads": 1, "model.key_value_heads": 1, "model.mlp_width": 8},
    **{"imitation.updates": 4, "imitation.problems": 2, "evaluation.problems": 8, "evaluation.batch": 8},
}


def test_it_is_taken_up_where_it_was_stopped(tmp_path, monkeypatch, capsys):
    setup = make_setup(load_config("quickstart", SMALL))
    assert setup.config.imitation is not None
    made = imitate.make_imitation(setup.config.imitation, setup.policy, setup.plans)
    monkeypatch.setattr(imitate, "make_imitation", lambda *_: made)  # compiled once
    console = Console(highlight=False, markup=False)

    def imitate_from(path: Path, updates: int):
        asked = iter(range(100))
        return warm_up(setup, console, lambda: next(asked) >= updates, path)

    check_demonstrations(setup)
    whole = imitate_from(tmp_path / "whole", 100)
    path = tmp_path / "run" / "imitation"
    assert imitate_from(path, 0) is None and list_steps(path) == []  # nothing is lost by that
    assert imitate_from(path, 1) is None and list_steps(path) == [1]
    assert imitate_from(path, 0) is None and list_steps(path) == [1]
    assert imitate_from(path, 2) is None and list_steps(path) == [3]
    assert "stopped after 3 of 4 updates of imitation; the same command resumes it" in capsys.readouterr().out
    jax.tree.map(np.testing.assert_array_equal, imitate_from(path, 100), whole)
    with pytest.raises(AssertionError):
        jax.tree.map(np.testing.assert_array_equal, setup.weights.trained, whole)


def test_demonstrations_that_do_not_fit_are_refused_before_there_is_a_run(tmp_path):
    short = load_config("quickstart", SMALL | {"protocol.turns.1.max_tokens": 1})
    with pytest.raises(UserError, match="^protocol.turns: expected max_tokens of at least 3 for .* got 1"):
        train(short, tmp_path / "run", ["c3jax"], Console(quiet=True))
    assert not (tmp_path / "run").exists()
