"""The training run. `train` reads top to bottom: problems, trees, returns, credit and update, records, checkpoint."""

from __future__ import annotations

import functools
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from c3jax import evaluate, processes
from c3jax.config.credit import make_plan
from c3jax.config.run import RunConfig, uses_reference
from c3jax.credit.plans import Branch, Plan, list_branches
from c3jax.learner import state as state_lib
from c3jax.learner import update as update_lib
from c3jax.learner.adapt import choose_fan_out
from c3jax.learner.figures import (
    TurnCounts,
    count_turns,
    describe_cost,
    describe_credit,
    describe_sets,
    describe_state,
    describe_turns,
    describe_verdicts,
)
from c3jax.learner.state import TrainState, pack_state, unpack_state
from c3jax.models import sharding
from c3jax.models.policy import Weights
from c3jax.report.page import save_run_report
from c3jax.rewards import Evaluator, compute_disagreement
from c3jax.rollout import address, tree
from c3jax.rollout.acting import Acting, Start, count_answers, describe_observed, draw_trees
from c3jax.rollout.branches import PlanDraws, collect_verdicts, draw_plan, join_credited
from c3jax.rollout.collect import fetch_messages
from c3jax.run import records
from c3jax.run.alarms import Watch, describe_bad
from c3jax.run.checkpoint import CheckpointStore
from c3jax.run.directory import describe_extension, open_run_dir, record_start
from c3jax.run.interrupt import catch_signals
from c3jax.run.metrics import Progress, announce, read_metrics
from c3jax.run.trackers import TrackedRun, find_openers, open_trackers
from c3jax.setup.imitation import warm_up
from c3jax.setup.memory import print_fit
from c3jax.setup.problems import print_left_out
from c3jax.setup.team import (
    Setup,
    choose_problems,
    choose_slots,
    decode_messages,
    encode_null,
    find_sets,
    make_questions,
    make_setup,
    open_environments,
    write_turns,
)
from c3jax.types import Credit, FanOut, Messages, Params, Problem, Rollout

DONE, FAILED = 0, 1  # exit codes; interrupt.py and alarms.py have those of a run that was stopped


class _Compiled(NamedTuple):
    """The jitted functions of a run, and the processes that score."""

    sample_tree: tree.TreeSampler
    update: update_lib.Update
    null: tuple[int, ...]  # tokens of the message that stands for one that is taken out
    evaluations: tuple[Callable[..., evaluate.Result], ...]
    evaluator: Evaluator
    acting: Acting | None


class _Begun(NamedTuple):
    """A step of which the device draws the first trees."""

    step: int
    plan: Plan
    indices: list[int]  # of its problems
    draw: Callable[..., tuple[Rollout, tree.RolloutCounts]]  # of trained weights, and then as DrawBranch
    first: tuple[Rollout, tree.RolloutCounts]
    answered: int  # calls of environments in it
    seconds: float


class _Open(NamedTuple):
    """What a run has open while it takes its steps."""

    path: Path
    console: Console
    store: CheckpointStore
    write: Callable[[int, dict[str, Any]], None]  # a step's figures
    ask_to_stop: Callable[..., int]  # of all processes: an exit code, 0 where none was told to stop
    watch: Watch


