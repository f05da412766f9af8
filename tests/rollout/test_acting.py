"""Turns that environments answer: what they are asked, what goes on from their answers, and what the credit is worth.

The team is the tiny policy's debate, a token a message of two that may be drawn, whose middle turn is an environment's.
So transcripts can be written down, and the exact credit is a sum over four of them.
"""

import builtins
import itertools
import os
import random
import signal
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from c3jax.config.run import Sampling
from c3jax.credit import plans
from c3jax.credit.apply import apply_credit
from c3jax.credit.matrix import make_credit_matrix
from c3jax.models.policy import Weights
from c3jax.protocol import Literal, TurnPlan
from c3jax.rewards import Evaluator
from c3jax.rollout.acting import Acting, Start, describe_observed, draw_trees, open_acting
from c3jax.rollout.collect import Drawn, add_rewards
from c3jax.rollout.tree import make_tree_sampler, take_problems
from c3jax.tasks.environment import Answer, Call, Environment, Message, Observation, Opened, run_call
from c3jax.types import ENVIRONMENT, Problem, Tokenizer, UserError, Verdict

SAMPLING, FAN_OUT = Sampling(temperature=3.0, top_k=2), (2, 1, 2)
WORDS = 40


def begin(problem: Problem, seed: int, ends: bool = False) -> dict:
    return {"seed": seed, "ends": ends, "heard": []}


def answer_number(state: dict, messages: Sequence[Message]) -> Observation:
    """Another token, and a reward, for each token."""
    state["heard"] += [int(message.text or -1) for message in messages if message.role != ENVIRONMENT]
    heard = state["heard"][-1]
    return Observation(str((7 * heard + 3 * len(state["heard"])) % WORDS), reward=heard % 3 / 4, done=state["ends"])


def misbehave(state: dict, messages: Sequence[Message]) -> Observation | str:
    """Whatever the message asks for."""
    what = messages[-1].text
    if what == "hang":
        time.sleep(60)
    if what == "leave":
        raise SystemExit(3)
    if what == "die":
        os._exit(1)
    if what == "fork":
        return f"{os.getpid() if os.fork() else os.getpid()}"
    if what == "shout":
        print("x" * 100_000)
        return "x" * 10_000_000
    if what == "number":
        return Observation("1", reward=float("nan"))
    return what if what != "object" else object()  # pyright: ignore[reportReturnType]


def forget(state: dict, messages: Sequence[Message]) -> str:
    """Another answer every time."""
    return str(time.time_ns() % WORDS)


def forget_wholly(state: dict, messages: Sequence[Message]) -> str:
    """An answer that was never given before."""
    return str(time.time_ns())


def encode(text: str) -> list[int]:
    if text and not text.isdecimal():
        raise UserError(f"no token {text}")
    return [int(text)] if text else []


TOKENIZER = Tokenizer(
    encode_prompt=lambda *_: [],
    encode_text=encode,
    decode=lambda tokens: " ".join(map(str, tokens)),
    render=lambda system, user: user,
    stop_tokens=(),
    vocab_size=WORDS,
    save=lambda folder: None,
    list_bytes=lambda: [],
    added_tokens={},
)


class InProcess:
    """An evaluator of environments without processes."""

    def __init__(self, *environments: Environment) -> None:
        self.environments, self.calls, self.asked = environments, 0, []

    def score(self, problems: Sequence[Problem], answers: Sequence[Call], budget: int):
        self.calls += len(answers)
        self.asked += answers
        found = zip(problems, answers, strict=True)
        return [Answer(run_call(self.environments, problem, call)) for problem, call in found]


def make_acting(turns: tuple[TurnPlan, ...], environment: Environment) -> Acting:
    answering = tuple(0 if plan.is_environment else None for plan in turns)
    return Acting(InProcess(environment), answering, turns, TOKENIZER, None)  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def turns(tiny):
    """The debate's plans of a token a message, the middle turn an environment's."""
    first, middle, last = (plan._replace(max_tokens=1) for plan in tiny.get_tree("debate").plans)
    middle = TurnPlan(middle.name, ENVIRONMENT, (), 1, is_trained=False, is_environment=True)
    return first, middle, last


@pytest.fixture(scope="module")
def sampler(tiny, turns):
    return make_tree_sampler(tiny.policy, turns, SAMPLING, tiny.stop_tokens)


def draw(tiny, sampler, acting, problems: int, start: Start | None = None, key: int = 7):
    question = take_problems(tiny.question, 4, jnp.zeros(problems, jnp.int32))
    listed = [Problem(number, str(number), "", "") for number in range(problems)]
    asked = (question, jax.random.key(key), jnp.arange(problems), FAN_OUT)
    return draw_trees(sampler, acting, Weights(tiny.params, {}), listed, *asked, start)


