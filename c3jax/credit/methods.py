"""The credit methods: one literal table.

A method gives each message a value and a baseline, both weighted means of the returns of the problem's leaves; the
rows of `METHODS` name the sampling that they need, the functions of `rows.py` that make the weights, and what makes
credit of these (`compute.py`). `find_method` finds a row, or a record of a user's own; `method.py` describes one. Host
code: NumPy only, so that a config can be checked without a device. Source of c3 and its ablations: arXiv:2603.06859.
"""

from __future__ import annotations

from collections.abc import Mapping

from c3jax.credit import rows
from c3jax.credit.method import SCOPES_WITHOUT_GROUP, Method, find_fault
from c3jax.schema import ConfigError, load_named

METHODS: dict[str, Method] = {
    "c3": Method(
        sampling="tree",
        value=rows.own_leaves,
        baseline=rows.others_in_context,
        group="context",
        min_group=2,
        predicts="leave_one_out",
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
        predicts="leave_one_out",
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
        carries="critic",
        apply="gae",
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
    "hgpo": Method(
        sampling="tree",
        value=rows.own_leaves,
        baseline=rows.ancestors_means,
        min_group=2,
        estimand="(1 - sum_k w_k/m_k) A*(h, a) + an offset of V(h) and of its ancestors' V, m_k the size of group k",
        advantage_bias="offset",
        gradient_bias="scale",
        scopes=SCOPES_WITHOUT_GROUP,  # its groups are several
        source="arXiv:2602.22817",
        doc="Value minus a mean of group means: messages that share the first k messages of the path, weight k + 1.",
    ),
    "tree_grpo": Method(
        sampling="tree",
        value=rows.own_leaves,
        baseline=rows.mean_of_turn,
        min_group=2,
        apply="tree_and_batch",
        estimand="(V(n) - tree's mean)/tree's std + (V(n) - batch's mean)/batch's std, not a multiple of A*",
        advantage_bias="other",
        gradient_bias="other",
        scopes=("none",),
        source="arXiv:2509.21240",
        doc="The value standardised by the returns of its problem's leaves, plus the same by those of the whole batch.",
    ),
    "maxrl": Method(
        sampling="flat",
        value=rows.own_leaves,
        baseline=rows.mean_of_turn,
        min_group=2,
        apply="mean_scaled",
        estimand="(R - mean)/mean; the gradient is of the truncated log-likelihood of success, not its probability",
        advantage_bias="other",
        gradient_bias="other",
        scopes=("none",),
        source="arXiv:2602.02710",
        doc="magrpo divided by the mean return of the problem's episodes; 0 where that is 0. Returns of at least 0.",
    ),
    "otb": Method(
        sampling="flat",
        value=rows.own_leaves,
        baseline=rows.mean_of_turn,
        min_group=2,
        apply="gradient_weighted",
        reads="gradients",
        estimand="E[(1 - w)(R - others' weighted mean) | h, a], w the message's own share of the weights",
        advantage_bias="other",
        gradient_bias="other",
        condition="falls as 1 over the episodes; divided by 1 - w, which leaves the own return out, offset and none",
        source="arXiv:2602.07078, a baseline a message in place of one a token",
        doc="The return minus the episodes' mean weighted by |grad log pi|^2 by the logits, summed over drawn tokens.",
    ),
    "igpo": Method(
        sampling="flat",
        value=rows.own_leaves,
        baseline=rows.mean_of_turn,
        min_group=2,
        apply="information_gain",
        reads="likelihoods",
        estimand="(n - 1)/n (A*(h, a) + V(h) - V(x)) + (1 - c/n) E[p | h, a] - an amount of h, c = (K - 1 - u)/(K - 1)",
        advantage_bias="other",
        gradient_bias="other",
        condition="at the last turn as magrpo; where the return is 1 for one last message alone, offset and scale",
        scopes=("none", "group"),
        source="arXiv:2510.14967, and the code released with it",
        doc="magrpo, plus what the right answer gains in probability p from the message's context to the last turn's.",
    ),
    "rae": Method(
        sampling="flat",
        value=rows.own_leaves,
        baseline=rows.nothing,
        carries="components",
        apply="running_mean",
        estimand="A*(h, a) + V(h) - b, b the running mean",
        advantage_bias="offset",
        gradient_bias="none",
        condition="with the mean of earlier steps",
        scopes=SCOPES_WITHOUT_GROUP,
        source="arXiv:2506.24119",
        doc="The return minus its running mean over earlier steps (credit.decay), one for all roles: they share it.",
    ),
    "value_assisted": Method(
        sampling="tree",
        value=rows.own_leaves,
        baseline=rows.others_in_context,
        group="context",
        min_group=2,
        critic="action_value",
        carries="critic",
        apply="assisted",
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
        carries="critic",
        apply="scores",
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
        carries="components",
        apply="filter",
        predicts="filter",
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
        doc="Value minus the mean of the alternatives at the decisions of a transcript that keeps to the best one.",
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
    "ccpo": Method(
        sampling="first_removal",
        value=rows.own_episode,
        baseline=rows.mean_of_episodes,
        min_group=2,
        apply="removal_bonus",
        estimand="(n - 1)/n A*(h, a), of returns of 0 and 1 times 1 + P(s != 1/2)/10 at the first turn; then as magrpo",
        advantage_bias="other",
        gradient_bias="other",
        condition="of returns of 0 and 1 magrpo, times 1.1 at the first turn unless half of the copies are right",
        source="code of June 2026 released with arXiv:2603.21563",
        doc="magrpo; the first turn's return has a bonus for being right where most copies without it are wrong.",
    ),
    "difference_masked": Method(
        sampling="masked",
        value=rows.own_episode,
        baseline=rows.removed,
        estimand="Q(h, a) minus the expected return of null followed by the messages after a",
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
        carries="critic",
        apply="oracle",
        estimand="q(h, a) - sum_a' pi(a'|h) q(h, a')",
        advantage_bias="none",
        gradient_bias="none",
        condition="with a wrong critic other, the gradient too",
        scopes=SCOPES_WITHOUT_GROUP,
        source="arXiv:1705.08926",
        doc="The critic's value of the message minus its mean over all messages; the rows give the return.",
    ),
}


def find_method(name: str, field: str = "credit.method", table: Mapping[str, Method] = METHODS) -> Method:
    """The method of a name: a row of the table, or with a colon a record in a file of the user's.

    Args:
      name: `c3`, `my_credit:HINDSIGHT` or `./my_credit.py:HINDSIGHT`.
      field: where the name stands, for complaints.
      table: the rows to choose from.

    Raises:
      ConfigError: in one sentence, as `schema.load_named`.
    """
    return load_named(field, name, table, find_fault)


def find_trainable(name: str, field: str = "credit.method") -> Method:
    """The method of a name, for a training run of language models.

    Args:
      name, field: as for `find_method`.

    Raises:
      ConfigError: as `find_method`, and where only a study knows what the method needs.
    """
    table = {known: row for known, row in METHODS.items() if row.critic != "oracle"}
    if ":" not in name and name not in METHODS:
        return find_method(name, field, table)
    row = find_method(name, field)
    if row.critic == "oracle":
        lack = "the value of every possible message, which only `c3jax study` knows"
        raise ConfigError(f"{field}: {name} needs {lack}; expected one of {', '.join(table)}")
    return row
