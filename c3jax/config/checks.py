"""What one field of a run's config says against another, each complaint in one sentence: the path, expected and got."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from c3jax.config.credit import make_plan
from c3jax.config.run import PolicyLoss, RunConfig, Turn, Visible, list_roles, slots_in, trained_roles
from c3jax.credit import methods, pairing, plans
from c3jax.learner.loss_table import find_loss
from c3jax.schema import ConfigError, expect, show_value
from c3jax.tasks.environment import open_environments
from c3jax.tasks.sections import list_training_sets
from c3jax.tasks.task import find_task


def check_config(config: RunConfig) -> None:
    """Check a run's config across its fields. Raises ConfigError."""
    checks = (
        _check_task,
        _check_protocol,
        _check_credit,
        _check_answers,
        _check_critic,
        _check_learner,
        _check_batches,
    )
    for check in (*checks, _check_environments, _check_model, _check_policy, _check_alarms):
        check(config)


def _check_task(config: RunConfig) -> None:
    paths = [part.path for part in list_training_sets(config.task)]
    for index, path in enumerate(paths):
        is_new = path not in paths[:index]
        expect(is_new, f"task.path.{index}.path", "a set that is not in the list yet", f"{path!r} again")


def _check_protocol(config: RunConfig) -> None:
    turns = config.protocol.turns
    seen: set[str] = set()
    for index, turn in enumerate(turns):
        path, earlier = f"protocol.turns.{index}", [before.name for before in turns[:index]]
        is_new = turn.name not in ("question", *earlier)
        expect(is_new, f"{path}.name", "a name no other slot has", repr(turn.name))
        _check_speaker(turn, path, any(before.environment for before in turns[:index]))
        seen.update(earlier if turn.environment is not None else ())  # it is given them all
        for field, text in (("system", turn.system), ("user", turn.user)):
            seen.update(_read_slots(f"{path}.{field}", text, earlier))
        _check_visible(turn, path)
    for index, turn in enumerate(turns[:-1]):
        wanted = f"a later turn with the slot {{{turn.name}}}"
        expect(turn.name in seen, f"protocol.turns.{index}", wanted, "a message that no turn sees")
    expect("question" in seen, "protocol.turns", "at least one turn with the slot {question}", "none")


def _read_slots(path: str, text: str, earlier: Sequence[str]) -> list[str]:
    try:
        slots = slots_in(text)
    except ValueError:
        wanted = "slots like {question}, {{ and }} for braces"
        raise ConfigError(f"{path}: expected {wanted}, got {show_value(text)}") from None
    for slot in slots:
        expect(slot in ("question", *earlier), path, "slots of the question or an earlier turn", f"{{{slot}}}")
    return slots


def _check_visible(turn: Turn, path: str) -> None:
    expect(turn.visible.after is None or turn.visible.tag is None, f"{path}.visible", "after or tag", "both")
    is_within = turn.visible_tokens is None or turn.visible_tokens <= turn.max_tokens
    expect(is_within, f"{path}.visible_tokens", f"at most max_tokens ({turn.max_tokens})", turn.visible_tokens)


def _check_speaker(turn: Turn, path: str, has_environment: bool) -> None:
    is_led = has_environment or not turn.unless_done
    expect(is_led, f"{path}.unless_done", "an environment's turn before it", "none")
    if turn.environment is None:
        for field, value in (("role", turn.role), ("user", turn.user)):
            expect(bool(value), f"{path}.{field}", "some text", '""')
        return
    for field, value in (("role", turn.role), ("system", turn.system), ("user", turn.user)):
        expect(not value, f"{path}.{field}", "none in an environment's turn", show_value(value))
    for field in ("thinking", "visible", "visible_tokens", "train_on"):
        is_default = getattr(turn, field) == Turn.model_fields[field].default
        expect(is_default, f"{path}.{field}", "none in an environment's turn, where no model speaks", "one")


def _check_environments(config: RunConfig) -> None:
    """What a turn that an environment answers asks of the rest."""
    credit, turns = config.credit, config.protocol.turns
    answered = [index for index, turn in enumerate(turns) if turn.environment is not None]
    if not answered:
        return
    where = f"protocol.turns.{answered[0]}.environment"
    method = methods.find_trainable(credit.method)
    why = "its scores are of returns in [0, 1], and an environment may pay on the way"
    expect(method.critic != "action_value", where, f"a method without a critic of messages ({why})", credit.method)
    expect(
        method.sampling not in ("masked", "coalition"),
        where,
        "a method that lets later turns speak again where a message is taken out (what the environment said would not"
        " follow from what it is shown)",
        credit.method,
    )
    expect(credit.fan_out != "auto", where, "credit.fan_out in numbers", "'auto'")
    for index in answered:
        fan = 1 if credit.fan_out is None else credit.fan_out[index]
        wanted = f"1 for turn {turns[index].name}, which an environment answers"
        expect(fan == 1, "credit.fan_out", wanted, fan)
    sections = [turn.environment for turn in turns]
    of_task = any(section is not None and section.kind == "task" for section in sections)
    open_environments(sections, find_task(config.task.kind).environment if of_task else None, None)