def read_tokens(messages) -> list[int]:
    kept = np.asarray(messages.content_NT)[:, 0]
    return np.where(kept, np.asarray(messages.tokens_NT)[:, 0], -1).tolist()


def list_support(tiny, turns, turn: int, heard: Sequence[int]) -> list[tuple[int, float]]:
    """Tokens that may be drawn after the question and earlier tokens (-1 for none), with their probabilities."""
    row: list[int] = []
    for piece in (piece for frame in turns[turn].frames for piece in frame.pieces):
        if isinstance(piece, Literal):
            row += piece.tokens
        elif piece.level == 1:
            row += tiny.questions[0]
        elif heard[piece.level - 2] >= 0:
            row.append(heard[piece.level - 2])
    logits_V = np.float64(tiny.run_flat(tiny.params, [row]).logits[0, len(row) - 1]) / SAMPLING.temperature
    support = np.argsort(-logits_V, kind="stable")[:2]
    mass = np.exp(logits_V[support] - logits_V.max())
    is_stop = [token in tiny.stop_tokens for token in support.tolist()]
    spoken = [-1 if stop else token for token, stop in zip(support.tolist(), is_stop, strict=True)]
    return list(zip(spoken, (mass / mass.sum()).tolist(), strict=True))


def test_credit_is_that_of_the_enumerated_team(tiny, turns, sampler):
    """20,480 draws a turn: the mean advantage of every message is its exact one within 4.5 standard errors.

    Exact, with R of a transcript the score of its last token and the reward: A(first) = E[R | first] - E[R], and
    A(last) = R - E[R | first]. The reward is the same for all alternatives to the last message, and cancels there.
    """
    problems = 10_240
    scores = np.random.default_rng(0).uniform(size=tiny.spec.vocab_size + 1)
    acting = make_acting(turns, Environment(begin, answer_number))
    rollout, counts = draw(tiny, sampler, acting, problems)
    first, middle, last = (np.array(read_tokens(messages)) for messages in rollout.turns)
    assert (len(first), len(middle), len(last)) == (2 * problems, 2 * problems, 4 * problems)
    assert int(counts.messages) == 6 * problems  # those of policies
    verdicts = [Verdict(float(scores[token]), "partial", None) for token in last]
    return_PL = np.array([verdict.score for verdict in add_rewards(rollout.turns, verdicts)]).reshape(problems, 4)
    matrix = make_credit_matrix("c3", plans.make_tree(FAN_OUT), (True, False, True))
    credit = apply_credit(matrix, jnp.asarray(return_PL, jnp.float32), normalise="none")

    exact, value = {}, {}
    for token, mass in list_support(tiny, turns, 0, ()):
        said = [Message("a", "a", str(token) if token >= 0 else "")]
        answered = answer_number(begin(Problem(0, "", "", ""), 0), said)
        assert set(middle[first == token].tolist()) == {int(answered.text)}
        ends = list_support(tiny, turns, 2, (token, int(answered.text)))
        value[token] = (mass, sum(p * (scores[end] + answered.reward) for end, p in ends))
        exact |= {(token, end): scores[end] + answered.reward - value[token][1] for end, _ in ends}
    mean = sum(mass * v for mass, v in value.values())
    advantage = [np.asarray(part).reshape(-1) for part in credit.advantage]
    assert not advantage[1].any()
    groups = [(advantage[0][first == token], v - mean) for token, (_, v) in value.items()]
    groups += [(advantage[2][(np.repeat(first, 2) == a) & (last == b)], worth) for (a, b), worth in exact.items()]
    assert sum(len(values) for values, _ in groups) == 6 * problems
    for values, worth in groups:
        assert len(values) > 1000
        assert abs(values.mean() - worth) < 4.5 * np.sqrt(2) * values.std() / np.sqrt(len(values))


def test_an_environment_is_asked_once_for_equal_transcripts(tiny, turns, sampler):
    """And is given the messages in order, under an address of problem and step."""
    acting = make_acting(turns, Environment(begin, answer_number))
    rollout, _ = draw(tiny, sampler, acting, 40)
    heard = np.array(read_tokens(rollout.turns[0])).reshape(40, 2)
    evaluator = acting.evaluator
    assert evaluator.calls == sum(len(set(row)) for row in heard.tolist())
    assert {len(call.parts) for call in evaluator.asked} == {1}
    names = {(message.turn, message.role) for call in evaluator.asked for (message,) in call.parts}
    assert names == {(turns[0].name, turns[0].role)}
    seeds = {call.seed for call in evaluator.asked}
    assert len(seeds) == 40
    other = make_acting(turns, Environment(begin, answer_number))
    draw(tiny, sampler, other, 40, key=8)
    assert not seeds & {call.seed for call in other.evaluator.asked}


