"""What a config takes with it when the command line names another kind of a section, or another method of credit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from c3jax.config.credit import size_plan
from c3jax.config.run import RunConfig
from c3jax.credit.method import Sampling
from c3jax.credit.methods import find_trainable
from c3jax.credit.pairing import check_pairing, needs_critic
from c3jax.credit.plans import ARMS, count_calls, make_tree
from c3jax.schema import ConfigError, kinds_of, sections_in


def drop_other_kinds(tree: dict[str, Any], overrides: Mapping[str, Any]) -> None:
    """Leave out of a section whose kind is overridden what the new kind has no field for.

    With a model that is trained already goes the warm-up.
    """
    for name in ("task", "model"):
        kind, section = overrides.get(f"{name}.kind"), tree.get(name)
        if kind is None or not isinstance(section, dict) or section.get("kind") == kind:
            continue
        for declared in sections_in(RunConfig.model_fields[name].annotation):
            if kind in kinds_of(declared):
                tree[name] = {field: value for field, value in section.items() if field in declared.model_fields}
        if name == "model" and kind != "random":
            tree.pop("imitation", None)


def fit_credit(tree: dict[str, Any], overrides: Mapping[str, Any]) -> None:
    """Give an overridden method what it draws, the normalisation and the critic it needs, where none is overridden.

    Of the budget it draws episodes, (B, 1, ..., 1), where it compares whole episodes, else the evenest tree that it can
    use, or the most alternatives or episodes whose continuations and copies the budget pays for exactly; the critic is
    a network of its own with the learner's rate. What is left wrong, the checks of the config say.
    """
    credit, protocol, learner = (tree.get(name) for name in ("credit", "protocol", "learner"))
    turns = protocol.get("turns") if isinstance(protocol, dict) else None
    if "credit.method" not in overrides or not isinstance(credit, dict) or not isinstance(turns, list):
        return
    try:
        method = find_trainable(name := credit["method"])
    except ConfigError:
        return
    given = {path.split(".")[1] for path in overrides if path.startswith("credit.")}
    if "normalise" not in given and credit.get("normalise") not in method.scopes:
        credit["normalise"] = method.scopes[0]
    if "critic" not in given and not needs_critic(name):
        credit.pop("critic", None)
    elif (
        needs_critic(name)
        and "credit.critic" not in overrides
        and isinstance(critic := credit.get("critic") or {}, dict)
    ):
        rate = learner.get("learning_rate") if isinstance(learner, dict) else None
        credit["critic"] = {"network": "own", "learning_rate": rate} | critic
    other = "draws" if method.sampling in ("tree", "flat") else "fan_out"
    if other not in given:
        credit.pop(other, None)
    if not given & {"fan_out", "draws"}:
        _fit_draws(credit, method.sampling, [turn if isinstance(turn, dict) else {} for turn in turns])


def _fit_draws(credit: dict[str, Any], sampling: Sampling, turns: Sequence[dict[str, Any]]) -> None:
    name, budget, fan_out = credit["method"], credit.get("budget"), credit.get("fan_out")
    answered = {index for index, turn in enumerate(turns) if turn.get("environment")}
    trained = tuple(turn.get("trained", True) is not False and not turn.get("environment") for turn in turns)
    if not isinstance(budget, int) or not 0 < budget <= 4096:
        return
    if sampling not in ("tree", "flat"):
        credit["draws"] = _choose_draws(sampling, budget, len(trained)) or credit.get("draws")
        return
    sizes = fan_out if isinstance(fan_out, list) else []
    if fan_out == "auto" or not all(isinstance(size, int) for size in sizes):
        return
    if math.prod(sizes) == budget and _is_usable(name, tuple(sizes), trained):
        return
    trees = (sizes for sizes in _list_trees(budget, len(trained)) if all(sizes[index] == 1 for index in answered))
    usable = [sizes for sizes in trees if _is_usable(name, sizes, trained)]
    if usable:
        credit["fan_out"] = list(min(usable, key=lambda sizes: max(sizes) - min(sizes)))


def _choose_draws(form: Sampling, budget: int, turns: int) -> dict[str, int] | None:
    """The draws of so many calls, or of as many as they can be, with the most credited messages."""
    main = "alternatives" if form in ("replay", "best_branch") else "episodes"
    most = 1 if form in ARMS else budget
    sizes = [(number, repeats) for number in range(budget, 0, -1) for repeats in range(1, max(1, most // number) + 1)]
    calls = {pair: count_calls(size_plan(form, *pair, turns)) for pair in sizes}
    usable = [pair for pair in sizes if calls[pair] <= budget]
    if not usable:
        return None
    number, repeats = max(usable, key=lambda pair: calls[pair])  # the first of equals
    return {main: number, "continuations": repeats}


def _list_trees(budget: int, turns: int) -> list[tuple[int, ...]]:
    if turns <= 1:
        return [(budget,)] * turns
    sizes = (size for size in range(1, budget + 1) if budget % size == 0)
    return [(size, *rest) for size in sizes for rest in _list_trees(budget // size, turns - 1)]


def _is_usable(method: str, fan_out: tuple[int, ...], trained: tuple[bool, ...]) -> bool:
    try:
        check_pairing(method, make_tree(fan_out), trained)
    except (ValueError, TypeError):
        return False
    return True