def _check_batches(config: RunConfig) -> None:
    problems, size = config.problems, config.rollout_problems
    is_even = size is None or problems % size == 0
    expect(is_even, "rollout_problems", f"a divisor of problems ({problems})", size)
    if config.async_steps:
        kind, path = config.learner.loss.kind, "async_steps"
        why = "0 where credit.fan_out is auto, chosen by the returns of the step before"
        expect(config.credit.fan_out != "auto", path, why, 1)
        why = f"0 for the loss {kind}, which has no ratio that corrects for older weights"
        expect(find_loss(kind).formula != "reinforce", path, why, 1)
        why = "0 with learner.zero_signal resample or a curriculum, which wait for the returns of the step before"
        is_waiting = config.learner.zero_signal == "resample" or config.curriculum is not None
        expect(not is_waiting, path, why, 1)
    else:
        why = "none without async_steps 1, for one half would wait for the other"
        expect(config.mesh.rollout is None, "mesh.rollout", why, "a section")
    names = ["heldout", *(suite.name for suite in config.evaluation.suites)]
    for index, name in enumerate(names[1:]):
        is_new = name not in names[: index + 1]
        expect(is_new, f"evaluation.suites.{index}.name", "a name no other suite has", repr(name))


def _check_credit(config: RunConfig) -> None:
    credit, turns = config.credit, config.protocol.turns
    methods.find_trainable(credit.method)
    trained = tuple(turn.is_trained for turn in turns)
    expect(any(trained), "protocol.turns", "at least one trained turn", "none")
    with _at("credit.normalise"):
        pairing.check_normalise(credit.method, credit.normalise)
    if credit.fan_out == "auto":
        tokens = tuple(float(turn.max_tokens) for turn in turns)
        with _at("credit.fan_out"):
            pairing.check_auto(credit.method, trained, credit.budget, credit.auto.unit, tokens)
        return
    plan = make_plan(credit, len(turns))
    calls = plans.count_calls(plan)
    if credit.fan_out is not None:
        fan_out = list(credit.fan_out)
        expect(len(fan_out) == len(turns), "credit.fan_out", f"{len(turns)} numbers, one a turn", fan_out)
        wanted = f"a product of {credit.budget} (credit.budget)"
        expect(calls == credit.budget, "credit.fan_out", wanted, f"{fan_out} with product {calls}")
    made = f"{calls}, the evaluator calls that method {credit.method} makes a problem with these draws"
    expect(calls == credit.budget, "credit.budget", made, credit.budget)
    with _at(f"credit.{'fan_out' if credit.draws is None else 'draws'}"):
        pairing.check_pairing(credit.method, plan, trained)


