"""What one field of a run's config says against another, each complaint in one sentence: the path, expected and got."""

from __future__ import annotations

from c3jax.config.credit import make_plan
from c3jax.config.run import PolicyLoss, RunConfig, Turn, Visible, list_roles, slots_in, trained_roles
from c3jax.credit import methods, pairing, plans
from c3jax.learner.loss_table import find_loss
from c3jax.schema import ConfigError, show_value
from c3jax.tasks.environment import open_environments
from c3jax.tasks.sections import list_training_sets
from c3jax.tasks.task import find_task


def check_config(config: RunConfig) -> None:
    """Check a run's config across its fields. Raises ConfigError."""
    checks = (_check_task, _check_protocol, _check_credit, _check_critic, _check_learner, _check_batches)
    for check in (*checks, _check_environments, _check_model, _check_policy, _check_alarms):
        check(config)


def _check_task(config: RunConfig) -> None:
    task = config.task
    paths = [part.path for part in list_training_sets(task)]
    for index, path in enumerate(paths):
        if path in paths[:index]:
            raise ConfigError(f"task.path.{index}.path: expected a set that is not in the list yet, got {path!r} again")


def _check_protocol(config: RunConfig) -> None:
    turns = config.protocol.turns
    seen: set[str] = set()
    for index, turn in enumerate(turns):
        path, earlier = f"protocol.turns.{index}", [before.name for before in turns[:index]]
        if turn.name in ("question", *earlier):
            raise ConfigError(f"{path}.name: expected a name no other slot has, got {turn.name!r}")
        _check_speaker(turn, path, any(before.environment for before in turns[:index]))
        seen.update(earlier if turn.environment is not None else ())  # it is given them all
        for field, text in (("system", turn.system), ("user", turn.user)):
            try:
                slots = slots_in(text)
            except ValueError:
                raise ConfigError(
                    f"{path}.{field}: expected slots like {{question}}, {{{{ and }}}} for braces,"
                    f" got {show_value(text)}"
                ) from None
            for slot in slots:
                if slot != "question" and slot not in earlier:
                    raise ConfigError(
                        f"{path}.{field}: expected slots of the question or an earlier turn, got {{{slot}}}"
                    )
            seen.update(slots)
        _check_visible(turn, path)
    for index, turn in enumerate(turns[:-1]):
        if turn.name not in seen:
            raise ConfigError(
                f"protocol.turns.{index}: expected a later turn with the slot {{{turn.name}}}, got a message that"
                " no turn sees"
            )
    if "question" not in seen:
        raise ConfigError("protocol.turns: expected at least one turn with the slot {question}, got none")


def _check_visible(turn: Turn, path: str) -> None:
    if turn.visible.after is not None and turn.visible.tag is not None:
        raise ConfigError(f"{path}.visible: expected after or tag, got both")
    if turn.visible_tokens is not None and turn.visible_tokens > turn.max_tokens:
        raise ConfigError(
            f"{path}.visible_tokens: expected at most max_tokens ({turn.max_tokens}), got {turn.visible_tokens}"
        )


def _check_speaker(turn: Turn, path: str, has_environment: bool) -> None:
    if turn.unless_done and not has_environment:
        raise ConfigError(f"{path}.unless_done: expected an environment's turn before it, got none")
    for field, value in (("role", turn.role), ("user", turn.user)):
        if turn.environment is None and not value:
            raise ConfigError(f'{path}.{field}: expected some text, got ""')
    for field, value in (("role", turn.role), ("system", turn.system), ("user", turn.user)):
        if turn.environment is not None and value:
            raise ConfigError(f"{path}.{field}: expected none in an environment's turn, got {show_value(value)}")
    for field in ("thinking", "visible", "visible_tokens", "train_on"):
        if turn.environment is not None and getattr(turn, field) != Turn.model_fields[field].default:
            raise ConfigError(f"{path}.{field}: expected none in an environment's turn, where no model speaks, got one")


