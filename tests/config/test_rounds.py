"""Rounds are the turns that one would have written out."""

import pytest

from c3jax.config.file import dump_config, load_config
from c3jax.config.rounds import expand_rounds
from c3jax.schema import ConfigError

GUESS = {"name": "guess", "role": "guesser", "user": "{question} {history}guess {{now}} :", "max_tokens": 2}
REPLY = {"name": "reply", "environment": {"kind": "task"}, "max_tokens": 1}
SUMMARY = {"name": "end", "role": "teller", "user": "{question} {history}| {guess} {reply}", "max_tokens": 3}
ROUNDS = {"repeat": 3, "until": "done", "history": "{guess} {reply} . ", "turns": [GUESS, REPLY]}


def write(*entries):
    tree = {"protocol": {"turns": list(entries), "question_tokens": 9}}
    expand_rounds(tree)
    return tree["protocol"]["turns"]


def test_rounds_are_written_out():
    turns = write(ROUNDS, SUMMARY)
    assert [turn["name"] for turn in turns] == ["guess_1", "reply_1", "guess_2", "reply_2", "guess_3", "reply_3", "end"]
    assert [turn["user"] for turn in turns if "user" in turn] == [
        "{question} guess {{now}} :",
        "{question} {guess_1} {reply_1} . guess {{now}} :",
        "{question} {guess_1} {reply_1} . {guess_2} {reply_2} . guess {{now}} :",
        "{question} {guess_1} {reply_1} . {guess_2} {reply_2} . {guess_3} {reply_3} . | {guess_3} {reply_3}",
    ]
    assert [turn.get("unless_done", False) for turn in turns] == [False, False, True, True, True, True, False]


def test_turns_of_a_round_read_each_other_and_others_are_left_alone():
    plan = {"name": "plan", "role": "planner", "user": "{question} {plan}", "max_tokens": 1}
    (first, one, two) = write(plan, {"repeat": 2, "turns": [GUESS | {"user": "{plan} {history}{guess}"}]})
    assert first == plan
    assert (one["user"], two["user"]) == ("{plan} {guess_1}", "{plan} {guess_2}")
    assert "unless_done" not in two


def test_without_rounds_nothing_changes():
    assert write(SUMMARY) == [SUMMARY]
    for tree in ({}, {"protocol": None}, {"protocol": {"turns": "none"}}, {"protocol": {"turns": [3]}}):
        before = dict(tree)
        expand_rounds(tree)
        assert tree == before


def test_a_config_of_rounds_is_the_one_written_out(tmp_path):
    """The game of configs/game.yaml for one guesser; a number of rounds can be set on the command line."""
    rounds = ROUNDS | {
        "history": "guess : {guess} {reply} ",
        "turns": [GUESS | {"user": "{question} {history}guess :"}],
    }
    rounds["turns"].append(REPLY)
    changes = {"protocol.turns": [rounds], "credit.fan_out": [2, 1, 2, 1], "credit.budget": 4}
    config = load_config("game", changes | {"protocol.turns.0.repeat": 2})
    assert [turn.name for turn in config.protocol.turns] == ["guess_1", "reply_1", "guess_2", "reply_2"]
    assert config.protocol.turns[2].user == "{question} guess : {guess_1} {reply_1} guess :"
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"repeat": 0}, "protocol.turns.0.repeat: expected a number of rounds, got 0"),
        ({"repeat": "3"}, 'protocol.turns.0.repeat: expected a number of rounds, got "3"'),
        ({"turns": []}, "protocol.turns.0.turns: expected the turns of a round, got []"),
        ({"until": "bored"}, 'protocol.turns.0.until: expected done, got "bored"'),
        ({"history": 3}, "protocol.turns.0.history: expected text, got 3"),
        ({"name": "x"}, "protocol.turns.0: expected no field of rounds but history, repeat, turns, until, got name"),
    ],
)
def test_what_rounds_can_get_wrong_is_one_sentence(changes, sentence):
    with pytest.raises(ConfigError) as caught:
        write(ROUNDS | changes)
    assert str(caught.value) == sentence
