"""A whole training run as one pure function: rollout, evaluator, credit, loss and Optax update, all on the device.

`make_train(setting)` gives `train(key, lane)`. A lane is one run: its seed, learning rates and credit matrix, so vmap
over lanes runs seeds, hyper-parameters and all methods of one sampling plan together, each as it would run alone.

Randomness is an address: every draw's key is folded from (the study's key, the lane's seed, a stream, the update, the
problem). Lanes of one seed meet the same problems in the same order, whatever their method, and on one plan the same
uniform numbers. Keys are threefry's, whose draws do not change under vmap; those of the faster rbg do.

A sample may be learnt from more than once, in epochs and minibatches: then the policy leaves the one that drew it, and
losses differ. They are those of `learner/objective.py`, of the tokens in which messages are written.

Dimension key: P problem of an update    N message of one turn of one problem    L leaf of one problem    K turn
    M message a turn can choose from    E problem that is measured on    T token of a message    R row of a turn
    B problem of a minibatch, or token of a turn
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from c3jax.config.run import KL, PolicyLoss
from c3jax.credit.compute import APPLY, CreditInputs
from c3jax.credit.learned import compute_episode_credit
from c3jax.credit.matrix import CreditMatrix
from c3jax.credit.method import Normalise
from c3jax.credit.plans import Plan, make_flat
from c3jax.credit.shrink import Components, apply_shrunk, init_components, update_components
from c3jax.lab.games import Family, Game, compute_mean_return, make_game
from c3jax.lab.oracle import compute_oracle
from c3jax.lab.play import Sample, sample_plan
from c3jax.lab.policies import GamePolicy, Params
from c3jax.learner.losses import compute_total, compute_weights
from c3jax.learner.objective import Objective, TokenTerms, compute_message_loss, compute_token_figures, make_objective
from c3jax.types import Credit

COMPONENTS_DECAY = 0.9  # weight of earlier updates in the running variance components of the shrunk baseline
_PROBLEMS, _POLICY, _CRITIC, _UPDATES, _MEASUREMENTS, _ORDERS = range(6)  # streams


class Critic(NamedTuple):
    """How a critic's values become advantages."""

    discount: float
    decay: float


class Setting(NamedTuple):
    """What is the same in all lanes of a program: static."""

    family: Family
    policy: GamePolicy  # a critic is a second one of these, whose first output is the context's value
    plan: Plan
    trained: tuple[bool, ...]  # per turn
    normalise: Normalise
    critic: Critic | None  # None: a method without a critic
    optimiser: optax.GradientTransformation  # without its learning rate
    problems: int  # in the fixed set: trained and measured on, or only measured on where problems never come back
    batch: int  # problems an update; at most `problems` where they come back
    updates: int
    every: int  # updates between measurements; divides updates
    episodes: int  # sampled for each problem of a measurement; 0: the exact expectation, by enumeration
    carries_components: bool = False  # the baseline follows the returns of earlier updates
    apply: str = "rows"  # of the method; under filter the lane's matrix is not read
    objective: Objective = make_objective(PolicyLoss(), KL())
    epochs: int = 1  # passes over an update's sample
    minibatches: int = 1  # optimiser steps a pass; divides batch
    is_unary: bool = False  # message m is m words and a stop, and not one token


class Lane(NamedTuple):
    """One run. Every field gets a leading axis under vmap."""

    seed: jax.Array  # uint32 scalar
    learning_rate: jax.Array  # scalar
    critic_learning_rate: jax.Array  # scalar; not read without a critic
    matrix: CreditMatrix
    clips: tuple[jax.Array, ...] = ()  # scalars: how far below and above 1 a ratio goes; empty for the objective's own


class Curve(NamedTuple):
    """What a run records, f32: an entry for the start and one after every `every` updates, 1 + updates / every in all.

    All but `value` are means over the updates since the entry before, so their first entry is NaN.
    """

    value: jax.Array  # expected return of the policy on the fixed set, in units of return
    sampled_return: jax.Array  # mean over leaves
    entropy: jax.Array  # nats a message: mean over the credited messages' contexts
    zero_share: jax.Array  # share of trained turns' messages whose advantage is exactly 0


class _State(NamedTuple):
    params: Params
    critic: Params
    optimiser: Any
    critic_optimiser: Any
    components: Components  # of the returns so far; read by the shrunk baseline only


