"""Right answers as messages of the last turn, and those that cannot be read."""

import pytest
from rich.console import Console

from c3jax.config.file import load_config, parse_config
from c3jax.setup.answers import make_answers
from c3jax.setup.team import make_setup
from c3jax.tasks.task import TASKS, find_task
from c3jax.train import train
from c3jax.types import Problem, UserError
from tests import tiny_run

CREDIT = {"method": "igpo", "fan_out": [4, 1], "budget": 4, "normalise": "none"}


def make_config(**changes):
    return parse_config(tiny_run.TREE | {"credit": CREDIT} | changes)


def test_the_answer_alone_is_content_and_the_shortest_length_holds_all():
    setup = make_setup(make_config())
    problems, encode = setup.train.problems[:2], setup.tokenizer.encode_text
    answers = make_answers(setup, problems)
    assert answers.tokens_NT.tolist() == [encode("answer") + encode(problem.answer) for problem in problems]
    assert answers.sampled_NT.all() and answers.content_NT.tolist() == [[False, True]] * 2
    roomy = setup.plans[-1]._replace(max_tokens=4)
    setup = setup._replace(plans=(*setup.plans[:-1], roomy))
    cut, whole = make_answers(setup, problems, 3), make_answers(setup, problems)
    assert (cut.tokens_NT.shape, whole.tokens_NT.shape) == ((2, 2), (2, 4))
    assert not whole.sampled_NT[:, 2:].any() and not whole.content_NT[:, 2:].any()


@pytest.mark.parametrize(("answer", "tokens"), [("", 0), ("1 2 3", 3)])
def test_an_answer_that_cannot_be_read_is_refused_before_there_is_a_run(answer, tokens, tmp_path, monkeypatch):
    config = make_config()
    setup = make_setup(config)
    broken = (*setup.train.problems[:-1], setup.train.problems[-1]._replace(answer=answer))
    setup = setup._replace(train=setup.train._replace(problems=broken))
    monkeypatch.setattr("c3jax.train.make_setup", lambda *_, **__: setup)
    with pytest.raises(UserError) as caught:
        train(config, tmp_path / "run", ["c3jax"], Console(quiet=True))
    assert str(caught.value) == (
        f"problem {broken[-1].id}: expected a right answer of 1 to 1 tokens, as protocol.turns.1.max_tokens leaves,"
        f" got {tokens}"
    )
    assert not (tmp_path / "run").exists()


def test_what_tasks_write_is_graded_right():
    """The message with what closes it, where there is something to close."""
    texts = {"arithmetic": "7", "numeric": "-1,250", "stories": "12", "math": r"\frac{1}{2}"}
    assert {kind for kind in TASKS if find_task(kind).write_answer is not None} == set(texts)
    for kind, answer in texts.items():
        task, problem = find_task(kind), Problem(0, "0", "?", answer)
        lead, own = task.write_answer(problem)
        assert lead and task.grade(problem, lead + " " * (kind == "arithmetic") + own + "}$").score == 1
        assert own.strip() == answer


def test_a_method_that_reads_answers_is_refused_where_there_are_none():
    for changes, expected in (
        (
            {"task": {"kind": "number", "train_problems": 4, "heldout_problems": 3}},
            "credit.method: expected a method that reads no right answers for task number, which has none as text, got"
            " igpo",
        ),
        (
            {
                "protocol": load_config("tool_arithmetic").protocol.model_dump(),
                "credit": CREDIT | {"fan_out": [4, 1, 1]},
            },
            "credit.method: expected a method that reads no right answers where an environment answers a turn, got"
            " igpo",
        ),
    ):
        with pytest.raises(UserError) as caught:
            make_config(**changes)
        assert str(caught.value) == expected