@contextmanager
def _at(path: str) -> Iterator[None]:
    """Say of a complaint that names no field which one it is of."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None


def _check_answers(config: RunConfig) -> None:
    method, kind = config.credit.method, config.task.kind
    if methods.find_trainable(method).reads != "likelihoods":
        return
    wanted = f"a method that reads no right answers for task {kind}, which has none as text"
    expect(find_task(kind).write_answer is not None, "credit.method", wanted, method)
    is_spoken = all(turn.environment is None for turn in config.protocol.turns)
    wanted = "a method that reads no right answers where an environment answers a turn"
    expect(is_spoken, "credit.method", wanted, method)


def _check_critic(config: RunConfig) -> None:
    method, critic = config.credit.method, config.credit.critic
    if critic is None:
        is_fit = not pairing.needs_critic(method)
        expect(is_fit, "credit.critic", f"a section for method {method}, which learns a critic", "none")
        return
    is_fit = pairing.needs_critic(method)
    expect(is_fit, "credit.critic", f"none for method {method}, which learns no critic", "a section")
    expect(
        critic.critic_only_steps < config.steps,
        "credit.critic.critic_only_steps",
        f"fewer than steps ({config.steps}), so that the policy learns too",
        critic.critic_only_steps,
    )


def _check_learner(config: RunConfig) -> None:
    learner, problems = config.learner, config.problems
    for path, sampling in (("sampling", config.sampling), ("evaluation.sampling", config.evaluation.sampling)):
        if sampling is not None and sampling.top_k == 0:
            why = "the tokens left to draw from are recorded, so their number must be bounded"
            expect(sampling.top_p == 1.0, f"{path}.top_p", f"1 while {path}.top_k is 0 ({why})", sampling.top_p)
    is_even = problems % learner.minibatches == 0
    expect(is_even, "learner.minibatches", f"a divisor of problems ({problems})", learner.minibatches)
    minibatch, micro = problems // learner.minibatches, learner.micro_problems
    is_even = micro is None or minibatch % micro == 0
    expect(is_even, "learner.micro_problems", f"a divisor of the {minibatch} problems of a minibatch", micro)
    critic = f"keep or skip for method {config.credit.method}, whose critic has a say in which trees have a signal"
    is_fit = learner.zero_signal != "resample" or not pairing.needs_critic(config.credit.method)
    expect(is_fit, "learner.zero_signal", critic, "'resample'")
    check_loss(learner.loss)
    expect(
        learner.kl.target is None or learner.kl.coefficient > 0.0,
        "learner.kl.coefficient",
        "more than 0 to begin with while learner.kl.target is given (the coefficient is steered by factors)",
        0,
    )
    is_measured = config.checkpoint.best != "sampled_accuracy" or config.evaluation.samples > 0
    got = "'sampled_accuracy' with no evaluation.samples"
    expect(is_measured, "checkpoint.best", "a metric that is measured", got)


def check_loss(loss: PolicyLoss, path: str = "learner.loss") -> None:
    """Check what one field of a loss says against another. Raises ConfigError.

    Args:
      loss: section of the config.
      path: where it is.
    """
    row = find_loss(loss.kind, f"{path}.kind")
    for name, value, own in (("clip_low", loss.clip_low, row.clip_low), ("clip_high", loss.clip_high, row.clip_high)):
        if value is not None:
            expect(own is not None, f"{path}.{name}", f"none for {loss.kind}, which clips nothing", f"{value:g}")
    if loss.dual_clip is not None:
        dual = f"{loss.dual_clip:g}"
        wanted = f"none for {loss.kind}, whose formula is not the clipped one"
        expect(row.formula == "clipped", f"{path}.dual_clip", wanted, dual)
        high = row.clip_high if loss.clip_high is None else loss.clip_high
        if high is not None:
            wanted = f"more than 1 + {path}.clip_high ({1.0 + high:g})"
            expect(loss.dual_clip > 1.0 + high, f"{path}.dual_clip", wanted, dual)
    is_used = loss.length is None or (loss.aggregation or row.aggregation) == "constant"
    expect(is_used, f"{path}.length", f"none unless {path}.aggregation is constant", loss.length)


def _check_model(config: RunConfig) -> None:
    model, kind = config.model, config.task.kind
    if model.kind == "random":
        # Rotary positions turn a head's features in pairs.
        expect(
            model.width % (2 * model.heads) == 0 and model.heads % model.key_value_heads == 0,
            "model.heads",
            "an even number of the width's features a head, and key_value_heads that divides heads",
            f"width {model.width}, heads {model.heads}, key_value_heads {model.key_value_heads}",
        )
        # A task is loaded only for what is asked of it, since some bring large libraries.
        wanted = f"a pretrained model for task {kind}, which has no vocabulary of its own"
        expect(find_task(kind).vocabulary is not None, "model.kind", wanted, "'random'")
    if config.imitation is None:
        return
    wanted = f"none for task {kind}, which demonstrates nothing"
    expect(find_task(kind).demonstrate is not None, "imitation", wanted, "a section")
    is_whole = all(turn.visible == Visible() for turn in config.protocol.turns)
    wanted = "none while a turn's messages are read in part (demonstrations have no markers)"
    expect(is_whole, "imitation", wanted, "a section")
    wanted = f"none for model {model.kind}, which is trained already"
    expect(model.kind == "random", "imitation", wanted, "a section")


def _check_policy(config: RunConfig) -> None:
    policy = config.policy
    expect(
        policy.kind != "adapters" or config.model.kind != "random",
        "policy.kind",
        "shared or per_role for model random (adapters correct a network that has been trained before, and leave it as"
        " it is)",
        "'adapters'",
    )
    is_once = len(set(policy.targets)) == len(policy.targets)
    expect(is_once, "policy.targets", "each projection once", list(policy.targets))
    untrained = set(list_roles(config.protocol)) - set(trained_roles(config.protocol))
    if policy.kind == "per_role" and config.imitation is not None and untrained:
        raise ConfigError(
            f"policy.kind: expected shared while role {min(untrained)!r} has no trained turn and imitation warms every"
            " role up (what per_role does not train comes from the model as loaded), got 'per_role'"
        )


def _check_alarms(config: RunConfig) -> None:
    bounds = config.alarms.model_dump()
    for index, name in enumerate(config.alarms.stop):
        got = f"{name!r} with alarms.{name} null"
        expect(bounds[name] is not None, f"alarms.stop.{index}", "an alarm that is on", got)
