"""Diagnose: groups drawn at a run's contexts once and for all, in budgets said before, and the tables made of them."""

import io
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

from c3jax import train
from c3jax.cli import main
from c3jax.commands import contexts as contexts_of
from c3jax.commands import diagnose, gradients, groups, redraw
from c3jax.commands.ask import load_source
from c3jax.config import file as config_file
from c3jax.credit.methods import METHODS
from c3jax.rewards import Evaluator
from c3jax.run.records import load_trees
from c3jax.setup.team import choose_problems
from c3jax.types import UserError
from tests.tiny_run import TREE

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = {
    **{"steps": 1, "problems": 2, "workers": 1, "learner.minibatches": 1, "credit.fan_out": [2, 2], "credit.budget": 4},
    **{"imitation.updates": 2, "imitation.problems": 4, "evaluation.problems": 2, "evaluation.samples": 0},
    **{"model.layers": 1, "model.width": 16, "model.mlp_width": 16, "trackers": ["jsonl"]},
}
HIDDEN = """
import random
from c3jax.tasks.environment import Environment, Observation

def begin(problem, seed):
    return random.Random(seed).randint(1, 8)

def reply(hidden, messages):
    return Observation(str(hidden), reward=hidden / 16, done=len(messages[-1].text) % 2 == 1)

HIDDEN = Environment(begin, reply)
"""
SIZES = groups.Sizes(alternatives=2, continuations=1, held_out=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    path = tmp_path_factory.mktemp("diagnose") / "run"
    config = config_file.load_config(CONFIGS / "quickstart.yaml", SMALL)
    assert train.train(config, path, console=Console(file=io.StringIO())) == 0
    yield path
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def team(run):
    setup, weights, _ = load_source(str(run), "newest", {})
    with Evaluator(setup.task.grade, 1, setup.task.timeout_s) as evaluator:
        yield redraw.Team(setup, weights, redraw.make_sampler(setup), evaluator)


def complete(team, path, contexts, origin: contexts_of.Origin = "recorded", nulls=("", "0")):
    """Groups of some contexts, the evaluator calls announced, and those made."""
    announced, before = [], team.evaluator.calls
    request = groups.Request(origin, len(contexts), SIZES, nulls)
    found = groups.complete_groups(team, path, 1, contexts, request, announced.append)
    return found, announced[0], team.evaluator.calls - before


def test_what_is_drawn_is_kept_and_never_drawn_again(run, team, tmp_path):
    path = tmp_path / "groups" / "kept.jsonl"
    contexts = contexts_of.list_contexts(team, run, 1, groups.Request("recorded", 2, SIZES, ()))
    # A problem has 2 alternatives x 3 continuations and 2 alternatives of the last turn; a null message 2 and 1.
    whole, announced, made = complete(team, path, contexts)
    assert announced == made == 2 * (2 * 3 + 2 + 2 * (2 + 1))
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 2 * 3
    assert complete(team, path, contexts)[1:] == (0, 0)
    changed = [contexts[0]._replace(question="another")]
    assert complete(team, tmp_path / "other.jsonl", changed)[1] == complete(team, path, changed)[1] == announced / 2
    path.write_bytes(b"".join(lines))
    # Killed while a line was written: what is whole is kept, and the rest drawn again as it was.
    path.write_bytes(b"".join(lines[:4]) + lines[4][:30])
    again, announced, made = complete(team, path, contexts)
    assert announced == made == 2 * (2 + 1) and again == whole
    assert sorted(path.read_bytes().splitlines(keepends=True)) == sorted(lines)


def test_groups_are_drawn_alike_in_any_batch_and_at_the_recorded_contexts(run, team, tmp_path):
    contexts = contexts_of.list_contexts(team, run, 1, groups.Request("recorded", 2, SIZES, ()))
    trees = {tree.record["problem"]: tree for tree in load_trees(run)}
    assert [context.name for context in contexts] == list(trees)
    together, *_ = complete(team, tmp_path / "together.jsonl", contexts)
    apart, *_ = complete(team, tmp_path / "apart.jsonl", contexts[1:])
    assert apart == together[1:]
    for group in together:
        (spoken,) = group.alternatives["transcript"]
        assert spoken["token_ids"] == trees[group.alternatives["problem"]].nodes[0][0]["token_ids"]
        first, last = group.alternatives["turns"]
        assert [np.shape(first[name]) for name in ("messages", "next", "returns")] == [(2,), (2, 3), (2, 3)]
        assert [np.shape(last[name]) for name in ("messages", "next", "returns")] == [(2,), (2, 0), (2, 1)]
        assert [len(turn["returns"]) for turn in group.nulls["0"]["turns"]] == [2, 1]
        answer = next(each.answer for each in team.setup.train.problems if each.id == group.alternatives["problem"])
        assert last["returns"] == [[float(given == answer)] for (given,) in last["answers"]]


def test_fresh_contexts_are_the_policys_own(run, team, tmp_path):
    request = groups.Request("fresh", 3, SIZES, ())
    contexts = contexts_of.list_contexts(team, run, 1, request)
    assert len({context.name for context in contexts}) == 3 and all(each.step == 1 for each in contexts)
    found, announced, made = complete(team, tmp_path / "fresh.jsonl", contexts, "fresh", ("",))
    assert announced == made == 3 * (2 * 3 + 2 + 2 + 1)
    for group in found:
        assert group.alternatives["transcript"] == group.nulls[""]["transcript"]
        assert group.alternatives["transcript"][0]["turn"] == "reasoner"


def test_the_tables_fit_a_terminal_and_the_figures_a_file(run, tmp_path):
    shown, out = io.StringIO(), tmp_path / "figures.json"
    console = Console(file=shown, width=80)
    request = groups.Request("recorded", 64, SIZES, ("0",))
    assert diagnose.diagnose_run(run, "newest", request, ["c3", "difference"], out, console) == 0
    text = shown.getvalue()
    assert max(map(len, text.rstrip().splitlines()[:-1])) <= 80
    assert "2 problems: 28 evaluator calls to make" in text and "28 evaluator calls made" in text
    for title in ("reasoner: fidelity of credit", "actor: spread of credit", "influence, nats", "V(h) - Q(h, null)"):
        assert title in text
    assert "actor: fidelity" not in text  # it would be 1 by construction
    body = json.loads(out.read_text())
    assert (body["checkpoint"], body["contexts"], body["problems"], body["evaluator_calls"]) == (1, "recorded", 2, 28)
    assert body["null_messages"][0] == {"turn": "reasoner", "null_message": "empty"} | body["null_messages"][0]
    methods = [row["method"] for row in body["credit"] if row["turn"] == "reasoner"]
    assert methods == ["c3", "difference empty", "difference placeholder"]
    assert all(row["corrected"] is None for row in body["credit"] if row["turn"] == "actor")
    assert diagnose.diagnose_run(run, "newest", request, ["c3"], None, console) == 0
    assert "2 problems: 0 evaluator calls to make" in shown.getvalue()


def test_credit_of_a_group_is_the_formulas():
    """Two contexts of three alternatives with two continuations: leave-one-out, own mean, single returns, a null's."""
    return_CNM = np.array([[[1, 0], [1, 1], [0, 0]], [[0, 0], [0, 0], [0, 0]]], float)
    null_CM = np.array([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    expected = {
        "c3": [[0.5 - 0.5, 1 - 0.25, 0 - 0.75], [0, 0, 0]],
        "no_loo": [[0, 0.5, -0.5], [0, 0, 0]],
        "rloo": [[1 - 0.5, 1 - 0.5, 0 - 1], [0, 0, 0]],
        "reinforce": [[1, 1, 0], [0, 0, 0]],
        "difference": [[0, 1, 0], [-1, -1, 0]],
    }
    for method, advantage_CN in expected.items():
        np.testing.assert_allclose(diagnose.credit_groups(method, return_CNM, null_CM), advantage_CN, atol=2e-5)
    for method in diagnose.list_held():
        assert diagnose.credit_groups(method, return_CNM, null_CM).shape == (2, 3)
        assert diagnose.credit_groups(method, return_CNM[:, :, :1], null_CM[:, :1]).shape == (2, 3)
    assert {name for name in METHODS if METHODS[name].carries == "nothing"} > set(diagnose.list_held()) > set(expected)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--groups", "0"], "--groups: expected at least 1, got 0"),
        (["--alternatives", "1"], "--alternatives: expected at least 2, got 1"),
        (["--continuations", "0"], "--continuations: expected at least 1, got 0"),
        (["--held-out", "0"], "--held-out: expected at least 1, got 0"),
        (["--gradients", "-1"], "--gradients: expected at least 0, got -1"),
    ],
)
def test_sizes_that_cannot_be_are_one_sentence(run, words, sentence, capsys):
    assert main(["diagnose", str(run), *words]) == 2
    assert capsys.readouterr().err == f"c3jax: {sentence}\n"


@pytest.mark.parametrize(
    ("checkpoint", "methods", "sentence"),
    [
        ("newest", ["mappo"], "--methods: mappo carries critic; expected some of c3, no_loo"),
        ("newest", ["vine_ppo"], "--methods: vine_ppo needs auxiliary sampling; expected some of c3"),
        ("newest", ["none"], "--methods: expected"),
        ("7", [], "--checkpoint: expected newest, best or one of"),
    ],
)
def test_what_cannot_be_diagnosed_is_one_sentence(run, checkpoint, methods, sentence):
    request = groups.Request("recorded", 2, SIZES, ())
    with pytest.raises(UserError, match=f"^{sentence}"):
        diagnose.diagnose_run(run, checkpoint, request, methods, None, Console(file=io.StringIO()))


def test_null_messages_are_the_empty_one_and_words_that_a_turn_could_write(team):
    assert diagnose.choose_nulls(team.setup, ()) == ("",)
    assert diagnose.choose_nulls(team.setup, ("0",)) == ("", "0")
    with pytest.raises(UserError, match="^--placeholder: expected at most 4 tokens, as the shortest turn may write"):
        diagnose.choose_nulls(team.setup, ("0 0 0 0 0",))
    with pytest.raises(UserError, match="^--placeholder: .*mumble"):
        diagnose.choose_nulls(team.setup, ("mumble",))


def test_a_source_without_groups_is_one_sentence(run, team, tmp_path, capsys):
    assert main(["diagnose", str(tmp_path / "none")]) == 2
    assert "expected a run directory, got none" in capsys.readouterr().err
    with pytest.raises(UserError, match="expected recorded trees, found none; --contexts fresh needs none"):
        contexts_of.list_contexts(team, tmp_path, 1, groups.Request("recorded", 2, SIZES, ()))
    with pytest.raises(UserError, match="^--json /proc/none/x: cannot be written"):
        diagnose.save_figures(Path("/proc/none/x"), {}, {})
    path = tmp_path / "kept.jsonl"
    path.write_text('{"problem": "x"}\n')
    with pytest.raises(UserError, match="kept.jsonl:1: expected a recorded group, got something else"):
        groups.load_lines(path)


def test_gradients_are_measured_once_and_only_where_credit_is_of_the_step_alone(team, tmp_path):
    credit = team.setup.config.credit.model_copy(update={"method": "shrunk"})
    carrying = team.setup._replace(config=team.setup.config.model_copy(update={"credit": credit}))
    assert gradients.find_plan(carrying) == "the credit of shrunk carries components from step to step"
    plan, announced = gradients.find_plan(team.setup), []
    problems = [team.setup.train.problems[number] for number in choose_problems(team.setup, 1)]
    body = {"problems": [[one.id, one.question] for one in problems], "parts": ["reasoner"]}
    body |= {"square_RP": [[1.0, 3.0]], "along_RP": [[1.0, 1.0]]}
    path = tmp_path / "diagnose" / "gradients-1-1.json"
    path.parent.mkdir()
    path.write_text(json.dumps(body))
    kept = gradients.measure_gradients(team, tmp_path, plan, 1, 2, lambda *told: announced.append(told))
    assert announced == [(2, 0)]
    # Of the problems' gradients a = 1 and b = (0, sqrt 3) or the like, (1 + 3) / 2 is mean |g|^2 and G . G is 1.
    (row,) = gradients.describe_noise(kept, 0.95)
    assert (row["signal"], row["noise"], row["noise_scale"]) == pytest.approx((0.0, 2.0, np.nan), nan_ok=True)
    assert not row["is_resolved"]
    unresolved = "reasoner: the noise scale is not resolved, for ‖G‖² may be 0"
    assert gradients.explain_unresolved(row | {"at_least": np.nan}) == unresolved
    assert gradients.explain_unresolved(row | {"at_least": 276.3}) == f"{unresolved}; it is 280 problems or more"
    path.write_text("[]")
    with pytest.raises(UserError, match="gradients-1-1.json: expected kept gradients, got something else"):
        gradients.measure_gradients(team, tmp_path, plan, 1, 2, lambda *told: None)


def test_where_environments_answer_groups_are_of_what_policies_say(tmp_path, capsys):
    """A number hidden by the episode's seed: what is drawn meets the one that the recorded transcript met."""
    (tmp_path / "hidden.py").write_text(HIDDEN)
    observed = {"environment": {"kind": f"{tmp_path / 'hidden.py'}:HIDDEN"}, "max_tokens": 1}
    turns = [
        TREE["protocol"]["turns"][0],
        {"name": "reply", **observed},
        {**TREE["protocol"]["turns"][1], "user": "{plan} {reply} answer :", "unless_done": True, "trained": False},
        {"name": "end", **observed, "unless_done": True},
    ]
    protocol = TREE["protocol"] | {"turns": turns}
    credit = TREE["credit"] | {"fan_out": [2, 1, 2, 1]}
    model = TREE["model"] | {"context": 32}
    fields = {"steps": 2, "record_every": 1, "protocol": protocol, "credit": credit, "model": model}
    run = tmp_path / "run"
    config = config_file.parse_config(TREE | fields | {"trackers": ["jsonl"], "evaluation": {"samples": 0}})
    assert train.train(config, run, console=Console(file=io.StringIO())) == 0
    recorded = {(tree.record["problem"], tree.record["step"]): tree for tree in load_trees(run)}
    problems = len({name for name, _ in recorded})
    words = ["--alternatives", "3", "--continuations", "2", "--held-out", "1", "--gradients", "3"]
    assert main(["diagnose", str(run), *words, "--json", str(tmp_path / "figures.json")]) == 0
    # Two decisions: of a problem 3 alternatives x 4 continuations and 3 of the last; of the empty message 3 and 1.
    budget, shown = problems * (3 * 4 + 3 + 3 + 1), capsys.readouterr().out
    assert f"\n{problems} problems: {budget} evaluator calls to make" in f"\n{shown}"
    # For the gradients of three problems two steps of two are drawn, with four leaves each.
    assert "gradients of 4 problems: 16 evaluator calls to make" in shown
    assert f"{budget + 16} evaluator calls made" in shown
    kept = [json.loads(line) for line in next((run / "diagnose").glob("*.jsonl")).read_bytes().splitlines()]
    assert {line["step"] for line in kept} == {0, 1}  # in calls of their own, for episodes are addressed by the step
    over = 0
    for line in kept:
        said = line["transcript"][1]
        hidden = int(said["text"])
        assert (said["role"], said["reward"], said["token_ids"] != []) == ("environment", hidden / 16, True)
        assert hidden == int(recorded[line["problem"], line["step"]].nodes[1][0]["text"])
        plan, answer = line["turns"]
        assert (plan["turn"], answer["turn"]) == ("plan", "answer")
        assert (plan["past"], plan["is_over"]) == (0, False)
        assert (answer["past"], answer["is_over"]) == (hidden / 16, said["done"])
        over += answer["is_over"]
        # The second reply is not given where the first has ended the episode; a verdict is 0 or 1.
        replies = 1 if answer["is_over"] else 2
        assert set(np.ravel(answer["returns"]) - replies * hidden / 16) <= {0.0, 1.0}
        assert set(np.ravel(plan["returns"])) <= {k * hidden / 16 + right for k in (1, 2) for right in (0, 1)}
        if line["null"] is None:
            assert np.shape(plan["returns"]) == (3, 4) and np.shape(answer["returns"]) == (3, 1)
    assert 0 < over < len(kept)
    body = json.loads((tmp_path / "figures.json").read_text())
    (row,) = body["gradients"]  # one role is trained
    assert (row["role"], row["problems"]) == ("planner", 4) and row["noise"] >= 0
    assert "gradients from problem to problem: tr Σ, and ‖G‖²" in shown
    assert {row["turn"] for row in body["messages"]} == {"plan", "answer"}
