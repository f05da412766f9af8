"""What a user can get wrong in a config: a sentence each, with the field's path, what was expected and what was got."""

from __future__ import annotations

import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from c3jax.config.file import load_config, parse_config
from c3jax.config.run import ConfigError

TREE: dict[str, Any] = {
    "seed": 3,
    "steps": 5,
    "problems": 8,
    "task": {"kind": "arithmetic"},
    "protocol": {
        "question_tokens": 32,
        "turns": [
            {"name": "plan", "role": "planner", "user": "{question} plan :", "max_tokens": 16},
            {"name": "answer", "role": "solver", "user": "{question} {plan} answer :", "max_tokens": 4},
        ],
    },
    "model": {"kind": "random", "width": 32, "heads": 2, "key_value_heads": 2},
    "credit": {"method": "c3", "fan_out": [2, 4], "budget": 8, "normalise": "none"},
    "learner": {"learning_rate": 4e-3, "minibatches": 2},
}
NUMERIC = {"kind": "numeric", "path": "train.jsonl", "heldout_path": "test.jsonl"}


@pytest.fixture
def path(tmp_path) -> Path:
    path = tmp_path / "team.yaml"
    path.write_text(yaml.safe_dump(TREE), encoding="utf-8")
    return path


WRONG = [
    # A field that is unknown, missing or of another type
    ({"sede": 1}, "sede: expected a field of the config (seed?), got an unknown one"),
    ({"zeal": 1}, "zeal: expected a field of the config, got an unknown one"),
    (
        {"learner.learning_rte": 1},
        "learner.learning_rte: expected a field of the config (learning_rate?), got an unknown one",
    ),
    ({"credit.random": 1}, "credit.random: expected a field of the config, got an unknown one"),
    ({"task.limit": 3}, "task.limit: expected a field of this task.kind, got another kind's"),
    ({"protocol.turns.1.hue": 3}, "protocol.turns.1.hue: expected a field of the config, got an unknown one"),
    ({"steps": "many"}, 'steps: expected an integer, got "many"'),
    ({"steps": True}, "steps: expected an integer, got true"),
    ({"steps": 1.5}, "steps: expected an integer, got 1.5"),
    ({"steps": 10.0}, "steps: expected an integer, got 10.0"),
    ({"steps": math.inf}, "steps: expected an integer, got Infinity"),
    ({"steps": None}, "steps: expected an integer, got null"),
    ({"alarms.length": 1.0}, "alarms.length: expected greater than 1, got 1.0"),
    (
        {"alarms.kl": None, "alarms.stop": ["entropy", "kl"]},
        "alarms.stop.1: expected an alarm that is on, got 'kl' with alarms.kl null",
    ),
    ({"learner.max_grad_norm": True}, "learner.max_grad_norm: expected a number, got true"),
    ({"learner.max_grad_norm": "0.2"}, 'learner.max_grad_norm: expected a number, got "0.2"'),
    ({"learner.max_grad_norm": math.nan}, "learner.max_grad_norm: expected a finite number, got NaN"),
    # A field that had another name
    (
        {"learner.clip": 0.1},
        "learner.clip: expected learner.loss.clip_low and learner.loss.clip_high, as it is called now, got the old"
        " name",
    ),
    (
        {"learner.aggregation": "token"},
        "learner.aggregation: expected learner.loss.aggregation, as it is called now, got the old name",
    ),
    (
        {"credit.method": "value_only", "credit.critic": {"network": "own", "learning_rate": 1e-3, "solo_steps": 2}},
        "credit.critic.solo_steps: expected credit.critic.critic_only_steps, as it is called now, got the old name",
    ),
    # A loss
    (
        {"learner.loss.kind": "ppq"},
        "learner.loss.kind: expected one of ppo, gspo, cispo, reinforce, or your own as module:NAME, got 'ppq'",
    ),
    (
        {"learner.loss.kind": "reinforce", "learner.loss.clip_high": 0.5},
        "learner.loss.clip_high: expected none for reinforce, which clips nothing, got 0.5",
    ),
    (
        {"learner.loss.kind": "cispo", "learner.loss.dual_clip": 3.0},
        "learner.loss.dual_clip: expected none for cispo, whose formula is not the clipped one, got 3",
    ),
    (
        {"learner.loss.dual_clip": 1.2},
        "learner.loss.dual_clip: expected more than 1 + learner.loss.clip_high (1.2), got 1.2",
    ),
    (
        {"learner.loss.length": 40},
        "learner.loss.length: expected none unless learner.loss.aggregation is constant, got 40",
    ),
    # Trees of older weights
    ({"async_steps": 2}, "async_steps: expected less than or equal to 1, got 2"),
    (
        {"async_steps": 1, "learner.loss.kind": "reinforce"},
        "async_steps: expected 0 for the loss reinforce, which has no ratio that corrects for older weights, got 1",
    ),
    (
        {"async_steps": 1, "credit.method": "c3", "credit.fan_out": "auto"},
        "async_steps: expected 0 where credit.fan_out is auto, chosen by the returns of the step before, got 1",
    ),
    ({"sampling.temperature": math.inf}, "sampling.temperature: expected a finite number, got Infinity"),
    ({"protocol.turns.0.trained": 1}, "protocol.turns.0.trained: expected true or false, got 1"),
    ({"protocol.turns.0.user": 7}, "protocol.turns.0.user: expected text, got 7"),
    ({"protocol.turns.0.user": ""}, 'protocol.turns.0.user: expected some text, got ""'),
    ({"protocol.turns": []}, "protocol.turns: expected at least one entry, got []"),
    ({"protocol.turns": 2}, "protocol.turns: expected a list, got 2"),
    ({"protocol": 2}, "protocol: expected a section of fields, got 2"),
    ({"task": "arithmetic"}, 'task: expected a section of fields, got "arithmetic"'),
    ({"imitation": 3}, "imitation: expected a section of fields, got 3"),
    ({"imitation.updates": 3}, "imitation.problems: expected a value, got nothing"),
    (
        {"task.kind": "chess"},
        "task.kind: expected one of arithmetic, number, stories, numeric, math, code, reasoning, or your own as"
        ' module:NAME, got "chess"',
    ),
    ({"model.kind": None}, "model.kind: expected one of random, smollm2, folder, hub, got null"),
    ({"model": {"width": 4}}, "model.kind: expected a value, got nothing"),
    # A number out of its range
    ({"steps": 0}, "steps: expected greater than or equal to 1, got 0"),
    ({"seed": -1}, "seed: expected greater than or equal to 0, got -1"),
    ({"seed": 2**32}, "seed: expected less than 4294967296, got 4294967296"),
    ({"sampling.top_p": math.nan}, "sampling.top_p: expected less than or equal to 1, got NaN"),
    ({"task.down_share": math.nan}, "task.down_share: expected less than or equal to 1, got NaN"),
    ({"learner.adam_b1": 1.0}, "learner.adam_b1: expected less than 1, got 1.0"),
    ({"credit.fan_out": [0, 8]}, "credit.fan_out.0: expected greater than or equal to 1, got 0"),
    # A critic, for the methods that learn one
    (
        {"credit.method": "mappo", "credit.fan_out": [8, 1], "credit.critic": None},
        "credit.critic: expected a section for method mappo, which learns a critic, got none",
    ),
    (
        {"credit.critic": {"network": "own", "learning_rate": 1e-3}},
        "credit.critic: expected none for method c3, which learns no critic, got a section",
    ),
    (
        {"credit.method": "value_only", "credit.critic": {"learning_rate": 1e-3}},
        "credit.critic.network: expected a value, got nothing",
    ),
    (
        {
            "credit.method": "value_only",
            "credit.critic": {"network": "own", "learning_rate": 1e-3, "critic_only_steps": 5},
        },
        "credit.critic.critic_only_steps: expected fewer than steps (5), so that the policy learns too, got 5",
    ),
    # Turns and their slots
    (
        {"protocol.turns.0.name": "Big Plan"},
        'protocol.turns.0.name: expected a name of small letters, digits and _, got "Big Plan"',
    ),
    ({"protocol.turns.1.name": "plan"}, "protocol.turns.1.name: expected a name no other slot has, got 'plan'"),
    ({"protocol.turns.0.name": "question"}, "protocol.turns.0.name: expected a name no other slot has, got 'question'"),
    *(
        (
            {"protocol.turns.1.user": text},
            "protocol.turns.1.user: expected slots like {question}, {{ and }} for braces, got " + f'"{text}"',
        )
        for text in ("{plan", "plan}", "{}", "{plan!r}", "{plan:3}", "{plan.x}", "{ plan }", "{0}")
    ),
    # What others read of a turn's messages
    ({"protocol.turns.0.visible": "none"}, 'protocol.turns.0.visible: expected a section of fields, got "none"'),
    ({"protocol.turns.0.visible": {"after": ""}}, 'protocol.turns.0.visible.after: expected some text, got ""'),
    (
        {"protocol.turns.0.visible": {"before": "x"}},
        "protocol.turns.0.visible.before: expected a field of the config, got an unknown one",
    ),
    (
        {"protocol.turns.0.visible": {"after": "x", "tag": "answer"}},
        "protocol.turns.0.visible: expected after or tag, got both",
    ),
    (
        {"protocol.turns.0.visible_tokens": 17},
        "protocol.turns.0.visible_tokens: expected at most max_tokens (16), got 17",
    ),
    (
        {
            "protocol.turns.0.visible": {"tag": "plan"},
            "imitation": {"updates": 1, "problems": 1, "learning_rate": 1.0},
        },
        "imitation: expected none while a turn's messages are read in part (demonstrations have no markers), got a"
        " section",
    ),
    (
        {"protocol.turns.1.user": "{plam} {plan}"},
        "protocol.turns.1.user: expected slots of the question or an earlier turn, got {plam}",
    ),
    (
        {"protocol.turns.0.system": "{answer}"},
        "protocol.turns.0.system: expected slots of the question or an earlier turn, got {answer}",
    ),
    (
        {"protocol.turns.1.user": "{plan} {answer}"},
        "protocol.turns.1.user: expected slots of the question or an earlier turn, got {answer}",
    ),
    (
        {"protocol.turns.1.user": "{question}"},
        "protocol.turns.0: expected a later turn with the slot {plan}, got a message that no turn sees",
    ),
    (
        {"protocol.turns.0.user": "plan :", "protocol.turns.1.user": "{plan}"},
        "protocol.turns: expected at least one turn with the slot {question}, got none",
    ),
    (
        {"protocol.turns.0.trained": False, "protocol.turns.1.trained": False},
        "protocol.turns: expected at least one trained turn, got none",
    ),
    # Credit
    (
        {"credit.method": "c4"},
        "credit.method: expected one of c3, no_loo, no_replay, rloo, magrpo, reinforce, grpo, dr_mas, mappo, tree_rl,"
        " hgpo, tree_grpo, maxrl, otb, igpo, rae, value_assisted, value_only, shrunk, c3_replay, at_grpo, vine_ppo,"
        " difference, ccpo, difference_masked, shapley, or your own as module:NAME, got 'c4'",
    ),
    (
        {"credit.method": "difference"},
        "credit.budget: expected 6, the evaluator calls that method difference makes a problem with these draws, got 8",
    ),
    (
        {"credit.method": "c3_replay", "credit.draws": {"episodes": 4}},
        "credit.draws: expected alternatives alone, and no fan_out, for method c3_replay, got {'episodes': 4,"
        " 'continuations': 1} and fan_out None",
    ),
    (
        {"credit.method": "shapley", "credit.fan_out": None, "credit.draws": {"episodes": 2, "continuations": 2}},
        "credit.draws.continuations: expected 1 for method shapley, got 2",
    ),
    (
        {"credit.method": "c3_replay", "credit.budget": 2},
        "credit.draws: method c3_replay would give turn 0 zero credit: expected at least 2 messages in each context of"
        " a trained turn, got 1 from counts (1,)",
    ),
    (
        {"credit.draws": {"alternatives": 4}},
        "credit.draws: expected none for method c3, which draws a tree, got a section",
    ),
    (
        {"credit.method": "coma"},
        "credit.method: coma needs the value of every possible message, which only `c3jax study` knows; expected one"
        " of c3, no_loo, no_replay, rloo, magrpo, reinforce, grpo, dr_mas, mappo, tree_rl, hgpo,"
        " tree_grpo, maxrl, otb, igpo, rae, value_assisted, value_only, shrunk, c3_replay, at_grpo, vine_ppo,"
        " difference, ccpo, difference_masked, shapley",
    ),
    ({"credit.fan_out": [8]}, "credit.fan_out: expected 2 numbers, one a turn, got [8]"),
    ({"credit.fan_out": [2, 2, 2]}, "credit.fan_out: expected 2 numbers, one a turn, got [2, 2, 2]"),
    (
        {"credit.budget": 9},
        "credit.fan_out: expected a product of 9 (credit.budget), got [2, 4] with product 8",
    ),
    (
        {"credit.fan_out": [1, 8]},
        "credit.fan_out: method c3 would give turn 0 zero credit: expected at least 2 messages in each context of a"
        " trained turn, got 1 from fan_out (1, 8)",
    ),
    (
        {"credit.method": "rloo", "credit.fan_out": [2, 4]},
        "credit.fan_out: method rloo compares whole episodes: expected fan_out (B, 1, ..., 1), got (2, 4)",
    ),
    (
        {"credit.method": "grpo", "credit.fan_out": [8, 1], "credit.normalise": "none"},
        "credit.normalise: method grpo: expected normalise group, got 'none'",
    ),
    ({"credit.normalise": "role"}, "credit.normalise: expected 'none', 'group', 'turn' or 'batch', got \"role\""),
    # Sizes that must fit each other
    (
        {"sampling.top_p": 0.9},
        "sampling.top_p: expected 1 while sampling.top_k is 0 (the tokens left to draw from are recorded, so their"
        " number must be bounded), got 0.9",
    ),
    ({"learner.minibatches": 3}, "learner.minibatches: expected a divisor of problems (8), got 3"),
    (
        {"learner.micro_problems": 8},
        "learner.micro_problems: expected a divisor of the 4 problems of a minibatch, got 8",
    ),
    (
        {"learner.kl.target": 0.1},
        "learner.kl.coefficient: expected more than 0 to begin with while learner.kl.target is given (the coefficient"
        " is steered by factors), got 0",
    ),
    (
        {"evaluation.samples": 0, "checkpoint.best": "sampled_accuracy"},
        "checkpoint.best: expected a metric that is measured, got 'sampled_accuracy' with no evaluation.samples",
    ),
    *(
        (
            {"model.width": width, "model.heads": heads, "model.key_value_heads": groups},
            "model.heads: expected an even number of the width's features a head, and key_value_heads that divides"
            f" heads, got width {width}, heads {heads}, key_value_heads {groups}",
        )
        for width, heads, groups in ((32, 3, 3), (32, 4, 3), (12, 4, 2), (32, 32, 32))
    ),
    # Several training sets
    ({"task": NUMERIC | {"path": 7}}, "task.path: expected text or a list, got 7"),
    ({"task": NUMERIC | {"path": ""}}, 'task.path: expected some text or a list, got ""'),
    ({"task": NUMERIC | {"path": []}}, "task.path: expected text or at least one entry, got []"),
    ({"task": NUMERIC | {"path": ["a"]}}, 'task.path.0: expected a section of fields, got "a"'),
    ({"task": NUMERIC | {"path": [{"weight": 1}]}}, "task.path.0.path: expected a value, got nothing"),
    (
        {"task": NUMERIC | {"path": [{"path": "a"}, {"path": "b", "weight": 0}]}},
        "task.path.1.weight: expected greater than 0, got 0",
    ),
    (
        {"task": NUMERIC | {"path": [{"path": "a", "weight": -0.5}]}},
        "task.path.0.weight: expected greater than 0, got -0.5",
    ),
    (
        {"task": NUMERIC | {"path": [{"path": "a", "wieght": 1}]}},
        "task.path.0.wieght: expected a field of the config (weight?), got an unknown one",
    ),
    (
        {"task": NUMERIC | {"path": [{"path": "a"}, {"path": "a"}]}},
        "task.path.1.path: expected a set that is not in the list yet, got 'a' again",
    ),
    ({"data": {"ngram_overlap": "drop"}}, "data.ngram_overlap: expected 'say' or 'refuse', got \"drop\""),
    (
        {"task": NUMERIC},
        "model.kind: expected a pretrained model for task numeric, which has no vocabulary of its own, got 'random'",
    ),
    (
        {"task": {"kind": "no_such_module:RIDDLES"}},
        f"task.kind: expected a module on the path or in {Path.cwd()}, found no 'no_such_module'",
    ),
    (
        {
            "model": {"kind": "folder", "path": "export"},
            "imitation": {"updates": 1, "problems": 1, "learning_rate": 1.0},
        },
        "imitation: expected none for model folder, which is trained already, got a section",
    ),
    (
        {
            "task": NUMERIC,
            "model": {"kind": "smollm2"},
            "imitation": {"updates": 1, "problems": 1, "learning_rate": 1.0},
        },
        "imitation: expected none for task numeric, which demonstrates nothing, got a section",
    ),
    (
        {"policy.kind": "adapters"},
        "policy.kind: expected shared or per_role for model random (adapters correct a network that has been trained"
        " before, and leave it as it is), got 'adapters'",
    ),
    ({"policy.targets": ["up", "up"]}, "policy.targets: expected each projection once, got ['up', 'up']"),
    (
        {
            "policy.kind": "per_role",
            "protocol.turns.0.trained": False,
            "credit.fan_out": [1, 8],
            "imitation": {"updates": 1, "problems": 1, "learning_rate": 1.0},
        },
        "policy.kind: expected shared while role 'planner' has no trained turn and imitation warms every role up (what"
        " per_role does not train comes from the model as loaded), got 'per_role'",
    ),
    # A path that an override cannot follow
    ({"protocol.turns.2.role": "a"}, "protocol.turns.2.role: expected an index below 2 in the list, got '2'"),
    ({"protocol.turns.-1.role": "a"}, "protocol.turns.-1.role: expected an index below 2 in the list, got '-1'"),
    (
        {"protocol.turns.\u00b2.role": "a"},
        "protocol.turns.\u00b2.role: expected an index below 2 in the list, got '\u00b2'",
    ),
    ({"seed.low": 1}, "seed.low: expected a field, got seed, which holds none"),
    ({"lerner": 1}, "lerner: expected a field of the config (learner?), got an unknown one"),
    ({"": 1}, ": expected a field of the config, got an unknown one"),
]


@pytest.mark.parametrize(("overrides", "sentence"), WRONG, ids=[sentence[:60] for _, sentence in WRONG])
def test_what_a_user_can_get_wrong_is_one_sentence(path, overrides, sentence):
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    assert str(caught.value) == sentence


@pytest.mark.parametrize("name", ["method", "fan_out", "budget", "normalise"])
def test_what_the_paper_varies_has_no_default(name):
    tree = deepcopy(TREE)
    del tree["credit"][name]
    with pytest.raises(ConfigError, match=f"^credit.{name}: expected a value, got nothing$"):
        parse_config(tree)


def test_a_long_value_is_cut_short_in_its_sentence(path):
    with pytest.raises(ConfigError) as caught:
        load_config(path, {"seed": "line\n" * 500})
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 100


def test_an_untrained_turn_may_have_one_alternative(path):
    config = load_config(path, {"credit.fan_out": [1, 8], "protocol.turns.0.trained": False})
    assert config.credit.fan_out == (1, 8)