def train(
    config: RunConfig,
    path: Path,
    command: Sequence[str] = (),
    console: Console | None = None,
    is_contained: bool = True,
    accepts_changes: bool = False,
) -> int:
    """Run, or resume, the training run in a directory.

    Args:
      config: of the run.
      path: the run directory; where it holds the run already, that is resumed.
      command: the command line, for the manifest.
      console: where progress is printed; None prints to the terminal.
      is_contained: False runs the programs of a code task without their sandbox; the manifest says so.
      accepts_changes: resume a run whose problems, model or modules are not what they were; the manifest says so.

    Returns:
      The exit code: DONE, FAILED, or STOPPED by Ctrl-C, TERMINATED by SIGTERM, or ALARMED by an alarm of the config.

    Raises:
      UserError: before anything is written, where the config, its files or the directory cannot be used.
    """
    console = console or Console(highlight=False, markup=False)
    with ExitStack() as stack:
        interrupts = stack.enter_context(catch_signals(lambda line: console.print(line, highlight=False)))
        openers = find_openers(config.trackers)
        setup = make_setup(config, is_contained, is_training=True, uses_mesh=True)
        step = make_step(setup)
        _print_problems(setup, console)
        mesh = None if setup.mesh is None else dict(setup.mesh.shape)
        facts = {"data": setup.data, "inputs": setup.inputs, "unsafe_no_sandbox": not is_contained, "mesh": mesh}
        interrupts.check()
        opening = open_run_dir(path, config, list(command), facts=facts, accepts_changes=accepts_changes)
        run_dir = stack.enter_context(opening)
        interrupts.is_gentle = True
        if run_dir.extended is not None:
            console.print(describe_extension(config, run_dir.extended), soft_wrap=True, highlight=False)
        run = run_dir.path
        assert setup.memory is not None  # it is one to train
        print_fit(setup.memory, console)
        store = stack.enter_context(CheckpointStore(run, config.checkpoint.keep, console.print))
        evaluator = stack.enter_context(Evaluator(setup.task.grade, config.workers, setup.task.timeout_s))
        acting = stack.enter_context(open_environments(setup))
        compiled = _Compiled(*step, evaluate.make_evaluations(setup, acting), evaluator, acting)

        def ask_to_stop(code: int = 0) -> int:
            return max(processes.share(interrupts.code or code))

        started = _start(setup, store, console, ask_to_stop, run, acting)
        if started is None:
            return ask_to_stop()
        state, fan_out, first = started
        record_start(run_dir, first)
        tracked = TrackedRun(run, first, config.model_dump(mode="json"))
        write = stack.enter_context(open_trackers(openers, tracked, console.print))
        if first == 0:
            _evaluate_once(setup, compiled, state, run / "eval" / "before.json", 0, console)
        opened = _Open(run, console, store, write, ask_to_stop, Watch(config, read_metrics(run), console))
        state, code = _take_steps(setup, compiled, opened, state, fan_out, first)
        if code == DONE:
            _evaluate_once(setup, compiled, state, run / "eval" / "after.json", config.steps, console)
        if processes.is_first():
            report = save_run_report(run, console)
            if code == DONE:
                evaluate.print_summary(console, run, report)
    return code


def _take_steps(
    setup: Setup, compiled: _Compiled, opened: _Open, state: TrainState, fan_out: FanOut | None, first: int
) -> tuple[TrainState, int]:
    """The steps that are left, each written, shown and now and then saved. Gives the last state and an exit code."""
    config, run = setup.config, opened.path
    reference = _find_reference(setup, opened.store, state, first)
    begun: _Begun | None = None
    with Progress(opened.console, config.steps, first) as progress:
        for step in range(first, config.steps):
            if begun is None:
                fan_out = choose_fan_out(config.credit, setup.plans, state.adaptive, step, fan_out)
                plan = make_plan(config.credit, len(setup.plans), fan_out)
                begun = _begin_step(setup, compiled, state.sampler_params, plan, step)
            state, row, begun = _run_step(setup, compiled, state, begun, reference, run)
            done = step + 1
            if config.evaluation.every and done % config.evaluation.every == 0 and done < config.steps:
                row |= _evaluate(setup, compiled, state, run / "eval" / f"step-{done}.json", done)
            row |= opened.watch.check(step, row) if processes.is_first() else {}
            opened.write(step, row)
            progress.show(step, row)
            if max(row["bad_in_row"], row.get("critic_bad_in_row", 0)) >= config.learner.max_bad_updates:
                opened.console.print(describe_bad(row, done, run), style="red", soft_wrap=True)
                return state, FAILED
            code = opened.ask_to_stop(opened.watch.code)
            if done == config.steps or code or done % config.checkpoint.every == 0:
                opened.store.save(done, pack_state(state, fan_out), evaluate.find_best_value(config, run, row))
            if code and done < config.steps:
                opened.console.print(f"stopped after step {done}; the same command resumes it", highlight=False)
                return state, code
    return state, DONE


def _begin_step(setup: Setup, compiled: _Compiled, params: Params, plan: Plan, step: int) -> _Begun:
    """Choose a step's problems and begin to draw their first trees; what the device does is not waited for."""
    began, config = time.perf_counter(), setup.config
    indices = choose_problems(setup, step)
    problems, slots = [setup.train.problems[index] for index in indices], choose_slots(setup, setup.train, indices)
    key = jax.random.fold_in(address.make_stream(config.seed, address.TRAIN), step)
    answered_before = count_answers(compiled.acting)

    def draw(
        params: Params, numbers: list[int], branch: Branch, given: tuple[Messages, ...]
    ) -> tuple[Rollout, tree.RolloutCounts]:
        question, problem_P = make_questions(setup, setup.train, [indices[number] for number in numbers], slots)
        asked = ([problems[number] for number in numbers], question, key, problem_P, branch.fan_out)
        weights = Weights(params, setup.weights.frozen)
        return draw_trees(compiled.sample_tree, compiled.acting, weights, *asked, Start(given, branch.first))

    first = draw(params, list(range(config.rollout_problems or config.problems)), list_branches(plan)[0], ())
    answered = count_answers(compiled.acting) - answered_before
    return _Begun(step, plan, indices, draw, first, answered, time.perf_counter() - began)


