"""Checks that a credit method fits a sampling plan, a scope and a budget. Host code: NumPy only."""

from __future__ import annotations

from c3jax.credit import rows
from c3jax.credit.method import Method, Normalise
from c3jax.credit.methods import METHODS, find_method
from c3jax.credit.plans import FanOut, Plan, Unit, check_plan, compute_cost, count_credited, is_flat


def group_size(method: Method, plan: Plan, turn: int) -> int:
    """Number of messages in the group of a message of `turn`, itself included.

    Args:
      method: whose column `group` says what is compared.
      plan: what is sampled for a problem.
      turn: of the message.
    """
    return rows.count_alternatives(plan, turn) if method.group == "context" else count_credited(plan)[turn]


def check_pairing(method: str, plan: Plan, trained: tuple[bool, ...] | None = None) -> None:
    """Check that `method` can give credit to every trained turn under this plan.

    Args:
      method: a key of `METHODS`, or a user's own as module:NAME.
      plan: what is sampled for a problem.
      trained: per turn, whether its messages are trained on; None for all turns. Only a turn that is not
        trained may have too few messages to compare, since it gets no credit.

    Raises:
      ValueError: in one sentence naming the method or turn, what was expected and what was got; also where the row
        functions of a user's method raise, or give no weights of the plan's shape.
    """
    row = find_method(method, "method")
    check_plan(plan)
    is_trained = (True,) * plan.turns if trained is None else trained
    if len(is_trained) != plan.turns:
        raise ValueError(f"trained: expected {plan.turns} entries, one per turn, got {len(is_trained)}")
    if not any(is_trained):
        raise ValueError("trained: expected at least one trained turn, got none")
    form = "tree" if row.sampling == "flat" else row.sampling
    if plan.form != form:
        raise ValueError(f"method {method}: expected a plan of form {form}, got {plan.form}")
    if row.sampling == "flat" and not is_flat(plan):
        raise ValueError(
            f"method {method} compares whole episodes: expected fan_out (B, 1, ..., 1), got {plan.fan_out}"
        )
    for turn, turn_is_trained in enumerate(is_trained):
        size = group_size(row, plan, turn)
        if turn_is_trained and size < row.min_group:
            where = "in each context" if row.group == "context" else "for each problem"
            source = f"fan_out {plan.fan_out}" if plan.form == "tree" else f"counts {plan.counts}"
            source = f"episodes {plan.episodes}" if plan.episodes else source
            raise ValueError(
                f"method {method} would give turn {turn} zero credit: expected at least {row.min_group} messages "
                f"{where} of a trained turn, got {size} from {source}"
            )
        rows.compute_rows(row.value, plan, turn, f"method {method}: value")
        if turn_is_trained:
            rows.compute_rows(row.baseline, plan, turn, f"method {method}: baseline")


def find_least_fan_out(method: str, trained: tuple[bool, ...]) -> FanOut:
    """The smallest tree on which every trained turn gets credit.

    Args:
      method: a key of `METHODS`, or a user's own as module:NAME.
      trained: per turn, whether it is trained; one is at least.
    """
    row = find_method(method)
    if row.group == "context":
        return tuple(row.min_group if on else 1 for on in trained)
    first = trained.index(True)
    return tuple(row.min_group if turn == first else 1 for turn in range(len(trained)))


def check_auto(method: str, trained: tuple[bool, ...], budget: float, unit: Unit, tokens: tuple[float, ...]) -> None:
    """Check that a fan-out can be chosen for `method` within a budget.

    Args:
      method: a key of `METHODS`, or a user's own as module:NAME.
      trained: per turn, whether it is trained.
      budget: most that a problem may cost, in `unit`.
      unit, tokens: what is counted, and the tokens of a message of each turn, as for `plans.compute_cost`.

    Raises:
      ValueError: in one sentence, if nothing foretells the method's errors or its smallest tree costs more.
    """
    if find_method(method).predicts == "nothing":
        known = ", ".join(name for name, row in METHODS.items() if row.predicts != "nothing")
        raise ValueError(f"auto: expected a method of {known}, got {method!r}")
    least = compute_cost(find_least_fan_out(method, trained), unit, tokens)
    if least > budget:
        raise ValueError(f"auto: expected a budget of at least {least:g} {unit} for method {method}, got {budget:g}")


def check_normalise(method: str, normalise: Normalise) -> None:
    """Check that a method may be normalised over a scope.

    Args:
      method: a key of `METHODS`, or a user's own as module:NAME.
      normalise: the scope.

    Raises:
      ValueError: in one sentence naming both.
    """
    scopes = find_method(method).scopes
    if normalise not in scopes:
        raise ValueError(f"method {method}: expected normalise {' or '.join(scopes)}, got {normalise!r}")


def needs_critic(method: str) -> bool:
    """Whether the advantage needs values that no row of weights over returns gives."""
    return find_method(method).carries == "critic"
