"""Using a team outside training: evaluate it on the held-out problems, or put a question to it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.text import Text

from c3jax import evaluate
from c3jax.config.file import dump_config
from c3jax.evaluate import evaluate_suites
from c3jax.models.policy import Weights
from c3jax.protocol import FIRST_TURN_LEVEL, QUESTION_LEVEL, Literal, TurnPlan, context_tokens
from c3jax.rollout import address, context, sampling, tree
from c3jax.rollout.acting import answer_turn, outline_answers
from c3jax.run.checkpoint import restore_step
from c3jax.run.directory import check_contents, check_inputs
from c3jax.run.files import explain_failure, save_whole
from c3jax.run.interrupt import catch_signals
from c3jax.run.records import Written
from c3jax.run.source import SourceError, open_source
from c3jax.setup.team import Setup, make_setup, open_environments, write_turns
from c3jax.tasks.task import find_task
from c3jax.types import Frame, Messages, Problem, Rollout, UserError

_SLOTS = 64
# Fields that a run may be evaluated with otherwise, and it is still the run's evaluation.
_NOT_OF_RESULTS = ("evaluation", "workers", "grade_timeout", "mesh", "shapes")


def evaluate_source(
    source: str,
    checkpoint: str,
    overrides: dict[str, Any],
    console: Console,
    as_json: bool,
    is_contained: bool = True,
    accepting: Sequence[str] = (),
    kept_in: Path | None = None,
) -> int:
    """Evaluate a run's policy, or a config's model before training, on the held-out problems and the config's suites.

    A run keeps the results, in eval/suites-STEP.json, unless fields that its results depend on are not its own.

    Args:
      source: a run directory or a config.
      checkpoint: of a run.
      overrides: fields of the config by their dotted paths.
      console: to print on.
      as_json: whether JSON is printed in place of a table.
      is_contained: whether programs run in their sandbox.
      accepting: the command line, where a run is used whose inputs changed; else nothing.
      kept_in: where the results of a config are kept as a run's are, with the config; None keeps none.

    Returns:
      The exit code: 1 where a suite is missing.

    Raises:
      UserError: as `load_source`; and where a run is to be kept elsewhere, or a config where something else is, or the
        disk does not take it.
    """
    if kept_in is not None and Path(source).is_dir():
        raise SourceError(f"--out: expected it with a config alone (a run keeps its results itself), got {kept_in}")
    setup, weights, step = load_source(source, checkpoint, overrides, is_contained, accepting)
    kinds = {setup.config.task.kind, *(suite.kind for suite in setup.config.evaluation.suites)}
    if not is_contained and all(find_task(kind).bind is None for kind in kinds):
        raise SourceError(f"--unsafe-no-sandbox: expected a task or suite that runs programs, got {sorted(kinds)}")
    if kept_in is not None:
        with contextlib.suppress(OSError):  # told where they are kept
            check_contents(kept_in, setup.config)
    results = evaluate_suites(setup, weights)
    foreign = [name for name in overrides if name.partition(".")[0] not in _NOT_OF_RESULTS]
    kept_in = Path(source) if Path(source).is_dir() and not foreign else kept_in
    if kept_in is not None:
        _keep(kept_in, setup, step, results)
    if as_json:
        body = {"source": source, "step": step, "unsafe_no_sandbox": not is_contained}
        print(json.dumps(body | {"results": [result._asdict() for result in results]}))
    else:
        evaluate.print_results(console, results, f"{source}, step {step}")
        if foreign and Path(source).is_dir():
            console.print(
                f"Not kept in {source}: with another {', '.join(foreign)} they are not its own.", soft_wrap=True
            )
    return int(any(isinstance(result, evaluate.Missing) for result in results))


def _keep(folder: Path, setup: Setup, step: int, results: list[evaluate.Result | evaluate.Missing]) -> None:
    with explain_failure(f"{folder}: the results cannot be kept", SourceError):
        if not (folder / "config.yaml").exists():
            save_whole(folder / "config.yaml", dump_config(setup.config))
        evaluate.save_results(folder / "eval" / f"suites-{step}.json", step, results)


def ask_source(
    source: str,
    question: str,
    checkpoint: str,
    overrides: dict[str, Any],
    console: Console,
    is_sampled: bool,
    as_json: bool,
    accepting: Sequence[str] = (),
) -> int:
    """Put one question to a team and print every role's message, or the transcript as JSON.

    Args:
      source, checkpoint, overrides, accepting: as for `load_source`.
      question: any text.
      console: to print on.
      is_sampled: sample as in training, not greedily.
      as_json: print the transcript as JSON, with every context.

    Returns:
      0, the exit code.

    Raises:
      UserError: as `load_source` and `prepare_question`.
    """
    begun: list[Future[Asked]] = []

    def begin(outline: Setup) -> None:
        begun.append(pool.submit(prepare_question, outline, question, is_sampled, pool))

    # What draws is compiled, or read from the cache, while the weights are read, and of later turns while the first is
    # drawn.
    with catch_signals(console.print), ThreadPoolExecutor(3) as pool:
        # No program is run here.
        setup, weights, step = load_source(source, checkpoint, overrides, False, accepting, begin=begin)
        written, contexts = answer(setup, weights, begun[0].result())
    texts = [turn.texts[0] for turn in written]
    visible = [None if turn.visible is None else turn.visible[0] for turn in written]
    # Nothing is graded here: the answer that would be judged is read out of the last message, or its visible part.
    answer_read = setup.task.read_answer(texts[-1] if visible[-1] is None else visible[-1])
    if as_json:
        turns = [
            {"turn": plan.name, "role": plan.role, "context": shown, "message": text}
            | ({} if part is None else {"visible": part})
            for plan, shown, text, part in zip(setup.plans, contexts, texts, visible, strict=True)
        ]
        body = {"source": source, "step": step, "question": question, "turns": turns, "answer": answer_read}
        print(json.dumps(body, ensure_ascii=False, indent=2))
        return 0
    for plan, text, part in zip(setup.plans, texts, visible, strict=True):
        console.print(Text.assemble((plan.name, "bold"), "" if plan.role == plan.name else f" ({plan.role})"))
        console.print(text.strip() or "(nothing)", markup=False, soft_wrap=True)
        if part is not None:
            console.print(Text("read by others:", style="dim"))
            console.print(part.strip() or "(nothing)", markup=False, soft_wrap=True)
        console.print()
    shown = answer_read if answer_read is not None else "(none could be read)"
    console.print(Text.assemble(("answer", "bold"), f" {shown}"), soft_wrap=True)
    return 0


class Asked(NamedTuple):
    """A question as a team's samplers are given it."""

    draws: list[Future[Any] | None]  # of each turn what draws it, compiled; None where an environment answers
    question: str
    tokens: list[int]  # of the question
    arguments: tuple[Frame, jax.Array, jax.Array]  # its frame [1, S], the key and the problem's index [1]