def _run_step(
    setup: Setup, compiled: _Compiled, state: TrainState, begun: _Begun, reference: Params | None, run: Path
) -> tuple[TrainState, dict[str, Any], _Begun | None]:
    """One step: trees, evaluator calls, credit and update. Returns the next state, the metrics row and, where trees are
    drawn a step ahead, the next step's.
    """
    began, config, evaluator = time.perf_counter(), setup.config, compiled.evaluator
    step, plan, mesh = begun.step, begun.plan, setup.mesh
    calls_before, answered_before = evaluator.calls, count_answers(compiled.acting)
    problems = [setup.train.problems[index] for index in begun.indices]
    draw = functools.partial(begun.draw, state.sampler_params)
    decode = functools.partial(decode_messages, setup.tokenizer)
    size = config.rollout_problems or config.problems
    asked = draw_plan(draw, plan, problems, size, decode, evaluator, mesh, compiled.null, begun.first)
    answered, ahead = begun.answered + count_answers(compiled.acting) - answered_before, None
    drawing_s = begun.seconds + time.perf_counter() - began - asked.waited_s
    if config.async_steps and step + 1 < config.steps:
        # Before the update gives up these weights: the device draws while the graders are at this step's answers.
        ahead = _begin_step(setup, compiled, state.params, plan, step + 1)
    drawn = collect_verdicts(plan, asked, evaluator, mesh)
    return_PL: Any = np.array([verdict.score for verdict in drawn.verdicts], np.float32).reshape(config.problems, -1)
    sampled = time.perf_counter()

    order_key = jax.random.fold_in(address.make_stream(config.seed, address.ORDER), step)
    rollouts = tree.trim_messages(join_credited(mesh, plan, drawn), config.shapes.lengths)
    counts = count_turns(rollouts, plan, mesh)
    placed_PL = sharding.shard_problems(mesh, return_PL)
    update, frozen = compiled.update, setup.weights.frozen
    state, credit, figures = update(state, frozen, reference, rollouts, placed_PL, order_key, plan)
    row = {name: float(value) for name, value in sorted(figures.items())}
    updated = time.perf_counter()

    if config.record_every and step % config.record_every == 0:
        made = _record_trees(setup, plan, step, problems, drawn, credit)
        if processes.is_first():
            records.save_records(run / "rollouts" / f"step-{step:06d}.jsonl", made)
    row |= _describe_step(setup, drawn, credit, counts, return_PL, begun.indices) | describe_state(state)
    if compiled.acting is not None:
        row |= describe_observed([part for calls in drawn.branches for part in calls])
        row["environment_calls"] = sum(processes.share(answered))
    row |= {
        "traces": compiled.sample_tree._cache_size() + update._cache_size(),
        **({"fan_out": list(plan.fan_out)} if config.credit.fan_out == "auto" else {}),
        **({"staleness": min(step, config.async_steps)} if config.async_steps else {}),
        "evaluator_calls": sum(processes.share(evaluator.calls - calls_before)),
        "seconds_rollout": drawing_s,
        "seconds_score": drawn.waited_s,
        "seconds_update": updated - sampled,
        "tokens_per_second": row["generated_tokens"] / drawing_s,
    }
    return state, row, ahead


def _describe_step(
    setup: Setup, drawn: PlanDraws, credit: Credit, counts: TurnCounts, return_PL: np.ndarray, indices: list[int]
) -> dict[str, Any]:
    """Figures of a step's trees and their credit."""
    row = describe_verdicts(drawn.verdicts) | describe_cost(setup.plans, drawn.counts)
    row |= describe_credit(setup.plans, credit) | describe_turns(setup.plans, counts)
    row |= describe_sets(setup.mixture.names, np.array(find_sets(setup, indices)), return_PL)
    if any(verdict.second is not None for verdict in drawn.verdicts):
        row["grader_disagreement"] = compute_disagreement(drawn.verdicts)
    return row