class _World(NamedTuple):
    games: Game  # the fixed set, [E] in front
    family_key: jax.Array
    key: jax.Array  # of the lane


def make_train(setting: Setting) -> Callable[[jax.Array, Lane], Curve]:
    """The training run of a setting.

    Each update takes the next `batch` problems, samples them under the plan with the current policy, gives credit, and
    takes `epochs` times `minibatches` optimiser steps on the sum over trained turns of the turn's mean loss.

    Returns:
      train(key, lane), with the study's key; pure, to be jitted and vmapped over lanes.
    """

    def train(key: jax.Array, lane: Lane) -> Curve:
        lane_key = jax.random.fold_in(key, lane.seed)
        family_key = jax.random.fold_in(lane_key, _PROBLEMS)
        games = jax.vmap(lambda index: make_game(setting.family, family_key, index))(jnp.arange(setting.problems))
        world = _World(games, family_key, lane_key)

        def advance(state: _State, window: jax.Array) -> tuple[_State, Curve]:
            # The first window is empty: its measurement is of the policy before any update.
            steps = jnp.where(window == 0, 0, setting.every)
            first = (window - 1) * setting.every

            def step(offset: jax.Array, carry: tuple[_State, jax.Array]) -> tuple[_State, jax.Array]:
                state, figures = _update(setting, world, lane, carry[0], first + offset)
                return state, carry[1] + figures

            state, total = jax.lax.fori_loop(0, steps, step, (state, jnp.zeros(3)))
            value = _measure(setting, world, state.params)
            return state, Curve(value, *(total / steps))

        windows = jnp.arange(1 + setting.updates // setting.every)
        return jax.lax.scan(advance, _make_state(setting, lane_key), windows)[1]

    return train


def _make_state(setting: Setting, lane_key: jax.Array) -> _State:
    params = setting.policy.init(jax.random.fold_in(lane_key, _POLICY))
    components = init_components(setting.plan.turns)
    if setting.critic is None:
        return _State(params, None, setting.optimiser.init(params), None, components)
    critic = setting.policy.init(jax.random.fold_in(lane_key, _CRITIC))
    return _State(params, critic, setting.optimiser.init(params), setting.optimiser.init(critic), components)


def _update(setting: Setting, world: _World, lane: Lane, state: _State, update: jax.Array) -> tuple[_State, jax.Array]:
    """One update; also the sampled return, entropy and zero-credit share, [3]."""
    index_P, games = _next_problems(setting, world, update)
    update_key = jax.random.fold_in(jax.random.fold_in(world.key, _UPDATES), update)
    sample = _sample(setting, setting.plan, state.params, games, index_P, update_key)
    credit = _give_credit(setting, lane, state, games, sample)
    after, entropy = _learn(setting, lane, state, games, sample, credit, jax.random.fold_in(update_key, _ORDERS))
    if setting.carries_components:
        # After the credit: what enters it must be of earlier updates.
        components = update_components(state.components, sample.return_L, setting.plan.fan_out, COMPONENTS_DECAY)
        after = after._replace(components=components)
    if setting.critic is not None:
        gradient = jax.grad(_compute_critic_loss)(state.critic, setting, games, sample, credit)
        rate = lane.critic_learning_rate
        critic, critic_optimiser = _step(setting, state.critic, gradient, state.critic_optimiser, rate)
        after = after._replace(critic=critic, critic_optimiser=critic_optimiser)
    advantage = jnp.concatenate([a for a, on in zip(credit.advantage, setting.trained, strict=True) if on], axis=1)
    return after, jnp.stack([sample.return_L.mean(), entropy, jnp.mean(advantage == 0.0)])


def _next_problems(setting: Setting, world: _World, update: jax.Array) -> tuple[jax.Array, Game]:
    index_P = update * setting.batch + jnp.arange(setting.batch)
    if setting.family.is_fresh:
        index_P = setting.problems + index_P  # none of the fixed set is trained on
        return index_P, jax.vmap(lambda index: make_game(setting.family, world.family_key, index))(index_P)
    index_P = index_P % setting.problems
    return index_P, jax.tree.map(lambda leaf: leaf[index_P], world.games)


def _sample(setting: Setting, plan: Plan, params: Params, games: Game, index_P: jax.Array, key: jax.Array) -> Sample:
    def sample_problem(game: Game, index: jax.Array) -> Sample:
        return sample_plan(setting.family.shape, game, setting.policy, params, plan, jax.random.fold_in(key, index))

    return jax.vmap(sample_problem)(games, index_P)


def _give_credit(setting: Setting, lane: Lane, state: _State, games: Game, sample: Sample) -> Credit:
    """Credit of every message; under a critic its value is the lambda-return and its baseline the critic's value."""
    fan_out = setting.plan.fan_out
    if setting.apply == "filter":
        return apply_shrunk(state.components, sample.return_L, fan_out, setting.trained, normalise=setting.normalise)
    if setting.critic is None:
        inputs = CreditInputs(lane.matrix, fan_out, state.components)
        inputs = inputs._replace(gradient=sample.gradient, likelihood=sample.likelihood)
        return APPLY[setting.apply](inputs, sample.return_L, setting.normalise)
    return compute_episode_credit(
        lane.matrix,
        sample.return_L,
        [_run_policy(setting, state.critic, games, sample, turn)[..., 0] for turn in range(setting.plan.turns)],
        discount=setting.critic.discount,
        decay=setting.critic.decay,
        normalise=setting.normalise,
    )


def _learn(
    setting: Setting, lane: Lane, state: _State, games: Game, sample: Sample, credit: Credit, key: jax.Array
) -> tuple[_State, jax.Array]:
    """The policy's steps on a sample, and the mean entropy at its contexts, nats."""
    objective = setting.objective
    if lane.clips:
        objective = objective._replace(clip_low=lane.clips[0], clip_high=lane.clips[1])
    behaviour = tuple(_speak_again(setting, state.params, games, sample, turn)[0] for turn in range(setting.plan.turns))
    batch = (games, sample, credit.advantage, behaviour)

    def step(carry: tuple[Params, Any], problem_B: Any) -> tuple[tuple[Params, Any], jax.Array]:
        part = jax.tree.map(lambda rows: rows[problem_B], batch)
        gradient, entropy = jax.grad(_compute_loss, has_aux=True)(carry[0], setting, objective, *part)
        return _step(setting, carry[0], gradient, carry[1], lane.learning_rate), entropy

    carry = (state.params, state.optimiser)
    if setting.epochs * setting.minibatches == 1:
        carry, entropy = step(carry, slice(None))
    else:
        orders = [
            jax.random.permutation(jax.random.fold_in(key, epoch), setting.batch) for epoch in range(setting.epochs)
        ]
        problem_UB = jnp.stack(orders).reshape(setting.epochs * setting.minibatches, -1)
        carry, entropy_U = jax.lax.scan(step, carry, problem_UB)
        entropy = entropy_U.mean()
    return state._replace(params=carry[0], optimiser=carry[1]), entropy


def _compute_loss(  # noqa: PLR0913
    params: Params,
    setting: Setting,
    objective: Objective,
    games: Game,
    sample: Sample,
    advantage: tuple[jax.Array, ...],
    behaviour: tuple[jax.Array, ...],
) -> tuple[jax.Array, jax.Array]:
    """Sum over trained turns of the mean loss of the turn's messages; and the mean entropy at their contexts, nats."""
    loss, entropies = jnp.zeros(()), []
    for turn, is_on in enumerate(setting.trained):
        if not is_on:
            continue
        logp_PNT, is_drawn_PNT, logp_PNM = _speak_again(setting, params, games, sample, turn)
        slots = logp_PNT.shape[-1]
        is_drawn_RT = is_drawn_PNT.reshape(-1, slots)
        weight_RT = compute_weights(is_drawn_RT, objective.aggregation, objective.length or slots)
        weight_RT /= compute_total(weight_RT, objective.aggregation)
        spread_PNT = jnp.broadcast_to(advantage[turn][..., None], logp_PNT.shape)
        rows = (behaviour[turn].ravel(), spread_PNT.ravel(), None, jnp.zeros(()), weight_RT.ravel())
        terms, logp_B = TokenTerms(*rows), logp_PNT.ravel()
        if objective.level == "message":
            held = (jax.lax.stop_gradient(logp_B), is_drawn_RT.ravel())
            terms = terms._replace(message=compute_message_loss(objective, *held, terms, len(is_drawn_RT)))
        loss += compute_token_figures(objective, logp_B, jnp.zeros_like(logp_B), terms)[0].sum()
        chance_PNM = jnp.exp(logp_PNM)
        entropies.append(-jnp.where(chance_PNM > 0, chance_PNM * logp_PNM, 0.0).sum(axis=-1).mean())
    return loss, jax.lax.stop_gradient(jnp.stack(entropies).mean())


def _speak_again(
    setting: Setting, params: Params, games: Game, sample: Sample, turn: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Log-probability of each token of a turn's messages, nats, and which there are, [P, N, T]; and of all messages.

    In unary the token in slot t says whether the message is t, given that it is none before: a message's tokens add up
    to its own log-probability.
    """
    logp_PNM = _log_softmax(_run_policy(setting, params, games, sample, turn))
    # Selected and not indexed: the gradient of a gather is a scatter, which is slow on CPU.
    is_message_PNM = jnp.arange(logp_PNM.shape[-1]) == sample.message[turn][..., None]
    logp_PN1 = jnp.where(is_message_PNM, logp_PNM, 0.0).sum(axis=-1, keepdims=True)
    if not setting.is_unary:
        return logp_PN1, jnp.ones_like(logp_PN1, bool), logp_PNM
    chance_PNM = jnp.exp(logp_PNM)
    columns = [chance_PNM[..., message] for message in range(chance_PNM.shape[-1])]
    rest_PNM = jnp.stack([*itertools.accumulate(reversed(columns))][::-1], axis=-1)  # of this message or a later one
    log_rest_PNM = jnp.log(jnp.where(rest_PNM > 0, rest_PNM, 1.0))
    after_PNM = jnp.concatenate([log_rest_PNM[..., 1:], log_rest_PNM[..., -1:]], axis=-1)
    is_drawn_PNM = jnp.arange(logp_PNM.shape[-1]) <= sample.message[turn][..., None]
    token_PNM = jnp.where(is_message_PNM, logp_PN1, after_PNM) - log_rest_PNM
    return jnp.where(is_drawn_PNM, token_PNM, 0.0), is_drawn_PNM, logp_PNM


def _log_softmax(logits_PNM: jax.Array) -> jax.Array:
    """Log-softmax, summed in the order of the messages.

    A reduction's order, and so its last bit, would depend on how many lanes run together; once a message is drawn
    differently for that, two runs are two runs.
    """
    shifted_PNM = logits_PNM - jax.lax.stop_gradient(logits_PNM.max(axis=-1, keepdims=True))
    exp_PNM = jnp.exp(shifted_PNM)
    total_PN = functools.reduce(operator.add, [exp_PNM[..., message] for message in range(exp_PNM.shape[-1])])
    return shifted_PNM - jnp.log(total_PN)[..., None]


def _compute_critic_loss(critic: Params, setting: Setting, games: Game, sample: Sample, credit: Credit) -> jax.Array:
    """Sum over trained turns of half the mean squared distance from the lambda-return."""
    loss = jnp.zeros(())
    for turn, is_on in enumerate(setting.trained):
        if is_on:
            value_PN = _run_policy(setting, critic, games, sample, turn)[..., 0]
            loss += 0.5 * jnp.mean((value_PN - credit.value[turn]) ** 2)
    return loss


def _run_policy(setting: Setting, params: Params, games: Game, sample: Sample, turn: int) -> jax.Array:
    """Outputs at the contexts of a turn's credited messages, [P, N, M]."""
    return jax.vmap(lambda game, prefix_NK: setting.policy.logits(params, game, turn, prefix_NK))(
        games, sample.prefix[turn]
    )


def _step(setting: Setting, params: Params, gradient: Params, state: Any, rate: jax.Array) -> tuple[Params, Any]:
    direction, state = setting.optimiser.update(gradient, state, params)
    return jax.tree.map(lambda leaf, change: leaf - rate * change, params, direction), state


def _measure(setting: Setting, world: _World, params: Params) -> jax.Array:
    """Mean expected return over the fixed set: exact, or of sampled episodes, the same draws at every measurement."""
    shape = setting.family.shape
    if setting.episodes == 0:
        oracle = jax.vmap(lambda game: compute_oracle(shape, game, setting.policy, params))(world.games)
        return oracle.value.mean()
    key, plan = jax.random.fold_in(world.key, _MEASUREMENTS), make_flat(setting.episodes, setting.plan.turns)
    sample = _sample(setting, plan, params, world.games, jnp.arange(setting.problems), key)
    # The expected return of each transcript: what one evaluator call of it returns would only add noise.
    mean_return = jax.vmap(lambda game, transcript_LK: compute_mean_return(shape, game, transcript_LK))
    return mean_return(world.games, sample.transcript_LK).mean()