def prepare_question(setup: Setup, question: str, is_sampled: bool, pool: ThreadPoolExecutor) -> Asked:
    """Begin to compile what answers a question, a program a turn.

    Args:
      setup: whose weights may be shapes.
      question: any text.
      is_sampled: sample as in training, not greedily.
      pool: in which it is compiled.

    Raises:
      UserError: the question is no text of the tokenizer's, or too long for the model.
    """
    tokens = _encode_question(setup, question)
    chosen = setup.config.sampling if is_sampled else sampling.GREEDY
    # Slots in steps: what is compiled for one question serves others of about its length.
    frame = context.make_frame([tokens], -(-len(tokens) // _SLOTS) * _SLOTS)
    arguments = (frame, address.make_stream(setup.config.seed, address.ASK), jnp.zeros(1, jnp.int32))
    draws: list[Future[Any] | None] = []
    given: tuple[Messages, ...] = ()  # shapes
    for turn, plan in enumerate(setup.plans):
        if plan.is_environment:
            given, draws = (*given, outline_answers(1, plan.max_tokens)), [*draws, None]
            continue
        plans = setup.plans[: turn + 1]  # it draws what is not given, up to the last
        draw = tree.make_tree_sampler(setup.policy, plans, chosen, setup.tokenizer.stop_tokens)
        lowered = draw.lower(setup.weights, *arguments, (1,) * len(plans), given)
        draws.append(pool.submit(lowered.compile))
        given = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), lowered.out_info[0].turns)
    return Asked(draws, question, tokens, arguments)