def _record_trees(
    setup: Setup, plan: Plan, step: int, problems: Sequence[Problem], drawn: PlanDraws, credit: Credit
) -> list[dict[str, Any]]:
    """The records of a step's trees, of all processes: each makes those of the problems that it grades."""
    own, written = drawn.own, []
    for calls in drawn.branches:
        parts = [fetch_messages(setup.mesh, part.rollout, part.kept) for part in calls]
        turns: tuple[Messages, ...] = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
        written.append(write_turns(setup, turns))
    credit = jax.tree.map(lambda value_PN: np.asarray(value_PN)[own], credit)
    of_own = [problems[number] for number in own]
    best = [best_P[own] for best_P in drawn.best]
    made = records.make_records(setup.config, plan, step, of_own, written, credit, drawn.own_verdicts, best)
    return processes.share_rows(own, made)


def _evaluate(setup: Setup, compiled: _Compiled, state: TrainState, path: Path, step: int) -> dict[str, float]:
    """Evaluate on the held-out problems, write the file and give the accuracies for the metrics row."""
    heldout, weights = evaluate.make_heldout(setup), Weights(state.params, setup.weights.frozen)
    results = [run_profile(weights, compiled.evaluator, heldout) for run_profile in compiled.evaluations]
    if processes.is_first():
        evaluate.save_results(path, step, results)
    return {f"{result.profile}_accuracy": result.accuracy for result in results}


def _evaluate_once(
    setup: Setup, compiled: _Compiled, state: TrainState, path: Path, step: int, console: Console
) -> None:
    if not processes.ask_first(path.exists):
        with announce(console, f"evaluating {path.stem} training"):
            _evaluate(setup, compiled, state, path, step)


def make_step(setup: Setup) -> tuple[tree.TreeSampler, update_lib.Update, tuple[int, ...]]:
    """What draws a step's trees, what learns from them, and the null message."""
    config, policy, plans = setup.config, setup.policy, setup.plans
    return (
        tree.make_tree_sampler(
            policy, plans, config.sampling, setup.tokenizer.stop_tokens, config.shapes.batches, setup.mesh
        ),
        update_lib.make_update(
            config.credit, config.learner, config.sampling, config.steps, policy, plans, mesh=setup.mesh
        ),
        encode_null(setup),
    )


def _start(
    setup: Setup,
    store: CheckpointStore,
    console: Console,
    ask_to_stop: Callable[[], int],
    run: Path,
    acting: Acting | None,
) -> tuple[TrainState, FanOut | None, int] | None:
    """The state to go on from, the fan-out in force and the step: of the newest checkpoint, or of the warmed-up policy,
    saved as step 0.
    """

    def init(weights: Weights) -> TrainState:
        config = setup.config
        made = (setup.policy, weights, setup.plans, config.credit, config.learner, config.async_steps > 0)
        return state_lib.init_state(*made)

    shapes = jax.eval_shape(lambda weights: pack_state(init(weights), None), setup.weights)
    found = store.restore_newest(sharding.list_shapes(setup.mesh, shapes))
    if found is not None:
        step, saved = found
        console.print(f"resumed after step {step}", highlight=False)
        return *unpack_state(saved), step
    trained = warm_up(setup, console, ask_to_stop, run / "imitation", acting)
    if trained is None:
        return None
    state = sharding.shard_state(setup.mesh, init(setup.weights._replace(trained=trained)))
    store.save(0, pack_state(state, None), None)
    store.wait()
    if processes.is_first():
        shutil.rmtree(run / "imitation", ignore_errors=True)  # it is in checkpoint 0
    return state, None, 0


def _find_reference(setup: Setup, store: CheckpointStore, state: TrainState, first: int) -> Params | None:
    """What stands for the trained weights in the policy at the start of the run, where the loss compares with it."""
    if not uses_reference(setup.config.learner):
        return None
    if setup.policy.kind == "adapters":
        return {}  # it is the frozen network, without an adapter
    if first == 0:
        return jax.tree.map(jnp.copy, state.params)  # the state's own buffers are given up by the first update
    shapes = sharding.list_shapes(setup.mesh, jax.eval_shape(lambda: state.params))
    return store.restore_step(0, shapes, part="params")


def _print_problems(setup: Setup, console: Console) -> None:
    """The devices, and what of the problems is not used."""
    count, mesh = jax.device_count(), setup.mesh
    if mesh is not None:
        laid = ", ".join(f"{name} {size}" for name, size in mesh.shape.items())
        console.print(f"{mesh.size} devices: {laid}", highlight=False)
    if count > (used := 1 if mesh is None else mesh.size):
        console.print(f"of the {count} devices here this run uses {used}", highlight=False)
    print_left_out(console, setup.overlap, {"training": setup.train, "held-out": setup.heldout}, setup.config.protocol)