def test_continuations_meet_the_restored_state(tiny, turns, sampler):
    """From given messages of the first two turns, the last is drawn as from the tree's own."""
    acting = make_acting(turns, Environment(begin, answer_number))
    rollout, _ = draw(tiny, sampler, acting, 4)
    again, _ = draw(tiny, sampler, acting, 4, Start(rollout.turns[:1]))
    for one, other in zip(jax.tree.leaves(rollout.turns), jax.tree.leaves(again.turns), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture(scope="module")
def rounds(tiny, turns):
    """Two rounds of a message and an answer, the second left out where the episode is over."""
    first, middle, last = turns
    more = last._replace(name="more", skipped_by=(1,))
    end = middle._replace(name="end", skipped_by=(1,))
    protocol = (first, middle, more, end)
    return protocol, make_tree_sampler(tiny.policy, protocol, SAMPLING, tiny.stop_tokens)


@pytest.mark.parametrize("ends", [True, False])
def test_an_episode_of_two_rounds(tiny, rounds, ends):
    """An environment hears what was said since it answered; after its end nothing is said, nor asked."""
    protocol, sample_tree = rounds
    acting = make_acting(protocol, Environment(lambda problem, seed: begin(problem, seed, ends), answer_number))
    question = take_problems(tiny.question, 4, jnp.zeros(3, jnp.int32))
    problems = [Problem(number, str(number), "", "") for number in range(3)]
    asked = (problems, question, jax.random.key(7), jnp.arange(3), (2, 1, 2, 1))
    rollout, _ = draw_trees(sample_tree, acting, Weights(tiny.params, {}), *asked)
    first, middle, more, end = (read_tokens(messages) for messages in rollout.turns)
    figures = describe_observed([Drawn(rollout, None, [], 3)])  # pyright: ignore[reportArgumentType]
    if ends:
        assert set(more) == set(end) == {-1}
        assert not rollout.turns[2].sampled_NT.any() and not rollout.turns[2].truncated_N.any()
        assert {len(call.parts) for call in acting.evaluator.asked} == {1}
        assert figures["environment_done_share"] == 1.0
        return
    assert figures["environment_done_share"] == figures["environment_failed_share"] == 0.0
    two = [call for call in acting.evaluator.asked if len(call.parts) == 2]
    heard = {tuple(int(message.text or -1) for part in call.parts for message in part) for call in two}
    assert heard == {(first[row // 2], more[row]) for row in range(12)}
    for row in range(12):
        assert end[row] == ((7 * more[row] + 6) % WORDS)
        assert middle[row // 2] == (7 * first[row // 2] + 3) % WORDS


def test_an_answer_that_cannot_be_restored_is_a_failed_one(tiny, rounds):
    """The second answer, where the first is another the second time; here forty numbers may agree by chance."""
    protocol, sample_tree = rounds
    acting = make_acting(protocol, Environment(begin, forget))
    question = take_problems(tiny.question, 4, jnp.zeros(8, jnp.int32))
    problems = [Problem(number, str(number), "", "") for number in range(8)]
    asked = (problems, question, jax.random.key(7), jnp.arange(8), (2, 1, 1, 1))
    rollout, _ = draw_trees(sample_tree, acting, Weights(tiny.params, {}), *asked)
    assert not rollout.turns[1].observed.failed_N.any()
    assert rollout.turns[3].observed.failed_N.mean() > 0.5


def test_one_that_answers_otherwise_is_refused_before_a_run(turns):
    opened = Opened((Environment(begin, forget_wholly),), (None, 0, None))
    with (
        pytest.raises(UserError, match=r"^protocol.turns.1.environment: expected one that answers the same messages"),
        open_acting(opened, 1, turns, TOKENIZER, problem=Problem(0, "0", "?", "")),
    ):
        pass


FATES = {
    "12": ("", "12"),
    "hang": ("timeout", "no verdict within 1.5 s"),
    "leave": ("error", "SystemExit: 3"),
    "die": ("error", "the grading process died (exit status 1)"),
    "fork": ("", None),
    "shout": ("", "x" * 100_000),
    "number": ("error", "TypeError: the environment returned Observation"),
    "object": ("error", "TypeError: the environment returned <object"),
    "\ud800": ("", "?"),
}


def test_an_environment_costs_what_it_breaks_and_nothing_else(turns):
    """In real processes: every call that fails is one that failed, and those beside it are answered."""
    opened = Opened((Environment(begin, misbehave, timeout_s=1.5),), (None, 0, None))
    problem = Problem(0, "0", "", "")
    asked = [what for what in FATES for _ in range(2)] + ["1"] * 40
    with open_acting(opened, 2, turns, TOKENIZER) as acting:
        assert acting is not None and isinstance(acting.evaluator, Evaluator)
        calls = [Call(0, number, ((Message("a", "a", what),),)) for number, what in enumerate(asked)]
        answers = acting.evaluator.score([problem] * len(calls), calls, budget=len(calls))
    for what, answer in zip(asked, answers, strict=True):
        failure, said = FATES.get(what, ("", what))
        assert answer.failure == failure, (what, answer)
        if failure:
            assert answer.detail.startswith(said) and not answer.observations
        elif said is not None:
            assert answer.observations[-1][0] == said
    assert acting.evaluator.calls == len(asked)


def test_nothing_is_started_without_environments(turns):
    with open_acting(Opened((), (None,) * 3), 2, turns, TOKENIZER) as acting:
        assert acting is None


def test_a_failed_or_unreadable_answer_goes_on_as_an_empty_message(tiny, turns, sampler):
    """And an answer with more tokens than the turn has room for is cut there."""

    def answer(state, messages):
        return "nothing that the tokenizer knows"

    acting = make_acting(turns, Environment(begin, answer))
    rollout, _ = draw(tiny, sampler, acting, 2)
    observed = rollout.turns[1].observed
    assert observed.failed_N.all() and not rollout.turns[1].content_NT.any()
    assert rollout.turns[2].sampled_NT.any(axis=1).all()
    assert list(itertools.chain(*np.asarray(observed.reward_N)[:, None].tolist())) == [0.0] * 4


def make_faults() -> list[tuple[str, str]]:
    """Two hundred ways in which an environment fails, each at one of its functions."""
    raised = [
        name for name, kind in vars(builtins).items() if isinstance(kind, type) and issubclass(kind, BaseException)
    ]
    plain = [
        name for name in sorted(raised) if name not in ("UnicodeDecodeError", "UnicodeEncodeError", "ExceptionGroup")
    ]
    plain = [name for name in plain if name not in ("UnicodeTranslateError", "BaseExceptionGroup")]
    ways = [*plain[:60], "exit", "kill", "hang"]
    faults = [(where, how) for where in ("reset", "step", "restore") for how in ways]
    return faults + [("step", how) for how in ("nothing", "number", "bytes", "nan", "infinite", "text", "deep", "done")]


def fail(how: str):
    if how == "exit":
        os._exit(0)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "hang":
        time.sleep(60)
    raise getattr(builtins, how)("planned")


def begin_faulty(problem: Problem, seed: int) -> list:
    where, how = problem.question.split()
    if where == "reset":
        fail(how)
    return [where, how, 0]


def answer_faulty(state: list, messages: Sequence[Message]) -> Observation | str:
    where, how, step = state
    state[2] += 1
    if where == "step" and how in ("nothing", "number", "bytes", "nan", "infinite", "text", "deep", "done"):
        wrong = {"nothing": None, "number": 3, "bytes": b"x", "nan": Observation("", float("nan")), "deep": [[[]]]}
        wrong |= {"infinite": Observation("", float("inf")), "text": Observation(3), "done": Observation("", 0.0, 1)}
        return wrong[how]
    if where == "step" or (where == "restore" and step == 1):
        fail(how)
    return "5"


def test_two_hundred_environments_that_fail_lose_nothing_else(turns):
    """At the beginning, at an answer, and at the second answer, where the first is led through again."""
    faults = make_faults()
    assert len(set(faults)) == len(faults) >= 197
    faults += [("none", str(number)) for number in range(40)]
    random.Random(0).shuffle(faults)
    problems = [Problem(number, str(number), " ".join(fault), "") for number, fault in enumerate(faults)]
    said = (Message("a", "a", "?"),)
    calls = [Call(0, 0, (said, said)) for _ in faults]
    opened = Opened((Environment(begin_faulty, answer_faulty, timeout_s=1.5),), (None, 0, None))
    with open_acting(opened, 2, turns, TOKENIZER) as acting:
        assert acting is not None
        answers = acting.evaluator.score(problems, calls, budget=len(calls))
    for (where, how), answer in zip(faults, answers, strict=True):
        assert answer.failure == ("" if where == "none" else "timeout" if how == "hang" else "error"), (where, how)
        assert [text for text, *_ in answer.observations] == (["5", "5"] if where == "none" else [])
