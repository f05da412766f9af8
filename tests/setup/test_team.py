"""A team put together from a config: which problems it has, and in which order it meets them."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import jax
import numpy as np
import pytest

from c3jax.config.file import parse_config
from c3jax.config.run import ConfigError, RandomModel
from c3jax.models.huggingface import weights as hf_weights
from c3jax.models.load import describe_model, load_params
from c3jax.setup.team import Setup, choose_problems, decode_turns, find_sets, make_questions, make_setup
from c3jax.tasks.numeric import TaskError
from c3jax.types import Messages, Problem, Rollout, UserError

TREE: dict[str, Any] = {
    "seed": 5,
    "steps": 1,
    "problems": 4,
    "task": {"kind": "arithmetic", "train_problems": 12, "heldout_problems": 3},
    "protocol": {
        "question_tokens": 17,
        "turns": [
            {"name": "plan", "role": "planner", "user": "{question} ponder", "max_tokens": 3},
            {"name": "answer", "role": "solver", "system": "be {{ brief }}", "user": "{plan} :", "max_tokens": 2},
        ],
    },
    "model": {"kind": "random", "layers": 1, "width": 8, "heads": 1, "key_value_heads": 1, "mlp_width": 8},
    "credit": {"method": "c3", "fan_out": [2, 2], "budget": 4, "normalise": "none"},
    "learner": {"learning_rate": 1.0},
}
WORDS = tuple("one two three and is ? ponder be { brief } :".split())


@pytest.fixture(scope="module")
def setup() -> Setup:
    return make_setup(parse_config(TREE))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """A random policy as a Hugging Face folder, for tasks without a vocabulary of their own."""
    path = tmp_path_factory.mktemp("model")
    section = RandomModel(kind="random", layers=1, width=8, heads=1, key_value_heads=1, mlp_width=8, context=53)
    model = describe_model(section, WORDS)
    hf_weights.save_folder(path, model.spec, load_params(model, jax.random.key(0)))
    model.tokenizer.save(str(path))
    return str(path)


@pytest.fixture
def numeric(tmp_path, folder) -> dict[str, Any]:
    """A config of a numeric task: six problems of 3, 5, 3, 5, 3 and 4 words, and two held out."""
    questions = ["one and two", "one and two and three", "is two ?", "is one and two ?", "is three ?", "two and one ?"]
    for name, rows in (("train", questions), ("test", ["is one ?", "and is three three ?"])):
        lines = [json.dumps({"id": f"{name}-{row}", "question": text, "answer": row}) for row, text in enumerate(rows)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    task = {
        "kind": "numeric",
        "path": str(tmp_path / "train.jsonl"),
        "heldout_path": str(tmp_path / "test.jsonl"),
    }
    model = {"kind": "folder", "path": folder}
    return TREE | {"task": task, "model": model, "protocol": TREE["protocol"] | {"question_tokens": 4}}


# --------------------------------------------------------------------------------------------------------------------
# Order


def with_problems(setup: Setup, problems: int, **changes: Any) -> Setup:
    return setup._replace(config=parse_config(TREE | {"problems": problems} | changes))


def test_every_epoch_meets_every_problem_once_in_a_new_order(setup):
    epochs = [[choose_problems(setup, 3 * epoch + step) for step in range(3)] for epoch in range(20)]
    for steps in epochs:
        assert all(len(places) == 4 for places in steps)
        assert sorted(sum(steps, [])) == list(range(12))
    assert len({str(steps) for steps in epochs}) == 20


def test_an_epoch_that_does_not_divide_leaves_others_out_each_time(setup):
    """Twelve problems, five a step: two steps an epoch, and the two that are left out change."""
    of_five = with_problems(setup, 5)
    missing = []
    for epoch in range(30):
        met = choose_problems(of_five, 2 * epoch) + choose_problems(of_five, 2 * epoch + 1)
        assert len(set(met)) == 10 and set(met) < set(range(12))
        missing.append(frozenset(range(12)) - frozenset(met))
    assert frozenset.union(*missing) == set(range(12))  # each is left out sometimes, so none of them always


def test_a_step_is_its_seed_and_number_and_nothing_before_it(setup):
    assert choose_problems(setup, 1000) == choose_problems(with_problems(setup, 4), 1000)
    assert choose_problems(setup, 7) != choose_problems(with_problems(setup, 4, seed=6), 7)
    of_all = with_problems(setup, 12)
    assert sorted(choose_problems(of_all, 0)) == list(range(12)) != choose_problems(of_all, 0)


# --------------------------------------------------------------------------------------------------------------------
# Several sets, and problems that are held out too


@pytest.fixture
def mixed(numeric, tmp_path) -> dict[str, Any]:
    """The numeric config, with half of its problems from a second set, whose ids are those of the first."""
    (tmp_path / "more").mkdir()
    questions = ["one ?", "two ?", "three ?", "three is one and two and three ?"]
    lines = [json.dumps({"id": f"train-{row}", "question": text, "answer": row}) for row, text in enumerate(questions)]
    (tmp_path / "more" / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    path = [{"path": numeric["task"]["path"], "weight": 2.0}, {"path": str(tmp_path / "more" / "train.jsonl")}]
    return numeric | {"problems": 3, "task": numeric["task"] | {"path": path}}


def test_several_sets_are_mixed_by_their_weights(mixed, numeric, tmp_path):
    setup = make_setup(parse_config(mixed))
    first, second = f"{tmp_path.name}/train", "more/train"
    assert setup.mixture == ((first, second), (2.0, 1.0), (4, 3)) and setup.train.left_out == 3
    # As in the set alone, but for the ids, which are distinct: a problem's draws stay its own.
    alone = make_setup(parse_config(numeric)).train
    assert [each.id for each in setup.train.problems[:4]] == [f"{first}:{each.id}" for each in alone.problems]
    assert [each[:1] + each[2:] for each in setup.train.problems[:4]] == [
        each[:1] + each[2:] for each in alone.problems
    ]
    assert setup.train.problems[4] == Problem(1 << 24, f"{second}:train-0", "one ?", "0")
    for step in range(12):
        places = choose_problems(setup, step)
        assert len(set(places)) == 3 and sorted(find_sets(setup, places)) == [0, 0, 1]
        assert places == choose_problems(make_setup(parse_config(mixed | {"steps": 50})) if step == 7 else setup, step)
    met = [place for step in range(3) for place in choose_problems(setup, step) if place >= 4]
    data = setup.data
    assert [(part["name"], part["weight"], part["problems"]) for part in data["train"]] == [
        *((first, 2.0, 4), (second, 1.0, 3))
    ]
    assert data["heldout"]["sha256"] == hashlib.sha256((tmp_path / "test.jsonl").read_bytes()).hexdigest()
    assert (data["overlap"], data["dropped"]) == ({}, []) and set(met) <= {4, 5, 6}


def test_a_set_too_small_for_its_weight_is_refused(mixed):
    path = [mixed["task"]["path"][0], mixed["task"]["path"][1] | {"weight": 8.0}]
    mixed = mixed | {"problems": 4, "task": mixed["task"] | {"path": path}}
    sentence = (
        r"^task.path.1.weight: expected a share of the 4 problems of a step that the 3 problems of more/train can"
    )
    with pytest.raises(ConfigError, match=sentence):
        make_setup(parse_config(mixed))


def test_held_out_problems_are_not_trained_on(mixed, tmp_path):
    lines = [{"id": "a", "question": "one  ?", "answer": 1}, {"id": "b", "question": "is one ?", "answer": 1}]
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        make_setup(parse_config(mixed))
    assert str(caught.value) == (
        "data: 1 of 10 training problems are in a held-out set (heldout: 1 normalised): set data.drop_overlap:"
        " true to train without them, or see the pairs with c3jax overlap; the ids: more/train:train-0"
    )
    setup = make_setup(parse_config(mixed | {"problems": 2, "data": {"drop_overlap": True}}))
    assert setup.mixture.counts == (4, 2) and "more/train:train-0" not in {each.id for each in setup.train.problems}
    assert setup.train.problems[4].index == (1 << 24) + 1  # the others keep theirs
    data = setup.data
    assert (data["overlap"], data["dropped"]) == ({"heldout": {"normalised": 1}}, ["more/train:train-0"])


def test_nor_are_the_problems_of_a_suite_that_the_run_is_evaluated_on(mixed, tmp_path):
    (tmp_path / "suite.jsonl").write_text(json.dumps({"id": "a", "question": "ONE ?", "answer": "1"}), encoding="utf-8")
    suite = {"name": "other", "kind": "math", "path": str(tmp_path / "suite.jsonl")}
    suited = mixed | {"evaluation": {"suites": [suite]}}
    with pytest.raises(UserError, match=r"are in a held-out set \(other: 1 normalised\)"):
        make_setup(parse_config(suited), is_training=True)
    assert not make_setup(parse_config(suited)).overlap.hits  # a run that is done is evaluated all the same
    gone = mixed | {"evaluation": {"suites": [suite | {"path": "gone.jsonl"}]}}
    with pytest.raises(UserError, match="gone.jsonl"):
        make_setup(parse_config(gone), is_training=True)


# --------------------------------------------------------------------------------------------------------------------
# Questions and messages


def test_questions_are_a_frame_with_their_problems_indices(numeric):
    numeric["problems"] = 2
    setup = make_setup(parse_config(numeric))
    frame, problem_P = make_questions(setup, setup.train, [3, 0, 0])
    # Places 0 to 3 of the set are problems 0, 2, 4 and 5 of the file.
    assert problem_P.tolist() == [5, 0, 0]
    assert np.asarray(frame.keep_NS).sum(axis=1).tolist() == [4, 3, 3] and frame.tokens_NS.shape == (3, 4)
    texts = [
        setup.tokenizer.decode(row[keep])
        for row, keep in zip(*map(np.asarray, (frame.tokens_NS, frame.keep_NS)), strict=True)
    ]
    assert texts == ["two and one ?", "one and two", "one and two"]


def test_messages_are_read_without_their_stop_tokens(setup):
    stop = setup.tokenizer.stop_tokens[0]
    said = setup.tokenizer.encode_text("3 up 4")
    tokens = np.array([[*said, 0], [said[0], stop, 0, 0], [stop, 0, 0, 0]])
    content = np.array([[True] * 3 + [False], [True] + [False] * 3, [False] * 4])
    messages = Messages(tokens, content, *(np.zeros((3, 4)),) * 4)
    frame, _ = make_questions(setup, setup.train, [0])
    texts = decode_turns(setup, Rollout(frame, (messages, messages._replace(content_NT=content | (tokens == stop)))))
    assert texts == [["3 up 4", "3", ""], ["3 up 4", "3 <stop>", "<stop>"]]


# --------------------------------------------------------------------------------------------------------------------
# What a config makes


def test_a_random_team_knows_the_words_of_its_prompts(setup):
    assert setup.tokenizer.encode_text("ponder be { brief } : dial")
    assert setup.train.left_out == 0 and len(setup.train.problems) == 12 and len(setup.heldout.problems) == 3
    assert not {p.question for p in setup.train.problems} & {p.question for p in setup.heldout.problems}
    again, other = make_setup(parse_config(TREE)), make_setup(parse_config(TREE | {"seed": 6}))
    assert again.train == setup.train and again.plans == setup.plans
    jax.tree.map(np.testing.assert_array_equal, again.weights.trained, setup.weights.trained)
    assert other.train.problems != setup.train.problems
    assert not np.array_equal(other.weights.trained["embedding"], setup.weights.trained["embedding"])


def test_long_questions_are_left_out_and_counted(numeric):
    setup = make_setup(parse_config(numeric))
    assert [problem.id for problem in setup.train.problems] == ["train-0", "train-2", "train-4", "train-5"]
    assert setup.train.problems[3] == Problem(5, "train-5", "two and one ?", "5")
    assert setup.train.left_out == 2 and setup.heldout.left_out == 1
    assert [list(tokens) for tokens in setup.train.tokens] == [
        setup.tokenizer.encode_text(problem.question) for problem in setup.train.problems
    ]
    assert (
        make_setup(parse_config(numeric | {"protocol": numeric["protocol"] | {"question_tokens": 5}})).train.left_out
        == 0
    )


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"problems": 5},
            ConfigError,
            "problems: expected at most the 4 training problems whose question fits protocol.question_tokens, got 5",
        ),
        (
            {"protocol": {"question_tokens": 48}},
            ConfigError,
            # <|user|> question(48) ponder <|assistant|> and a message of 3
            "protocol.turns.0: expected a context and message of at most 53 tokens .* got up to 54",
        ),
        ({"task": {"path": "nowhere.jsonl"}}, TaskError, "nowhere.jsonl: the file cannot be read"),
        ({"task": {"limit": 3}}, ConfigError, "problems: expected at most the 2 training problems"),
        ({"model": {"path": "nowhere"}}, UserError, "nowhere.*cannot be read"),
    ],
)
def test_what_does_not_fit_is_said(numeric, changes, error, message):
    tree = {name: numeric[name] | part if isinstance(part, dict) else part for name, part in changes.items()}
    with pytest.raises(error, match=message):
        make_setup(parse_config(numeric | tree))


def test_a_set_without_a_question_that_fits_is_said(numeric, tmp_path):
    (tmp_path / "test.jsonl").write_text('{"question": "three and two and one", "answer": 6}', encoding="utf-8")
    with pytest.raises(
        ConfigError, match="^protocol.question_tokens: expected room for at least one held-out question"
    ):
        make_setup(parse_config(numeric))
    too_many = TREE | {"task": TREE["task"] | {"train_problems": 10**9}}
    with pytest.raises(TaskError, match="expected a count of 1 to 10000 "):
        make_setup(parse_config(too_many))
