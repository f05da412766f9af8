"""The warm-up before the first step: imitation of the task's own demonstrations."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from c3jax.learner import imitate
from c3jax.models.sharding import list_shapes, shard_problems, shard_state
from c3jax.rollout import address
from c3jax.rollout.acting import Acting, answer_turn
from c3jax.rollout.tree import find_skipped
from c3jax.run.checkpoint import CheckpointStore
from c3jax.setup.team import Setup, make_questions
from c3jax.tasks.task import DemonstratedTurn
from c3jax.types import Params, Rollout


def warm_up(
    setup: Setup,
    console: Console,
    is_stopping: Callable[[], int],
    path: Path | None = None,
    acting: Acting | None = None,
) -> Params | None:
    """Imitate as the config asks.

    Args:
      setup: of the run.
      console: where the progress is shown.
      is_stopping: whether the run was told to stop.
      path: where it is saved when it stops before its end, and taken up again; None saves nothing.
      acting: what answers turns in which no policy speaks.

    Returns:
      The parameters after it, or None where the run was told to stop meanwhile.
    """
    section = setup.config.imitation
    if section is None:
        return setup.weights.trained
    init, update = imitate.make_imitation(section, setup.policy, setup.plans, setup.mesh)
    shown, status = TextColumn("{task.description}"), TextColumn("{task.fields[status]}")
    columns = (shown, BarColumn(None), status, TimeElapsedColumn())
    with (
        nullcontext() if path is None else CheckpointStore(path, 1, console.print) as store,
        Progress(*columns, console=console, disable=not console.is_terminal) as progress,
    ):
        shapes = list_shapes(setup.mesh, jax.eval_shape(init, setup.weights.trained))
        first, state = (store and store.restore_newest(shapes)) or (0, None)
        if state is None:
            state = shard_state(setup.mesh, init(jax.tree.map(jnp.copy, setup.weights.trained)))
        bar = progress.add_task("imitation", total=section.updates, completed=first, status="compiling")
        if not console.is_terminal:
            console.print(
                f"imitation: {section.updates - first} updates (compiled for the first, or found cached)",
                soft_wrap=True,
            )
        for done in range(first, section.updates):
            if is_stopping():
                if store and done > first:
                    store.save(done, state)
                console.print(
                    f"stopped after {done} of {section.updates} updates of imitation; the same command resumes it",
                    highlight=False,
                    soft_wrap=True,
                )
                return None
            state, loss = update(state, make_demonstrations(setup, done, acting))
            if done % 10 == 9 or done == first or done + 1 == section.updates:
                progress.update(bar, completed=done + 1, status=f"loss {float(loss):.3f}")
    if not console.is_terminal:
        console.print(f"imitation: loss {float(loss):.3f}")
    return state.params


def check_demonstrations(setup: Setup) -> None:
    """Check, before a run directory is made, that the first demonstrations fit the turns. Raises UserError."""
    if setup.config.imitation is not None and not any(plan.is_environment for plan in setup.plans):
        make_demonstrations(setup, 0)


def make_demonstrations(setup: Setup, update: int, acting: Acting | None = None) -> Rollout:
    """An update's demonstrated transcripts, addressed by (seed, update); environments answer what is demonstrated.

    Args:
      setup: of the run.
      update: from 0.
      acting: what answers turns in which no policy speaks; None where there are none.
    """
    config, demonstrate = setup.config, setup.task.demonstrate
    assert config.imitation is not None and demonstrate is not None  # the config's checks see to it
    rng = np.random.default_rng([config.seed, address.IMITATE, update])
    count = len(setup.train.problems)
    indices = rng.choice(count, size=config.imitation.problems, replace=config.imitation.problems > count).tolist()
    problems = [setup.train.problems[index] for index in indices]
    stop_token = setup.tokenizer.stop_tokens[0]
    key = address.make_step_key(config.seed, address.IMITATE, update)
    question, _ = make_questions(setup, setup.train, indices)
    rollout = Rollout(question, ())
    for number, plan in enumerate(setup.plans):
        if plan.is_environment:
            assert acting is not None  # whoever trains on such a protocol has opened it
            messages = answer_turn(acting, problems, key, rollout, 1)
        else:
            turn = DemonstratedTurn(plan.name, plan.role, plan is setup.plans[-1], _name_answering(setup, number + 1))
            texts = [demonstrate(config.task, problem, turn, (config.seed, update)) for problem in problems]
            rows = [setup.tokenizer.encode_text(text) for text in texts]
            skipped_N = find_skipped(plan, rollout.turns, len(rows))
            messages = imitate.make_messages(rows, stop_token, plan.max_tokens, skipped_N)
            messages = shard_problems(setup.mesh, messages)
        rollout = rollout._replace(turns=(*rollout.turns, messages))
    return rollout


def _name_answering(setup: Setup, turn: int) -> str | None:
    """The environment that answers a turn."""
    turns = setup.config.protocol.turns
    section = turns[turn].environment if turn < len(turns) else None
    return None if section is None else section.kind