def answer(setup: Setup, weights: Weights, asked: Asked) -> tuple[list[Written], list[str]]:
    """One message a turn, and the context of each.

    Args:
      setup: of the team.
      weights: that draw.
      asked: from `prepare_question`.
    """
    problem = Problem(0, "asked", asked.question, "")  # nobody knows its answer
    frame, key, _ = asked.arguments
    turns: tuple[Messages, ...] = ()
    with open_environments(setup) as acting:
        for draw in asked.draws:
            if draw is not None:
                turns = draw.result()(weights, *asked.arguments, turns)[0].turns
            else:
                assert acting is not None  # it is there for these turns
                turns = (*turns, answer_turn(acting, [problem], key, Rollout(frame, turns), 1))
    turns = jax.device_get(turns)
    messages = [turn.tokens_NT[0][turn.content_NT[0]].tolist() for turn in turns]
    return write_turns(setup, turns), [
        setup.tokenizer.decode(_list_context(plan, asked.tokens, messages)) for plan in setup.plans
    ]


def load_source(
    source: str,
    checkpoint: str,
    overrides: dict[str, Any],
    is_contained: bool = False,
    accepting: Sequence[str] = (),
    drawing: int | None = None,
    begin: Callable[[Setup], None] | None = None,
) -> tuple[Setup, Weights, int]:
    """A team and its weights: of a run's checkpoint, or as a config's model is before training.

    Args:
      source: a run directory or a config.
      checkpoint: of a run: newest, best, or a step.
      overrides: fields of the config by their dotted paths.
      is_contained: False lets programs of a code task run without their sandbox.
      accepting: the command line, where a run is used whose inputs changed, which its manifest then says; else nothing.
      drawing: of the checkpoint before this step the weights are those that drew its trees: with async_steps those of
        the step before.
      begin: as for `make_setup`.

    Returns:
      The set-up, the weights, and the checkpoint's step, 0 for a config.

    Raises:
      UserError: source, checkpoint or an override cannot be used, or what the run reads from outside is another.
    """
    opened = open_source(source, checkpoint, overrides)
    setup = make_setup(opened.config, is_contained, is_hashed=opened.run is not None, begin=begin)
    if opened.run is None:
        return setup, setup.weights, 0
    check_inputs(opened.run, setup.inputs, opened.step, accepting)
    part = "behind" if opened.config.async_steps and opened.step == drawing else "params"
    trained = restore_step(opened.run, opened.step, jax.eval_shape(lambda: setup.weights.trained), part)
    return setup, setup.weights._replace(trained=trained), opened.step


def _encode_question(setup: Setup, question: str) -> list[int]:
    try:
        tokens = setup.tokenizer.encode_text(question)
    except UserError as error:
        raise SourceError(f"question: {error}") from None
    longest = max(context_tokens(setup.plans, len(tokens)))
    if longest > setup.spec.context:
        raise SourceError(
            f"question: expected one that leaves every context and message within the model's {setup.spec.context}"
            f" tokens, got {len(tokens)} tokens and so up to {longest}"
        )
    return tokens


def _list_context(plan: TurnPlan, question: list[int], messages: list[list[int]]) -> list[int]:
    """The tokens that a turn's message was conditioned on."""
    tokens: list[int] = []
    for piece in (piece for frame in plan.frames for piece in frame.pieces):
        if isinstance(piece, Literal):
            tokens += piece.tokens
        else:
            tokens += question if piece.level == QUESTION_LEVEL else messages[piece.level - FIRST_TURN_LEVEL]
    return tokens