def _check_environments(config: RunConfig) -> None:
    """What a turn that an environment answers asks of the rest."""
    credit, turns = config.credit, config.protocol.turns
    answered = [index for index, turn in enumerate(turns) if turn.environment is not None]
    if not answered:
        return
    where = f"protocol.turns.{answered[0]}.environment"
    if methods.needs_critic(credit.method):
        raise ConfigError(f"{where}: expected a method without a critic, which values every turn, got {credit.method}")
    form = methods.find_trainable(credit.method).sampling
    if form in ("masked", "coalition"):
        raise ConfigError(
            f"{where}: expected a method that lets later turns speak again where a message is taken out (what the"
            f" environment said would not follow from what it is shown), got {credit.method}"
        )
    if credit.fan_out == "auto":
        raise ConfigError(f"{where}: expected credit.fan_out in numbers, got 'auto'")
    for index in answered:
        if credit.fan_out is not None and credit.fan_out[index] != 1:
            raise ConfigError(
                f"credit.fan_out: expected 1 for turn {turns[index].name}, which an environment answers, got"
                f" {credit.fan_out[index]}"
            )
    sections = [turn.environment for turn in turns]
    of_task = any(section is not None and section.kind == "task" for section in sections)
    open_environments(sections, find_task(config.task.kind).environment if of_task else None, None)


def _check_batches(config: RunConfig) -> None:
    size = config.rollout_problems
    if size is not None and config.problems % size:
        raise ConfigError(f"rollout_problems: expected a divisor of problems ({config.problems}), got {size}")
    names = ["heldout", *(suite.name for suite in config.evaluation.suites)]
    for index, name in enumerate(names[1:]):
        if name in names[: index + 1]:
            raise ConfigError(f"evaluation.suites.{index}.name: expected a name no other suite has, got {name!r}")


def _check_credit(config: RunConfig) -> None:
    credit, turns = config.credit, config.protocol.turns
    methods.find_trainable(credit.method)
    trained = tuple(turn.is_trained for turn in turns)
    if not any(trained):
        raise ConfigError("protocol.turns: expected at least one trained turn, got none")
    try:
        pairing.check_normalise(credit.method, credit.normalise)
    except ValueError as error:
        raise ConfigError(f"credit.normalise: {error}") from None
    if credit.fan_out == "auto":
        _check_auto(config, trained)
        return
    plan = make_plan(credit, len(turns))
    if credit.fan_out is not None and len(credit.fan_out) != len(turns):
        raise ConfigError(f"credit.fan_out: expected {len(turns)} numbers, one a turn, got {list(credit.fan_out)}")
    calls = plans.count_calls(plan)
    if credit.fan_out is not None and calls != credit.budget:
        raise ConfigError(
            f"credit.fan_out: expected a product of {credit.budget} (credit.budget), got {list(credit.fan_out)}"
            f" with product {calls}"
        )
    if calls != credit.budget:
        raise ConfigError(
            f"credit.budget: expected {calls}, the evaluator calls that method {credit.method} makes a problem with"
            f" these draws, got {credit.budget}"
        )
    try:
        pairing.check_pairing(credit.method, plan, trained)
    except ValueError as error:
        raise ConfigError(f"credit.{'fan_out' if credit.draws is None else 'draws'}: {error}") from None


def _check_auto(config: RunConfig, trained: tuple[bool, ...]) -> None:
    credit, tokens = config.credit, tuple(float(turn.max_tokens) for turn in config.protocol.turns)
    try:
        pairing.check_auto(credit.method, trained, credit.budget, credit.auto.unit, tokens)
    except ValueError as error:
        raise ConfigError(f"credit.fan_out: {error}") from None


def _check_critic(config: RunConfig) -> None:
    method, critic = config.credit.method, config.credit.critic
    has_critic = methods.needs_critic(method)
    if has_critic and critic is None:
        raise ConfigError(f"credit.critic: expected a section for method {method}, which learns a critic, got none")
    if critic is not None and not has_critic:
        raise ConfigError(f"credit.critic: expected none for method {method}, which learns no critic, got a section")
    if critic is not None and critic.critic_only_steps >= config.steps:
        raise ConfigError(
            f"credit.critic.critic_only_steps: expected fewer than steps ({config.steps}), so that the policy learns"
            f" too, got {critic.critic_only_steps}"
        )


def _check_learner(config: RunConfig) -> None:
    learner = config.learner
    for path, sampling in (("sampling", config.sampling), ("evaluation.sampling", config.evaluation.sampling)):
        if sampling is not None and sampling.top_p < 1.0 and sampling.top_k == 0:
            raise ConfigError(
                f"{path}.top_p: expected 1 while {path}.top_k is 0 (the tokens left to draw from are recorded, so"
                f" their number must be bounded), got {sampling.top_p}"
            )
    if config.problems % learner.minibatches:
        raise ConfigError(
            f"learner.minibatches: expected a divisor of problems ({config.problems}), got {learner.minibatches}"
        )
    minibatch = config.problems // learner.minibatches
    if learner.micro_problems is not None and minibatch % learner.micro_problems:
        raise ConfigError(
            f"learner.micro_problems: expected a divisor of the {minibatch} problems of a minibatch,"
            f" got {learner.micro_problems}"
        )
    if learner.zero_signal == "resample" and methods.needs_critic(config.credit.method):
        raise ConfigError(
            f"learner.zero_signal: expected keep or skip for method {config.credit.method}, whose critic has a say in"
            " which trees have a signal, got 'resample'"
        )
    check_loss(learner.loss)
    if learner.kl.target is not None and learner.kl.coefficient == 0.0:
        raise ConfigError(
            "learner.kl.coefficient: expected more than 0 to begin with while learner.kl.target is given (the"
            " coefficient is steered by factors), got 0"
        )
    if config.checkpoint.best == "sampled_accuracy" and config.evaluation.samples == 0:
        raise ConfigError(
            "checkpoint.best: expected a metric that is measured, got 'sampled_accuracy' with no evaluation.samples"
        )


