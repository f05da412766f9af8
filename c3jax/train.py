"""The training run. `train` reads top to bottom: problems, trees, returns, credit and update, records, checkpoint."""

from __future__ import annotations

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
from c3jax.credit.methods import find_method
from c3jax.learner import state as state_lib
from c3jax.learner import update as update_lib
from c3jax.learner.adapt import Passes, choose_fan_out, init_passes, update_passes
from c3jax.learner.figures import (
    count_turns,
    describe_cost,
    describe_credit,
    describe_sets,
    describe_state,
    describe_turns,
    describe_verdicts,
)
from c3jax.learner.likelihood import ReadAnswers
from c3jax.learner.signal import make_judge
from c3jax.learner.state import TrainState, pack_state, unpack_state
from c3jax.models import sharding
from c3jax.models.policy import Weights
from c3jax.report.page import save_run_report
from c3jax.rewards import Evaluator, compute_disagreement
from c3jax.rollout import address, tree
from c3jax.rollout.acting import Acting, count_answers, describe_observed
from c3jax.rollout.resampling import Batch
from c3jax.run import records
from c3jax.run.alarms import Watch, describe_bad
from c3jax.run.checkpoint import CheckpointStore
from c3jax.run.directory import describe_extension, open_run_dir, record_start
from c3jax.run.interrupt import catch_signals
from c3jax.run.metrics import Progress, announce, read_metrics
from c3jax.run.trackers import TrackedRun, find_openers, open_trackers
from c3jax.setup.answers import make_reader
from c3jax.setup.drawing import Begun, Drawing, begin_step, draw_step, grade_step, make_drawer, record_step
from c3jax.setup.imitation import check_demonstrations, warm_up
from c3jax.setup.memory import print_fit
from c3jax.setup.problems import print_left_out
from c3jax.setup.team import Setup, encode_null, find_sets, make_setup, open_environments
from c3jax.types import FanOut, Params

DONE, FAILED = 0, 1  # exit codes; interrupt.py and alarms.py have those of a run that was stopped


class _Compiled(NamedTuple):
    """The jitted functions of a run, and the processes that score."""

    drawing: Drawing
    update: update_lib.Update
    evaluations: tuple[Callable[..., evaluate.Result], ...]


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
        check_demonstrations(setup)
        facts = {
            **{"data": setup.data, "inputs": setup.inputs, "unsafe_no_sandbox": not is_contained},
            "mesh": None if setup.mesh is None else dict(setup.mesh.shape),
            "rollout_mesh": None if setup.rollout_mesh is None else dict(setup.rollout_mesh.shape),
        }
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
        compiled = _compile(setup, step, evaluator, acting)

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
    begun: Begun | None = None
    with Progress(opened.console, config.steps, first) as progress:
        for step in range(first, config.steps):
            if begun is None:
                fan_out = choose_fan_out(config.credit, setup.plans, state.adaptive, step, fan_out)
                plan = make_plan(config.credit, len(setup.plans), fan_out)
                begun = begin_step(compiled.drawing, state.sampler_params, state.passes, plan, step)
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


def _run_step(
    setup: Setup, compiled: _Compiled, state: TrainState, begun: Begun, reference: Params | None, run: Path
) -> tuple[TrainState, dict[str, Any], Begun | None]:
    """One step: trees, evaluator calls, credit and update. Returns the next state, the metrics row and, where trees are
    drawn a step ahead, the next step's.
    """
    began, config, drawing = time.perf_counter(), setup.config, compiled.drawing
    step, plan, indices, ahead = begun.step, begun.plan, begun.indices, None
    calls_before, answered_before = drawing.evaluator.calls, count_answers(drawing.acting)
    asked = draw_step(drawing, state.sampler_params, begun)
    answered = begun.answered + count_answers(drawing.acting) - answered_before
    if config.async_steps and step + 1 < config.steps:
        # Before the update gives up these weights: the device draws while the graders are at this step's answers.
        ahead = begin_step(drawing, state.params, state.passes, plan, step + 1)
    batch = grade_step(drawing, state, begun, asked)
    sampled = time.perf_counter()
    waited_s = sum(drawn.waited_s for drawn in batch.draws)
    drawing_s = begun.seconds + sampled - began - waited_s - (0.0 if ahead is None else ahead.seconds)

    order_key = address.make_step_key(config.seed, address.ORDER, step)
    rollouts = tree.trim_messages(batch.rollouts, config.shapes.lengths)
    if setup.rollout_mesh is not None:
        rollouts = sharding.shard_problems(setup.mesh, rollouts)
    counts = count_turns(rollouts, plan, setup.mesh)
    placed_PL: Any = sharding.shard_problems(setup.mesh, batch.return_PL)
    passes = _learn_passes(config, state.passes, indices, batch)
    learning = (state._replace(passes=None), setup.weights.frozen, reference)
    state, credit, figures = compiled.update(*learning, rollouts, placed_PL, order_key, plan)
    state = state._replace(passes=passes)
    row = {name: float(value) for name, value in sorted(figures.items())}
    updated = time.perf_counter()

    if config.record_every and step % config.record_every == 0:
        made = record_step(drawing.setup, begun, batch, credit)
        if processes.is_first():
            records.save_records(run / "rollouts" / f"step-{step:06d}.jsonl", made)
    row |= _describe_draws(setup, indices, batch) | describe_cost(setup.plans, batch.counts)
    row |= describe_credit(setup.plans, credit) | describe_turns(setup.plans, counts) | describe_state(state)
    if drawing.acting is not None:
        row["environment_calls"] = sum(processes.share(answered))
    row |= {
        "traces": drawing.sample_tree._cache_size() + compiled.update._cache_size(),
        **({"fan_out": list(plan.fan_out)} if config.credit.fan_out == "auto" else {}),
        **({"staleness": min(step, config.async_steps)} if config.async_steps else {}),
        "evaluator_calls": sum(processes.share(drawing.evaluator.calls - calls_before)),
        "seconds_rollout": drawing_s,
        "seconds_score": waited_s,
        "seconds_update": updated - sampled,
        "tokens_per_second": row["generated_tokens"] / drawing_s,
    }
    return state, row, ahead


