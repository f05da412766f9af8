"""Sampling plans: what is drawn for one problem, which of it is scored, and what that costs, in closed form.

A credit method needs returns of a certain kind, and a plan says how they are come by. Every plan scores a fixed number
of leaves (L evaluator calls a problem) in a fixed order, and credits a fixed number of messages a turn; both are known
before anything is drawn. Host code, plain numbers.

Forms, their leaves in order, and the messages they credit, for K turns:

    tree         fan_out (f0, ..., f_{K-1}); leaves in path order. All messages are credited.
                 (B, 1, ..., 1) is B independent episodes.
    replay       A reference transcript, and at each of its K decisions n alternatives, each continued counts[j]
                 times by all later turns. Leaves: turn by turn, alternative by alternative. Credited: the
                 alternatives. The first one of a turn becomes the reference's own message. At the last turn
                 counts[j] calls score one message.
    best_branch  As replay, but the reference continues with the alternative of highest mean return.
    auxiliary    `episodes` transcripts; `repeats` fresh continuations of the problem itself and of every context
                 that an episode reached after its first turn. Leaves: the episodes, the problem's, then turn by
                 turn, episode by episode. Credited: the episodes' messages.
    removal      `episodes` transcripts, and for each turn a copy whose message is the null message and whose later
                 turns speak again. Leaves: the episodes, then turn by turn the copies. Credited: the episodes'
                 messages.
    first_removal  As removal, of two turns and without the first message alone. Leaves: the episodes, the copies.
    masked       As removal, but the later turns' messages stay as they were: nothing is generated.
    coalition    `episodes` transcripts, each scored with every subset of its messages replaced by the null message.
                 Leaves: episode by episode, subset by subset; bit u of a subset's number says that turn u is kept.

Where the evaluator reads the last message alone, as it does of a language model's, a masked message would change
nothing: there `answers_again` has the last turn, where it is kept itself, speak again in every copy of masked and
coalition.

`list_branches` says of every form what is to be drawn of a language model, as trees that go on from messages of earlier
ones.

Source: arXiv:2603.06859, section 3 and algorithm 1 (tree, replay); credit/methods.py names the sources of the others.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

from c3jax.types import FanOut

Unit = Literal["calls", "messages", "tokens"]
ArmsForm = Literal["removal", "first_removal", "masked", "coalition"]  # episodes, and copies without messages
Form = Literal["tree", "replay", "best_branch", "auxiliary", ArmsForm]
ARMS: tuple[Form, ...] = get_args(ArmsForm)
Kind = Literal["alternative", "factual", "auxiliary", "counterfactual"]


class Plan(NamedTuple):
    """What is drawn for one problem. Fields that a form does not use are empty; make plans with the functions below."""

    form: Form
    turns: int  # K
    fan_out: FanOut = ()  # tree: alternatives at a context, per turn
    counts: tuple[int, ...] = ()  # replay, best_branch: continuations of each of the n alternatives
    episodes: int = 0  # auxiliary, removal, first_removal, masked, coalition
    repeats: int = 0  # auxiliary: continuations of a context
    answers_again: bool = False  # masked, coalition: the last turn speaks again where an earlier message is removed


class Given(NamedTuple):
    """Which messages of one earlier turn a branch goes on from."""

    branch: int  # the earlier branch that holds them
    rows: tuple[int, ...]  # of a problem's messages of the turn there, one a start; none: the alternative worth most


class Branch(NamedTuple):
    """Part of a plan that is drawn at once: a tree from each of a problem's starts."""

    kind: Kind  # of the first messages it draws; what continues an alternative is auxiliary
    given: tuple[Given | None, ...]  # of each turn before the first that speaks; None: the null message
    fan_out: FanOut  # messages of a turn for one of the turn before, of all turns; (starts, 1, ..., 1) of those given
    first: tuple[int, ...]  # number of its first message among all that the plan draws of a turn, for the address
    calls: int = 1  # evaluator calls a leaf


def make_tree(fan_out: FanOut) -> Plan:
    """A nested tree.

    Args:
      fan_out: alternatives at each context, a number a turn.
    """
    return Plan("tree", len(fan_out), fan_out=tuple(fan_out))


def make_flat(episodes: int, turns: int) -> Plan:
    """Independent episodes, as the tree of fan-out (episodes, 1, ..., 1).

    Args:
      episodes: of a problem.
      turns: of an episode.
    """
    return make_tree((episodes, *(1,) * (turns - 1)))


