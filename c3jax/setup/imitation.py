"""The warm-up before the first step: imitation of the task's own demonstrations."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from c3jax.learner import imitate
from c3jax.rollout import address
from c3jax.setup.team import Setup, make_questions
from c3jax.tasks.task import DemonstratedTurn
from c3jax.types import Rollout


def warm_up(setup: Setup, console: Console, is_stopping: Callable[[], bool]) -> dict | None:
    """Parameters after the imitation that the config asks for; None where the run was told to stop meanwhile."""
    section = setup.config.imitation
    if section is None:
        return setup.weights.trained
    init, update = imitate.make_imitation(section, setup.policy, setup.plans)
    state = init(jax.tree.map(jnp.copy, setup.weights.trained))
    columns = (
        TextColumn("{task.description}"),
        BarColumn(None),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("imitation", total=section.updates, loss=float("nan"))
        for done in range(section.updates):
            if is_stopping():
                return None
            state, loss = update(state, make_demonstrations(setup, done))
            if done % 10 == 9 or done + 1 == section.updates:
                progress.update(bar, completed=done + 1, loss=float(loss))
    if not console.is_terminal:
        console.print(f"imitation: {section.updates} updates, loss {float(loss):.3f}")
    return state.params


def make_demonstrations(setup: Setup, update: int) -> Rollout:
    """An update's demonstrated transcripts, addressed by (seed, update)."""
    config, demonstrate = setup.config, setup.task.demonstrate
    assert config.imitation is not None and demonstrate is not None  # the config's checks see to it
    rng = np.random.default_rng([config.seed, address.IMITATE, update])
    count = len(setup.train.problems)
    indices = rng.choice(count, size=config.imitation.problems, replace=config.imitation.problems > count).tolist()
    problems = [setup.train.problems[index] for index in indices]
    stop_token = setup.tokenizer.stop_tokens[0]
    turns = []
    for plan in setup.plans:
        turn = DemonstratedTurn(plan.name, plan.role, is_last=plan is setup.plans[-1])
        texts = [demonstrate(config.task, problem, turn, (config.seed, update)) for problem in problems]
        rows = [setup.tokenizer.encode_text(text) for text in texts]
        turns.append(imitate.make_messages(rows, stop_token, plan.max_tokens))
    question, _ = make_questions(setup, setup.train, indices)
    return Rollout(question, tuple(turns))
