"""The learning study: the sweep of training runs on games.

Results are shown against updates, evaluator calls, messages and generated tokens, since the unit of the budget decides
the ranking. Dimension key as in sweep.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

from c3jax.config.run import KL
from c3jax.credit.matrix import make_credit_matrix
from c3jax.credit.methods import find_method
from c3jax.lab import sections, sweep
from c3jax.lab.chunks import Block, Record
from c3jax.lab.config import LearningStudy
from c3jax.lab.families import make_family
from c3jax.lab.policies import make_mlp, make_tabular
from c3jax.lab.sweep import Arm, Findings
from c3jax.lab.training import Critic, Lane, Setting, make_train
from c3jax.learner.objective import make_objective


def run(config: LearningStudy, run_dir: Path, console: Console) -> int:
    """Run the study in its directory, or resume it.

    Args:
      config: the study's.
      run_dir: where its chunks, tables, curves and figures are.
      console: to print on.

    Returns:
      0, the exit code.
    """
    arms = list_arms(config)
    study = sweep.Sweep(
        arms,
        make_blocks(config, arms),
        read=lambda recorded: read_findings(config, arms, recorded),
        length=f"{config.updates} updates",
        figure="expected return",
        columns=("estimator", "messages", "final", "final_low", "final_high", "final_gain", "final_p", "mean"),
    )
    sweep.run_sweep(study, config.seed, config.memory_gb, run_dir, console)
    return 0


def list_arms(config: LearningStudy) -> list[Arm]:
    """Every case's estimators, each with every loss and learning rate."""
    return [
        arm
        for case in config.cases
        for arm in sweep.list_arms(
            case.name, case.estimators, config.learning_rates, len(sections.list_messages(case.game)), config.losses
        )
    ]


def make_blocks(config: LearningStudy, arms: Sequence[Arm]) -> list[Block]:
    """The study's runs, in blocks as `sweep.make_blocks` says."""
    games = {case.name: case.game for case in config.cases}

    def make_lane(arm: Arm, seed: int) -> Lane:
        trained = sections.choose_trained(sections.list_trained(games[arm.case]), arm.estimator)
        matrix = make_credit_matrix(arm.estimator.method, arm.plan, trained, arm.estimator.mean)
        rates = jnp.float32(arm.learning_rate), jnp.float32(config.critic_learning_rate)
        objective = make_objective(arm.loss, KL())
        clips = (jnp.float32(objective.clip_low), jnp.float32(objective.clip_high))
        return Lane(jnp.uint32(seed), *rates, jax.tree.map(np.float32, matrix), clips)

    return sweep.make_blocks(
        arms, config.seeds, lambda arm: make_train(make_setting(config, games[arm.case], arm)), make_lane
    )


def make_setting(config: LearningStudy, game: sections.Game, arm: Arm) -> Setting:
    """What the runs of an arm on a game have in common with all that its program makes.

    Args:
      config: the study's.
      game: of the arm's case.
      arm: from `list_arms`.
    """
    estimator, family = arm.estimator, make_family(game)
    if config.policy == "tabular":
        policy = make_tabular(family.shape, game.problems, config.policy_scale)
    else:
        policy = make_mlp(family.shape, family.features, config.policy_width)
    method = find_method(estimator.method)
    return Setting(
        family=family,
        policy=policy,
        plan=arm.plan,
        trained=sections.choose_trained(sections.list_trained(game), estimator),
        normalise=estimator.normalise,
        critic=Critic(estimator.discount, estimator.decay) if method.carries == "critic" else None,
        carries_components=method.carries == "components" or estimator.mean > 0.0,
        apply=sections.find_program(estimator),
        optimiser=optax.scale_by_adam() if config.optimiser == "adam" else optax.identity(),
        problems=game.problems,
        batch=config.problems,
        updates=config.updates,
        every=config.every,
        episodes=config.episodes,
        objective=make_objective(arm.loss, KL()),
        epochs=config.epochs,
        minibatches=config.minibatches,
        is_unary=config.writing == "unary",
    )


def read_findings(config: LearningStudy, arms: Sequence[Arm], recorded: Record) -> Findings:
    """Final expected return and its mean over the run, and the curves.

    Args:
      config: the study's.
      arms: from `list_arms`.
      recorded: fields of `training.Curve`, [A, S, E] each.
    """
    value_ASE = recorded["value"]
    step_E = config.every * np.arange(value_ASE.shape[-1])
    tokens = {case.name: sections.list_tokens(case.game) for case in config.cases}
    return Findings(
        compared={"final": value_ASE[..., -1], "mean": np.trapezoid(value_ASE, axis=-1) / (value_ASE.shape[-1] - 1)},
        spent=sweep.count_spent(arms, "updates", step_E, config.problems, lambda arm: tokens[arm.case]),
        curve={"value": value_ASE},
        means={name: each for name, each in recorded.items() if name != "value"},
        shown={},
        counted={},
    )