def make_replay(counts: tuple[int, ...], turns: int, *, continues_best: bool = False) -> Plan:
    """Alternatives along one reference transcript.

    Args:
      counts: continuations of each alternative, at every turn.
      turns: of the transcript.
      continues_best: whether the reference continues with the alternative of highest mean return.
    """
    return Plan("best_branch" if continues_best else "replay", turns, counts=tuple(counts))


def make_auxiliary(episodes: int, repeats: int, turns: int) -> Plan:
    """Episodes, with auxiliary continuations of every context they reached.

    Args:
      episodes: of a problem.
      repeats: continuations of a context.
      turns: of an episode.
    """
    return Plan("auxiliary", turns, episodes=episodes, repeats=repeats)


def make_arms(form: ArmsForm, episodes: int, turns: int, *, answers_again: bool = False) -> Plan:
    """Episodes, each scored again with messages replaced by the null message.

    Args:
      form: which messages are replaced, and whether later turns speak again.
      episodes: of a problem.
      turns: of an episode.
      answers_again: for masked and coalition, whether the last turn speaks again where an earlier message is removed.
    """
    return Plan(form, turns, episodes=episodes, answers_again=answers_again and form in ("masked", "coalition"))


def check_plan(plan: Plan) -> None:
    """Check that every number of the plan is positive; raises ValueError naming the field."""
    if plan.form == "tree":
        if not plan.fan_out or min(plan.fan_out) < 1:
            raise ValueError(f"fan_out: expected a positive entry for every turn, got {plan.fan_out}")
        return
    if plan.turns < 1:
        raise ValueError(f"turns: expected at least 1, got {plan.turns}")
    if plan.form == "first_removal" and plan.turns != 2:
        raise ValueError(
            f"turns: expected 2 where the second one's message is drawn without the first, got {plan.turns}"
        )
    if plan.form in ("replay", "best_branch"):
        if not plan.counts or min(plan.counts) < 1:
            raise ValueError(f"counts: expected a positive entry for every alternative, got {plan.counts}")
        return
    if plan.episodes < 1:
        raise ValueError(f"episodes: expected at least 1, got {plan.episodes}")
    if plan.form == "auxiliary" and plan.repeats < 1:
        raise ValueError(f"repeats: expected at least 1, got {plan.repeats}")


def is_flat(plan: Plan) -> bool:
    """Whether the plan draws nothing but independent episodes."""
    return plan.form == "tree" and all(f == 1 for f in plan.fan_out[1:])


def count_calls(plan: Plan) -> int:
    """Evaluator calls a problem (L): the number of leaves."""
    K = plan.turns
    if plan.form == "tree":
        return math.prod(plan.fan_out)
    if plan.form in ("replay", "best_branch"):
        return K * sum(plan.counts)
    if plan.form == "auxiliary":
        return plan.episodes + plan.repeats * (1 + plan.episodes * (K - 1))
    if plan.form == "coalition":
        return plan.episodes * 2**K
    return plan.episodes * (2 if plan.form == "first_removal" else 1 + K)


def count_credited(plan: Plan) -> tuple[int, ...]:
    """Messages of each turn that get an advantage (N), per problem."""
    if plan.form == "tree":
        return tuple(math.prod(plan.fan_out[: turn + 1]) for turn in range(plan.turns))
    if plan.form in ("replay", "best_branch"):
        return (len(plan.counts),) * plan.turns
    return (plan.episodes,) * plan.turns


def count_generated(plan: Plan) -> tuple[int, ...]:
    """Messages of each turn that are generated, per problem, continuations included."""
    credited = count_credited(plan)
    if plan.form in ("replay", "best_branch"):
        return tuple(n + turn * sum(plan.counts) for turn, n in enumerate(credited))
    if plan.form == "auxiliary":
        return tuple(n + plan.repeats * (1 + plan.episodes * turn) for turn, n in enumerate(credited))
    if plan.form in ("removal", "first_removal"):  # of two turns removal speaks again at the second alone
        return tuple(n + plan.episodes * turn for turn, n in enumerate(credited))
    if plan.answers_again:
        copies = plan.turns - 1 if plan.form == "masked" else 2 ** (plan.turns - 1) - 1
        return (*credited[:-1], credited[-1] * (1 + copies))
    return credited