def check_loss(loss: PolicyLoss, path: str = "learner.loss") -> None:
    """Check what one field of a loss says against another. Raises ConfigError.

    Args:
      loss: section of the config.
      path: where it is.
    """
    row = find_loss(loss.kind, f"{path}.kind")
    for name, value, own in (
        ("clip_low", loss.clip_low, row.clip_low),
        ("clip_high", loss.clip_high, row.clip_high),
    ):
        if value is not None and own is None:
            raise ConfigError(f"{path}.{name}: expected none for {loss.kind}, which clips nothing, got {value:g}")
    if loss.dual_clip is not None:
        if row.formula != "clipped":
            raise ConfigError(
                f"{path}.dual_clip: expected none for {loss.kind}, whose formula is not the clipped one, got"
                f" {loss.dual_clip:g}"
            )
        high = row.clip_high if loss.clip_high is None else loss.clip_high
        if high is not None and loss.dual_clip <= 1.0 + high:
            raise ConfigError(
                f"{path}.dual_clip: expected more than 1 + {path}.clip_high ({1.0 + high:g}), got {loss.dual_clip:g}"
            )
    if loss.length is not None and (loss.aggregation or row.aggregation) != "constant":
        raise ConfigError(f"{path}.length: expected none unless {path}.aggregation is constant, got {loss.length}")


def _check_model(config: RunConfig) -> None:
    model = config.model
    if model.kind == "random":
        # Rotary positions turn a head's features in pairs.
        if model.width % (2 * model.heads) or model.heads % model.key_value_heads:
            raise ConfigError(
                "model.heads: expected an even number of the width's features a head, and key_value_heads that divides"
                f" heads, got width {model.width}, heads {model.heads}, key_value_heads {model.key_value_heads}"
            )
    kind = config.task.kind
    # A task is loaded only for what is asked of it, since some bring large libraries.
    if model.kind == "random" and find_task(kind).vocabulary is None:
        raise ConfigError(
            f"model.kind: expected a pretrained model for task {kind}, which has no vocabulary of its own, got 'random'"
        )
    if config.imitation is not None and find_task(kind).demonstrate is None:
        raise ConfigError(f"imitation: expected none for task {kind}, which demonstrates nothing, got a section")
    if config.imitation is not None and any(turn.visible != Visible() for turn in config.protocol.turns):
        raise ConfigError(
            "imitation: expected none while a turn's messages are read in part (demonstrations have no markers), got a"
            " section"
        )
    if config.imitation is not None and model.kind != "random":
        raise ConfigError(f"imitation: expected none for model {model.kind}, which is trained already, got a section")


def _check_policy(config: RunConfig) -> None:
    policy = config.policy
    if policy.kind == "adapters" and config.model.kind == "random":
        raise ConfigError(
            "policy.kind: expected shared or per_role for model random (adapters correct a network that has been"
            " trained before, and leave it as it is), got 'adapters'"
        )
    if len(set(policy.targets)) < len(policy.targets):
        raise ConfigError(f"policy.targets: expected each projection once, got {list(policy.targets)}")
    untrained = set(list_roles(config.protocol)) - set(trained_roles(config.protocol))
    if policy.kind == "per_role" and config.imitation is not None and untrained:
        raise ConfigError(
            f"policy.kind: expected shared while role {min(untrained)!r} has no trained turn and imitation warms every"
            " role up (what per_role does not train comes from the model as loaded), got 'per_role'"
        )


def _check_alarms(config: RunConfig) -> None:
    bounds = config.alarms.model_dump()
    for index, name in enumerate(config.alarms.stop):
        if bounds[name] is None:
            raise ConfigError(
                f"alarms.stop.{index}: expected an alarm that is on, got {name!r} with alarms.{name} null"
            )
