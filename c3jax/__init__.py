"""c3jax: contextual counterfactual credit assignment for teams of language models, in JAX.

What a researcher needs in a notebook, each documented where it is defined:

    load_config, RunConfig       a run's config from YAML, with overrides
    make_setup, Setup            its problems, tokenizer, plans of contexts, policy and weights
    make_questions               the frame of questions that a tree is sampled from
    make_tree_sampler            trees of messages
    make_tree, METHODS, Method   what is sampled for a problem, and how messages are credited
    make_credit_matrix, apply_credit
    compute_credit, CreditInputs credit by any method, of NumPy's arrays (without JAX) or JAX's
    compute_batch_credit, spread_over_tokens   the same for another trainer's rows with ids, and their tokens
    LOSSES, Loss, init_state, make_update
    Task, Problem, Verdict       a task of one's own
    Environment, Observation     what answers a turn in place of a policy
    train, evaluate              the modules of the loop and of held-out accuracy: train.train, evaluate.make_evaluation

They are imported when they are first asked for, so that `import c3jax` does not wait for JAX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from c3jax import evaluate as evaluate
    from c3jax import train as train
    from c3jax.config.file import load_config as load_config
    from c3jax.config.run import RunConfig as RunConfig
    from c3jax.credit.apply import apply_credit as apply_credit
    from c3jax.credit.batch import compute_batch_credit as compute_batch_credit
    from c3jax.credit.batch import spread_over_tokens as spread_over_tokens
    from c3jax.credit.compute import CreditInputs as CreditInputs
    from c3jax.credit.compute import compute_credit as compute_credit
    from c3jax.credit.matrix import make_credit_matrix as make_credit_matrix
    from c3jax.credit.method import Method as Method
    from c3jax.credit.methods import METHODS as METHODS
    from c3jax.credit.plans import make_tree as make_tree
    from c3jax.learner.loss_table import LOSSES as LOSSES
    from c3jax.learner.loss_table import Loss as Loss
    from c3jax.learner.state import init_state as init_state
    from c3jax.learner.update import make_update as make_update
    from c3jax.rollout.tree import make_tree_sampler as make_tree_sampler
    from c3jax.setup.team import Setup as Setup
    from c3jax.setup.team import decode_turns as decode_turns
    from c3jax.setup.team import make_questions as make_questions
    from c3jax.setup.team import make_setup as make_setup
    from c3jax.tasks.environment import Environment as Environment
    from c3jax.tasks.environment import Observation as Observation
    from c3jax.tasks.task import Task as Task
    from c3jax.types import Problem as Problem
    from c3jax.types import Verdict as Verdict

_HOMES = {
    "config.file": ("load_config",),
    "config.run": ("RunConfig",),
    "credit.apply": ("apply_credit",),
    "credit.batch": ("compute_batch_credit", "spread_over_tokens"),
    "credit.compute": ("CreditInputs", "compute_credit"),
    "credit.matrix": ("make_credit_matrix",),
    "credit.method": ("Method",),
    "credit.methods": ("METHODS",),
    "credit.plans": ("make_tree",),
    "learner.loss_table": ("LOSSES", "Loss"),
    "learner.state": ("init_state",),
    "learner.update": ("make_update",),
    "rollout.tree": ("make_tree_sampler",),
    "setup.team": ("Setup", "decode_turns", "make_questions", "make_setup"),
    "tasks.environment": ("Environment", "Observation"),
    "tasks.task": ("Task",),
    "types": ("Problem", "Verdict"),
}
_MODULES = ("evaluate", "train")
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", *_MODULES, *_HOME_OF]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"c3jax.{name}")
    if name in _HOME_OF:
        return importlib.import_module(f"c3jax.{_HOME_OF[name]}").__dict__[name]
    raise AttributeError(f"module 'c3jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