def list_branches(plan: Plan) -> tuple[Branch, ...]:
    """What a plan draws, branch by branch; a branch goes on from messages of earlier ones.

    Args:
      plan: whose alternatives are continued equally often.

    Returns:
      The branches, those with credited messages first; their leaves, branch by branch, are the plan's in the order of
      `list_leaves`.
    """
    parts = _list_parts(plan)
    branches, drawn = [], (0,) * plan.turns
    for kind, given, fan_out, calls in parts:
        branches.append(Branch(kind, given, fan_out, drawn, calls))
        rows = [math.prod(fan_out[: turn + 1]) for turn in range(plan.turns)]
        drawn = tuple(n + (rows[turn] if turn >= len(given) else 0) for turn, n in enumerate(drawn))
    return tuple(branches)


_Part = tuple[Kind, tuple[Given | None, ...], FanOut, int]  # a branch's fields but its address


def _list_parts(plan: Plan) -> list[_Part]:
    K, turns = plan.turns, range(plan.turns)
    if plan.form == "tree":
        return [("alternative", (), plan.fan_out, 1)]
    if plan.form in ("replay", "best_branch"):
        (count,) = set(plan.counts)
        chosen = (0,) if plan.form == "replay" else ()
        parts: list[_Part] = []
        for turn in turns:
            fan_out = ((1,) * turn + (len(plan.counts), count) + (1,) * K)[:K]
            given = tuple(Given(earlier, chosen) for earlier in range(turn))
            parts.append(("alternative", given, fan_out, count if turn == K - 1 else 1))
        return parts
    episodes = tuple(range(plan.episodes))
    own = Given(0, episodes)
    arms: list[_Part]
    flat = make_flat(plan.episodes, K).fan_out
    if plan.form == "auxiliary":
        more = [(own,) * turn for turn in turns]
        fan_outs = [(*flat[:turn], plan.repeats, *flat[turn + 1 :]) for turn in turns]
        arms = [("auxiliary", given, fan_out, 1) for given, fan_out in zip(more, fan_outs, strict=True)]
    elif plan.form in ("removal", "first_removal"):
        removed = turns if plan.form == "removal" else range(1)
        arms = [("counterfactual", (own,) * turn + (None,), flat, 1) for turn in removed]
    else:
        kept = [[other != turn for other in turns] for turn in turns]
        if plan.form == "coalition":
            kept = [[bool(subset >> turn & 1) for turn in turns] for subset in range(2**K - 1)]
        arms = [("counterfactual", _mask(plan, own, is_kept), flat, 1) for is_kept in kept]
    return [("factual", (), flat, 1), *arms]


def _mask(plan: Plan, own: Given, is_kept: list[bool]) -> tuple[Given | None, ...]:
    given = tuple(own if kept else None for kept in is_kept)
    return given[:-1] if plan.answers_again and is_kept[-1] and not all(is_kept) else given


def list_credited(plan: Plan) -> tuple[int, ...]:
    """The branch that holds the credited messages of each turn."""
    return tuple(range(plan.turns)) if plan.form in ("replay", "best_branch") else (0,) * plan.turns


def list_leaves(plan: Plan) -> list[int]:
    """Of each of the plan's leaves, in its order, the number among all branches' leaves, branch by branch."""
    if plan.form != "coalition":
        return list(range(count_calls(plan)))
    # Episode by episode; there the branches are the whole set, which comes last here, and then the other subsets.
    last, E = 2**plan.turns - 1, plan.episodes
    return [((subset + 1) % (last + 1)) * E + episode for episode in range(E) for subset in range(last + 1)]


def compute_cost(fan_out: FanOut, unit: Unit, tokens: tuple[float, ...]) -> float:
    """What a tree costs a problem.

    Args:
      fan_out: alternatives a turn.
      unit: evaluator calls, messages or tokens.
      tokens: of a message of each turn.
    """
    messages = count_credited(make_tree(fan_out))
    if unit == "calls":
        return float(messages[-1])
    return float(sum(messages)) if unit == "messages" else sum(n * t for n, t in zip(messages, tokens, strict=True))


def list_fan_outs(least: FanOut, budget: float, unit: Unit, tokens: tuple[float, ...]) -> list[FanOut]:
    """All fan-outs of at least `least` that cost no more than the budget.

    Args:
      least: alternatives a turn, the fewest.
      budget: most that a problem may cost, in `unit`.
      unit, tokens: as for `compute_cost`.
    """
    starts: list[FanOut] = [()]
    for turn in range(len(least)):
        longer: list[FanOut] = []
        for start in starts:
            number = least[turn]
            while compute_cost((*start, number, *least[turn + 1 :]), unit, tokens) <= budget:
                longer.append((*start, number))
                number += 1
        starts = longer
    return starts
