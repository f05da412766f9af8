"""The library in a notebook: sample trees, look at one, credit it by two methods, make one update.

python library.py CONFIG
"""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp

import c3jax

FAN_OUT = (2, 4)  # two plans for each question, four answers to each plan


def main(path: str) -> None:
    """Take one step of training by hand, and print what happens on the way."""
    config = c3jax.load_config(path, {"problems": 4, "learner.minibatches": 1})
    setup = c3jax.make_setup(config)
    sample_tree = c3jax.make_tree_sampler(setup.policy, setup.plans, config.sampling, setup.tokenizer.stop_tokens)
    question, problem_P = c3jax.make_questions(setup, setup.train, range(4))
    rollout, counts = sample_tree(setup.weights, question, jax.random.key(0), problem_P, FAN_OUT)
    plans, answers = c3jax.decode_turns(setup, rollout)  # a list a turn, in path order
    print(f"{int(counts.messages)} messages, {int(counts.generated)} tokens")
    print(f"question: {setup.train.problems[0].question}")
    for plan, first in zip(plans[:2], (0, 4), strict=True):
        print(f"  plan {plan!r}: answers {answers[first : first + 4]}")

    # Here a number in the answer is worth something; a run asks its task: setup.task.grade(problem, answer).
    scores = [float(any(word.isdigit() for word in answer.split())) for answer in answers]
    return_PL = jnp.array(scores).reshape(4, -1)
    for method in ("c3", "no_loo"):
        matrix = c3jax.make_credit_matrix(method, c3jax.make_tree(FAN_OUT))
        credit = c3jax.apply_credit(matrix, return_PL, normalise="none")
        print(f"{method}: advantages of the first question's plans {credit.advantage[0][0]}")

    update = c3jax.make_update(config.credit, config.learner, config.sampling, config.steps, setup.policy, setup.plans)
    state = c3jax.init_state(setup.policy, setup.weights, setup.plans, config.credit, config.learner)
    reference = jax.tree.map(jnp.copy, state.params)  # the update gives up the buffers of the state
    plan = c3jax.make_tree(FAN_OUT)
    state, _, figures = update(state, {}, reference, (rollout,), return_PL, jax.random.key(1), plan)
    print(f"one update: loss {float(figures['loss']):.4f}, gradient norm {float(figures['grad_norm']):.3f}")


if __name__ == "__main__":
    main(sys.argv[1])
