"""The credit methods: one literal table, and the checks that a method fits a sampling plan.

A method gives each message a value and a baseline, both weighted means of the returns of the problem's leaves; the
rows of `METHODS` name the sampling that they need and the functions of `rows.py` that make the weights. A method with a
critic has here what it takes from returns; the critic's part is added where its values are. Calls and messages are
closed forms of the plan alone, in `plans.py`. Host code: NumPy only, so that a config can be checked without a device.

Source: arXiv:2603.06859 (c3 and its ablations); the other rows name their own.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from c3jax.credit import rows
from c3jax.credit.plans import FanOut, Form, Plan, Unit, check_plan, compute_cost, count_credited, is_flat

Sampling = Form | Literal["flat"]  # flat: a tree of independent episodes, fan-out (B, 1, ..., 1)
Group = Literal["context", "turn"]
Normalise = Literal["none", "group", "turn", "batch"]
Critic = Literal["none", "value", "action_value", "oracle"]
Bias = Literal["none", "scale", "offset", "reweighted", "other"]

SCOPES: tuple[Normalise, ...] = ("none", "group", "turn", "batch")
SCOPES_WITHOUT_GROUP: tuple[Normalise, ...] = ("none", "turn", "batch")


class Method(NamedTuple):
    """One way to turn returns into advantages.

    The biases are those of the estimate before any division by a standard deviation, except where the method itself
    prescribes the division, and with the exact critic where it has one. They hold when alternatives are independent
    draws from the policy being updated and their numbers were fixed before sampling:
      none        exact
      scale       times a positive factor, one a turn
      offset      of an advantage: that, plus an amount that depends on the context alone
      reweighted  of a gradient: times a positive factor that changes with the context
      other       none of these
    """

    sampling: Sampling
    value: rows.Rows  # what a message is worth
    baseline: rows.Rows  # what it is compared with
    estimand: str  # E[advantage | h, a]; V(x) is the problem's value, n the group's size, q and v the critic's values
    advantage_bias: Bias  # against A*(h, a)
    gradient_bias: Bias  # of the score-weighted sum, against the policy gradient
    source: str
    doc: str
    group: Group = "turn"  # siblings in exactly the same context, or all the problem's messages of the turn
    min_group: int = 1  # messages a trained turn must have in each group
    condition: str = ""  # what the biases further depend on
    critic: Critic = "none"  # V(h), Q(h, a) of sampled messages, or Q of every message (enumerable games)
    scopes: tuple[Normalise, ...] = SCOPES  # normalisations the method allows


METHODS: dict[str, Method] = {
    "c3": Method(
        sampling="tree",
        value=rows.own_leaves,
        baseline=rows.others_in_context,
        group="context",
        min_group=2,
        estimand="A*(h, a)",
        advantage_bias="none",
        gradient_bias="none",
        source="arXiv:2603.06859",
        doc="Value minus the mean value of the other alternatives drawn in exactly the same context.",
    ),
    "no_loo": Method(
        sampling="tree",
        value=rows.own_leaves,
        baseline=rows.mean_of_context,
        group="context",
        min_group=2,
        estimand="(n - 1)/n A*(h, a)",
        advantage_bias="scale",
        gradient_bias="scale",
        source="arXiv:2603.06859, ablation",
        doc="Value minus the mean value of all alternatives in the same context, its own included.",
    ),
    "no_replay": Method(
        sampling="tree",
        value=rows.own_leaves,
        baseline=rows.others_of_turn,
        min_group=2,
        estimand="A*(h, a) + s (V(h) - V(x)), s the share of the baseline drawn in other contexts",
        advantage_bias="offset",
        gradient_bias="none",
        source="arXiv:2603.06859, ablation",
        doc="Value minus the mean value of all the problem's other messages of the turn, whatever their contexts.",
    ),
    "rloo": Method(
        sampling="flat",
        value=rows.own_leaves,
        baseline=rows.others_of_turn,
        min_group=2,
        estimand="A*(h, a) + V(h) - V(x)",
        advantage_bias="offset",
        gradient_bias="none",
        source="arXiv:2402.14740",
        doc="The episode's return minus the mean return of the problem's other episodes.",
    ),
    "magrpo": Method(
        sampling="flat",
        value=rows.own_leaves,
        baseline=rows.mean_of_turn,
        min_group=2,
        estimand="(n - 1)/n (A*(h, a) + V(h) - V(x))",
        advantage_bias="offset",
        gradient_bias="scale",
        source="arXiv:2508.04652",
        doc="The episode's return minus the mean return of all the problem's episodes, its own included.",
    ),
    "reinforce": Method(
        sampling="flat",
        value=rows.own_leaves,
        baseline=rows.nothing,
        estimand="A*(h, a) + V(h)",
        advantage_bias="offset",
        gradient_bias="none",
        source="Williams 1992, Machine Learning 8",
        doc="The episode's return; take a constant off the returns for a constant baseline.",
    ),
    "grpo": Method(
        sampling="flat",
        value=rows.own_leaves,
        baseline=rows.mean_of_turn,
        min_group=2,
        estimand="(R - mean)/std, not a multiple of A*",
        advantage_bias="other",
        gradient_bias="other",
        condition="with returns of 0 and 1 alone, problems are reweighted and nothing else is wrong",
        scopes=("group",),
        source="arXiv:2402.03300",
        doc="magrpo divided by the standard deviation of the problem's returns.",
    ),
    "dr_mas": Method(
        sampling="flat",
        value=rows.own_leaves,
        baseline=rows.mean_of_turn,
        min_group=2,
        estimand="(R - mean)/std, not a multiple of A*",
        advantage_bias="other",
        gradient_bias="other",
        condition="tends to magrpo's, up to a factor a turn, as the batch has more problems",
        scopes=("turn",),
        source="arXiv:2602.08847",
        doc="magrpo, each turn divided by the standard deviation of its own advantages over all problems of the batch.",
    ),
    "mappo": Method(
        sampling="flat",
        value=rows.own_leaves,
        baseline=rows.nothing,
        critic="value",
        estimand="A*(h, a) + V(h) - v(h) at discount = decay = 1",
        advantage_bias="none",
        gradient_bias="none",
        condition="with a wrong critic an offset at discount = decay = 1, and other (the gradient too) below",
        scopes=SCOPES_WITHOUT_GROUP,
        source="arXiv:2103.01955",
        doc="Generalised advantage estimation over turns with a learned value of contexts; the rows give the return.",
    ),
    "tree_rl": Method(
        sampling="tree",
        value=rows.own_leaves,
        baseline=rows.root_and_parent,
        min_group=2,
        estimand="(2 - 1/f - 1/N) A*(h, a) + (1 - 1/f0)(V(h) - V(x)), f the turn's fan-out, N its messages",
        advantage_bias="offset",
        gradient_bias="scale",
        source="arXiv:2506.11902",
        doc="(V(n) - V(root)) + (V(n) - V(parent)), subtree means; the paper's factor 1/sqrt(leaves) is left out.",
    ),
    "value_assisted": Method(
        sampling="tree",
        value=rows.own_leaves,
        baseline=rows.others_in_context,
        group="context",
        min_group=2,
        critic="action_value",
        estimand="A*(h, a) + alpha (V(h) - E_a q(h, a))",
        advantage_bias="none",
        gradient_bias="none",
        condition="with a wrong critic, if fixed before the draws, an offset and a gradient without bias",
        source="code released with arXiv:2603.06859, replication",
        doc="c3 with the share alpha of its baseline taken from a critic: r - (1 - alpha) b(r) - alpha b(q).",
    ),
    "value_only": Method(
        sampling="tree",
        value=rows.own_leaves,
        baseline=rows.others_in_context,
        group="context",
        min_group=2,
        critic="action_value",
        estimand="q(h, a) - E_a q(h, a)",
        advantage_bias="none",
        gradient_bias="none",
        condition="with a wrong critic other, the gradient too",
        source="code released with arXiv:2603.06859, replication",
        doc="c3 on a critic's values in place of returns, q - b(q); the rows are those of c3 and give no advantage.",
    ),
    "shrunk": Method(
        sampling="tree",
        value=rows.own_leaves,
        baseline=rows.nothing,
        estimand="A*(h, a) + V(h) - E[baseline | h]",
        advantage_bias="offset",
        gradient_bias="none",
        condition="with the variance components of earlier steps; those of the same step would bias both",
        scopes=SCOPES_WITHOUT_GROUP,
        source="c3jax, credit/shrink.py",
        doc="Value minus a baseline shrunk between the context's alternatives, the other leaves and earlier steps.",
    ),
    "c3_replay": Method(
        sampling="replay",
        value=rows.own_leaves,
        baseline=rows.others_in_context,
        group="context",
        min_group=2,
        estimand="A*(h, a)",
        advantage_bias="none",
        gradient_bias="none",
        source="arXiv:2603.06859, algorithm 1",
        doc="c3 at the decisions of one reference transcript; the baseline is uniform over the others' continuations.",
    ),
    "at_grpo": Method(
        sampling="best_branch",
        value=rows.own_leaves,
        baseline=rows.mean_of_context,
        group="context",
        min_group=2,
        estimand="(n - 1)/n A*(h, a)",
        advantage_bias="scale",
        gradient_bias="reweighted",
        condition="a gradient of scale at the first turn; later contexts are those that the best alternative leads to",
        source="arXiv:2510.11062",
        doc="Value minus the mean of the alternatives at the decisions of a transcript that goes on with the best one.",
    ),
    "vine_ppo": Method(
        sampling="auxiliary",
        value=rows.fresh_next,
        baseline=rows.fresh_here,
        estimand="A*(h, a)",
        advantage_bias="none",
        gradient_bias="none",
        scopes=SCOPES_WITHOUT_GROUP,
        source="arXiv:2410.01679",
        doc="Mean return of fresh continuations after the message minus that of fresh continuations before it.",
    ),
    "difference": Method(
        sampling="removal",
        value=rows.own_episode,
        baseline=rows.removed,
        estimand="Q(h, a) - Q(h, null)",
        advantage_bias="offset",
        gradient_bias="none",
        scopes=SCOPES_WITHOUT_GROUP,
        source="arXiv:2603.21563",
        doc="The return minus that of a copy whose message is the null message and whose later turns speak again.",
    ),
    "difference_masked": Method(
        sampling="masked",
        value=rows.own_episode,
        baseline=rows.removed,
        estimand="Q(h, a) minus the expected return of null followed by what is said after a",
        advantage_bias="other",
        gradient_bias="other",
        condition="at the last turn as difference",
        scopes=SCOPES_WITHOUT_GROUP,
        source="Wolpert and Tumer 2001, Advances in Complex Systems 4",
        doc="The return minus that of the same transcript with the message replaced by the null message.",
    ),
    "shapley": Method(
        sampling="coalition",
        value=rows.coalitions_with,
        baseline=rows.coalitions_without,
        estimand="expected Shapley value of the turn among the transcript's messages",
        advantage_bias="other",
        gradient_bias="other",
        condition="as difference where effects add up and no later message answers to this one",
        scopes=SCOPES_WITHOUT_GROUP,
        source="arXiv:2602.08335",
        doc="Return of a random coalition of the other messages with this one, minus without it.",
    ),
    "coma": Method(
        sampling="flat",
        value=rows.own_leaves,
        baseline=rows.nothing,
        critic="oracle",
        estimand="q(h, a) - sum_a' pi(a'|h) q(h, a')",
        advantage_bias="none",
        gradient_bias="none",
        condition="with a wrong critic other, the gradient too",
        scopes=SCOPES_WITHOUT_GROUP,
        source="arXiv:1705.08926",
        doc="The critic's value of the message minus its mean over all messages; the rows give the return.",
    ),
}


# Methods whose noise a fan-out can be chosen by, from variance components (credit/shrink.py).
AUTO_METHODS = ("c3", "no_loo", "shrunk")


def needs_critic(method: str) -> bool:
    """Whether the advantage needs values that no row of weights over returns gives."""
    return METHODS[method].critic != "none"


def group_size(method: Method, plan: Plan, turn: int) -> int:
    """Number of messages in the group of a message of `turn`, itself included."""
    return rows.count_alternatives(plan, turn) if method.group == "context" else count_credited(plan)[turn]


def check_trainable(method: str) -> None:
    """Check that a training run of language models can use `method`; raises ValueError naming those it can."""
    known = ", ".join(name for name, row in METHODS.items() if _find_obstacle(row) is None)
    if method not in METHODS:
        raise ValueError(f"expected one of {known}, got {method!r}")
    obstacle = _find_obstacle(METHODS[method])
    if obstacle is not None:
        raise ValueError(f"{method} needs {obstacle}; expected one of {known}")


def _find_obstacle(row: Method) -> str | None:
    if row.critic == "oracle":
        return "the value of every possible message, which only `c3jax study` knows"
    draws = {"auxiliary": "auxiliary continuations", "coalition": "coalitions"}
    draws |= dict.fromkeys(("replay", "best_branch"), "alternatives along a reference transcript")
    draws |= dict.fromkeys(("removal", "masked"), "copies with a message removed")
    return f"{draws[row.sampling]}, which only `c3jax study` samples" if row.sampling in draws else None


def check_pairing(method: str, plan: Plan, trained: tuple[bool, ...] | None = None) -> None:
    """Check that `method` can give credit to every trained turn under this plan.

    Args:
      method: a key of `METHODS`.
      plan: what is sampled for a problem.
      trained: per turn, whether its messages are trained on; None for all turns. Only a turn that is not
        trained may have too few messages to compare, since it gets no credit.

    Raises:
      ValueError: in one sentence naming the method or turn, what was expected and what was got.
    """
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    check_plan(plan)
    is_trained = (True,) * plan.turns if trained is None else trained
    if len(is_trained) != plan.turns:
        raise ValueError(f"trained: expected {plan.turns} entries, one per turn, got {len(is_trained)}")
    if not any(is_trained):
        raise ValueError("trained: expected at least one trained turn, got none")
    row = METHODS[method]
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
            raise ValueError(
                f"method {method} would give turn {turn} zero credit: expected at least {row.min_group} messages "
                f"{where} of a trained turn, got {size} from {source}"
            )


def find_least_fan_out(method: str, trained: tuple[bool, ...]) -> FanOut:
    """The smallest tree on which every trained turn gets credit; for the methods of `AUTO_METHODS`."""
    if METHODS[method].group == "context":
        return tuple(METHODS[method].min_group if on else 1 for on in trained)
    first = trained.index(True)
    return tuple(METHODS[method].min_group if turn == first else 1 for turn in range(len(trained)))


def check_auto(method: str, trained: tuple[bool, ...], budget: float, unit: Unit, tokens: tuple[float, ...]) -> None:
    """Check that a fan-out can be chosen for `method` within a budget.

    Raises:
      ValueError: in one sentence, if the method is not one of `AUTO_METHODS` or its smallest tree costs more.
    """
    if method not in AUTO_METHODS:
        raise ValueError(f"auto: expected a method of {', '.join(AUTO_METHODS)}, got {method!r}")
    least = compute_cost(find_least_fan_out(method, trained), unit, tokens)
    if least > budget:
        raise ValueError(f"auto: expected a budget of at least {least:g} {unit} for method {method}, got {budget:g}")


def check_normalise(method: str, normalise: Normalise) -> None:
    """Check that `method` may be normalised over the scope `normalise`; raises ValueError naming both."""
    if normalise not in METHODS[method].scopes:
        expected = " or ".join(METHODS[method].scopes)
        raise ValueError(f"method {method}: expected normalise {expected}, got {normalise!r}")