def _learn_passes(config: RunConfig, passes: Passes | None, indices: Sequence[int], batch: Batch) -> Passes | None:
    """The pass rates with a step in them; how many trees a call draws beyond those that were needed changes nothing."""
    if config.curriculum is None or passes is None:
        return None
    return update_passes(passes, config.curriculum.decay, indices[: len(batch.drawn_return_PL)], batch.drawn_return_PL)


def _describe_draws(setup: Setup, indices: Sequence[int], batch: Batch) -> dict[str, Any]:
    """What came of the step's own problems, and how many were drawn beside them."""
    own, problems = batch.draws[0], setup.config.problems
    row = describe_verdicts(own.verdicts)
    row |= describe_sets(setup.mixture.names, np.array(find_sets(setup, indices[:problems])), batch.own_return_PL)
    if any(verdict.second is not None for verdict in own.verdicts):
        row["grader_disagreement"] = compute_disagreement(own.verdicts)
    if any(plan.is_environment for plan in setup.plans):
        row |= describe_observed([part for calls in own.branches for part in calls])
    if batch.judged:
        drawn = sum(len(credit.value[0]) for credit in batch.judged)
        replaced = sum(number >= problems for number in batch.used)
        row |= {"further_problems": drawn - problems, "replaced_share": replaced / problems}
    return row


def _evaluate(setup: Setup, compiled: _Compiled, state: TrainState, path: Path, step: int) -> dict[str, float]:
    """Evaluate on the held-out problems, write the file and give the accuracies for the metrics row."""
    heldout, weights = evaluate.make_heldout(setup), Weights(state.params, setup.weights.frozen)
    results = [run_profile(weights, compiled.drawing.evaluator, heldout) for run_profile in compiled.evaluations]
    if processes.is_first():
        evaluate.save_results(path, step, results)
    return {f"{result.profile}_accuracy": result.accuracy for result in results}


def _evaluate_once(
    setup: Setup, compiled: _Compiled, state: TrainState, path: Path, step: int, console: Console
) -> None:
    if not processes.ask_first(path.exists):
        with announce(console, f"evaluating {path.stem} training"):
            _evaluate(setup, compiled, state, path, step)


_Step = tuple[tree.TreeSampler, update_lib.Update, tuple[int, ...], ReadAnswers | None]


def make_step(setup: Setup) -> _Step:
    """What draws a step's trees, what learns from them, the null message, and what reads right answers if any does."""
    config, policy, plans = setup.config, setup.policy, setup.plans
    reads, mesh = find_method(config.credit.method).reads, setup.drawing_mesh
    return (
        tree.make_tree_sampler(
            policy,
            plans,
            config.sampling,
            setup.tokenizer.stop_tokens,
            config.shapes.batches,
            mesh,
            reads == "gradients",
        ),
        update_lib.make_update(
            config.credit, config.learner, config.sampling, config.steps, policy, plans, mesh=setup.mesh
        ),
        encode_null(setup),
        make_reader(setup._replace(mesh=mesh)) if reads == "likelihoods" else None,
    )


def _compile(setup: Setup, step: _Step, evaluator: Evaluator, acting: Acting | None) -> _Compiled:
    sample_tree, update, null, read = step
    is_redrawn = setup.config.learner.zero_signal == "resample"
    judge = make_judge(setup.config.credit, setup.plans, setup.mesh) if is_redrawn else None
    drawer = make_drawer(setup)
    draws = None if acting is None else acting._replace(mesh=drawer.mesh)
    return _Compiled(
        Drawing(drawer, sample_tree, judge, null, evaluator, draws, read),
        update,
        tuple(evaluate.make_evaluation(setup, profile, acting) for profile in evaluate.list_profiles(setup)),
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
        passes = None if config.curriculum is None else init_passes(len(setup.train.problems))
        return state_lib.init_state(*made)._replace(passes=passes)

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
    count, used = jax.device_count(), 0
    for mesh, does in ((setup.mesh, ""), (setup.rollout_mesh, ", which draw trees")):
        if mesh is not None:
            laid = ", ".join(f"{name} {size}" for name, size in mesh.shape.items())
            console.print(f"{mesh.size} devices{does}: {laid}", highlight=False)
            used += mesh.size
    if count > (used := used or 1):
        console.print(f"of the {count} devices here this run uses {used}", highlight=False)
    print_left_out(console, setup.overlap, {"training": setup.train, "held-out": setup.heldout}, setup.config.protocol)
