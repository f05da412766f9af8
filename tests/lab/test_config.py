"""Studies as YAML: read, overridden, written, and refused in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from c3jax.config.file import dump_config, parse_override
from c3jax.config.run import ConfigError
from c3jax.credit import plans
from c3jax.credit.methods import METHODS
from c3jax.lab.config import (
    BenchStudy,
    LearningStudy,
    describe_bench_estimator,
    list_study_fields,
    load_study,
    parse_study,
)
from c3jax.lab.sections import describe_estimator, list_estimator_trained, list_messages, list_trained, make_plan

SHIPPED = sorted((Path(__file__).resolve().parents[2] / "configs" / "studies").glob("*.yaml"))


def make_tree(**changes: Any) -> dict[str, Any]:
    """A small learning study."""
    estimators = [
        {"method": "c3", "plan": {"kind": "tree", "fan_out": [2, 4]}, "normalise": "none"},
        {"method": "rloo", "plan": {"kind": "flat", "episodes": 8}, "normalise": "group"},
    ]
    tree = {
        **{"kind": "learning", "seed": 0, "seeds": 2, "updates": 4, "every": 2, "problems": 4},
        "cases": [{"name": "pair", "game": {"kind": "chain", "messages": 3, "problems": 4}, "estimators": estimators}],
        "policy": {"kind": "tabular"},
        "optimiser": {"learning_rates": [0.1]},
        "evaluation": {"kind": "exact"},
    }
    return tree | changes


def make_case(game: dict[str, Any], *estimators: dict[str, Any]) -> dict[str, Any]:
    return {"name": "a case", "game": game, "estimators": [{"normalise": "none"} | each for each in estimators]}


def plan_of(kind: str, **fields: Any) -> dict[str, Any]:
    return {"kind": kind} | fields


CHAIN = {"kind": "chain", "messages": 3}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_studies_are_read_and_written_back(path, tmp_path):
    config = load_study(path)
    (tmp_path / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    assert load_study(tmp_path / "config.yaml") == config


def test_the_learning_study_is_as_large_as_it_says():
    config = load_study(next(path for path in SHIPPED if path.stem == "learning"))
    assert isinstance(config, LearningStudy)
    methods = {estimator.method for case in config.cases for estimator in case.estimators}
    assert (config.seeds, len(methods), config.updates) == (20, 9, 500)


def test_overrides_reach_into_lists(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(dump_config(parse_study(make_tree())), encoding="utf-8")
    config = load_study(path, {"cases.0.game.messages": 5, "cases.0.estimators.0.plan.fan_out": [4, 2]})
    assert list_messages(config.cases[0].game) == (5, 5)
    assert describe_estimator(config.cases[0].estimators[0]) == "c3 4x2"


def test_an_override_of_text_stays_text():
    assert parse_override("cases.0.name", "12", list_study_fields) == "12"
    assert parse_override("seeds", "12", list_study_fields) == 12


@pytest.mark.parametrize(
    ("section", "turns", "plan", "name"),
    [
        (plan_of("tree", fan_out=[2, 4]), 2, plans.make_tree((2, 4)), "c3 2x4"),
        (plan_of("replay", counts=[4, 2]), 3, plans.make_replay((4, 2), 3), "c3_replay 4+2"),
        (
            plan_of("best_branch", counts=[2, 2]),
            2,
            plans.make_replay((2, 2), 2, continues_best=True),
            "at_grpo 2+2",
        ),
        (plan_of("auxiliary", episodes=2, repeats=3), 2, plans.make_auxiliary(2, 3, 2), "vine_ppo 2+3"),
        (plan_of("coalition", episodes=2), 3, plans.make_arms("coalition", 2, 3), "shapley 2"),
        (plan_of("flat", episodes=8), 3, plans.make_flat(8, 3), "rloo 8"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_plan_is_what_its_section_says(section, turns, plan, name):
    estimator = {"method": name.split()[0], "plan": section, "normalise": "none"}
    config = parse_study(make_tree(cases=[make_case(CHAIN | {"turns": turns}, estimator)]))
    read = config.cases[0].estimators[0]
    assert make_plan(read.plan, turns) == plan
    assert describe_estimator(read) == name


def test_who_is_trained_is_the_games_and_the_estimators():
    game = {"kind": "team_mates", "messages": 3, "turns": 2, "mates": 1, "place": "first"}
    estimator = {"method": "rloo", "plan": plan_of("flat", episodes=4), "untrained": [2]}
    case = parse_study(make_tree(cases=[make_case(game, estimator)])).cases[0]
    assert list_trained(case.game) == (False, True, True)
    assert list_estimator_trained(case.game, case.estimators[0]) == (False, True, False)


C3_FLAT = {"method": "c3", "plan": plan_of("tree", fan_out=[1, 8])}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "lerning"}, ["kind: expected one of learning", "'lerning'"]),
        ({"kind": None}, ["kind: expected one of learning", "nothing"]),
        ({"every": 3}, ["every: expected a divisor of updates (4), got 3"]),
        ({"seeds": 1}, ["seeds: expected", "2", "got 1"]),
        ({"problems": 5}, ["problems: expected at most 4", "cases.0.game.problems", "got 5"]),
        ({"policy": {"kind": "table"}}, ["policy.kind: expected one of tabular, mlp", '"table"']),
        ({"optimiser": {"learning_rates": [0.1, 0.1]}}, ["optimiser.learning_rates: expected different ones"]),
        ({"evaluation": {"kind": "exact", "episodes": 3}}, ["evaluation.episodes", "this evaluation.kind"]),
        ({"polcy": {}}, ["polcy: expected a field of the config (policy?)"]),
        (
            {"cases": [make_case({"kind": "chess"}, C3_FLAT)]},
            ["cases.0.game.kind: expected one of chain, graph", '"chess"'],
        ),
        ({"cases": [make_case(CHAIN | {"turn": 2}, C3_FLAT)]}, ["cases.0.game.turn: expected a field", "(turns?)"]),
        ({"cases": [make_case(CHAIN | {"messages": 1}, C3_FLAT)]}, ["cases.0.game.messages: expected", "got 1"]),
        (
            {"cases": [make_case(CHAIN | {"tokens": [1, 2, 3]}, C3_FLAT)]},
            ["cases.0.game.tokens: expected 2 numbers", "[1, 2, 3]"],
        ),
        (
            {"cases": [make_case({"kind": "graph", "sees": [[], [0], [1, 0]]}, C3_FLAT)]},
            ["cases.0.game.sees.2: expected turns before turn 2 in rising order, got [1, 0]"],
        ),
        ({"cases": [make_case(CHAIN, C3_FLAT)]}, ["cases.0.estimators.0.plan", "turn 0", "at least 2", "(1, 8)"]),
        (
            {"cases": [make_case(CHAIN, C3_FLAT | {"method": "c4"})]},
            ["cases.0.estimators.0.method: expected one of c3", "rloo", "'c4'"],
        ),
        (
            {"cases": [make_case(CHAIN, {"method": "shapley", "plan": plan_of("tree", fan_out=[2, 2])})]},
            ["cases.0.estimators.0.plan", "shapley", "coalition", "got tree"],
        ),
        (
            {"cases": [make_case(CHAIN, {"method": "c3", "plan": plan_of("tree", fan_out=[2, 2, 2])})]},
            ["cases.0.estimators.0.plan.fan_out: expected 2 numbers", "[2, 2, 2]"],
        ),
        (
            {"cases": [make_case(CHAIN, {"method": "c3", "plan": plan_of("bush")})]},
            ["cases.0.estimators.0.plan.kind: expected one of tree, flat, replay, best_branch", '"bush"'],
        ),
        (
            {"cases": [make_case(CHAIN, C3_FLAT | {"method": "grpo", "plan": plan_of("flat", episodes=4)})]},
            ["cases.0.estimators.0.normalise", "grpo", "group", "'none'"],
        ),
        (
            {"cases": [make_case(CHAIN, C3_FLAT | {"untrained": [2]})]},
            ["cases.0.estimators.0.untrained: expected turns below 2, got 2"],
        ),
        (
            {"cases": [make_case(CHAIN, {"method": "coma", "plan": plan_of("flat", episodes=4)})]},
            ["cases.0.estimators.0.method: expected a method", "'coma'"],
        ),
        (
            {"cases": [make_case(CHAIN, *[{"method": "rloo", "plan": plan_of("flat", episodes=4)}] * 2)]},
            ["cases.0.estimators.1: expected each once, got rloo 4 twice"],
        ),
        ({"cases": make_tree()["cases"] * 2}, ["cases.1.name: expected a name no other case has, got 'pair'"]),
        (
            {"cases": [make_case({"kind": "fresh"}, {"method": "rloo", "plan": plan_of("flat", episodes=4)})]},
            ["policy.kind: expected mlp for cases.0", "'tabular'"],
        ),
        (
            {
                "cases": [
                    make_case({"kind": "bandit", "turns": 16}, {"method": "rloo", "plan": plan_of("flat", episodes=4)})
                ]
            },
            ["cases.0.game: expected at most 65536", "4294967296", "16 turns"],
        ),
    ],
    ids=lambda value: "" if isinstance(value, list) else next(iter(value)),
)
def test_a_wrong_study_is_refused_in_one_sentence(changes, words):
    with pytest.raises(ConfigError) as refused:
        parse_study(make_tree(**changes))
    sentence = str(refused.value)
    assert "\n" not in sentence
    assert all(word in sentence for word in words), sentence


def test_a_large_game_may_be_sampled():
    """Sixteen turns are too many to enumerate; a network that is measured by sampling never does."""
    case = make_case({"kind": "bandit", "turns": 16}, {"method": "rloo", "plan": plan_of("flat", episodes=4)})
    config = parse_study(make_tree(cases=[case], policy={"kind": "mlp"}, evaluation={"kind": "sampled"}))
    assert len(list_messages(config.cases[0].game)) == 16


def test_every_field_of_a_study_is_listed_with_a_description():
    fields = {field.path: field for field in list_study_fields()}
    assert {"kind", "seeds", "cases.N.game.kind", "cases.N.estimators.N.plan.counts", "policy.width"} <= set(fields)
    assert all(field.text and field.text != "." for field in fields.values() if not field.path.endswith("kind"))
    assert "learning" in fields["kind"].kind


# --------------------------------------------------------------------------------------------------------------------
# A bench of estimators

SHRUNK = {"method": "shrunk", "plan": plan_of("tree", fan_out=[2, 4])}
AUTO = {"method": "shrunk", "plan": plan_of("auto", budget=8, unit="calls")}
MAPPO = {"method": "mappo", "plan": plan_of("flat", episodes=8)}


def make_bench(*estimators: dict[str, Any], **changes: Any) -> dict[str, Any]:
    tree = {"kind": "bench", "seed": 0, "problems": 2, "samples": 12, "batches": 3}
    return tree | {"cases": [{"name": "pair", "game": CHAIN, "estimators": list(estimators)}]} | changes


@pytest.mark.parametrize(
    ("estimator", "name"),
    [
        (SHRUNK, "shrunk 2x4"),
        (AUTO, "shrunk auto 8 calls"),
        (
            AUTO | {"plan": plan_of("auto", budget=90, unit="tokens", criterion="credit")},
            "shrunk auto 90 tokens, credit",
        ),
        (MAPPO, "mappo 8"),
        (MAPPO | {"critic_error": 0.15, "decay": 0.0, "normalise": "batch"}, "mappo 8 batch, error 0.15, decay 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_tables_call_an_estimator_of_the_bench(estimator, name):
    config = parse_study(make_bench(estimator))
    assert isinstance(config, BenchStudy)
    assert describe_bench_estimator(config.cases[0].estimators[0]) == name


def test_estimators_differ_by_all_that_their_names_say():
    """The same method and plan may come again with another critic or scope, and no other way."""
    others = [MAPPO | {"critic_error": 0.1}, MAPPO | {"decay": 0.5}, MAPPO | {"normalise": "turn"}]
    assert len(parse_study(make_bench(MAPPO, *others)).cases[0].estimators) == 4
    with pytest.raises(ConfigError, match=r"^cases.0.estimators.1: expected each once, got mappo 8 twice$"):
        parse_study(make_bench(MAPPO, MAPPO | {"compare": "ours"}))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"samples": 13}, "samples: expected a multiple of batches (3), got 13"),
        ({"batches": 2, "samples": 12}, "batches: expected greater than or equal to 3, got 2"),
        ({"problems": 1}, "problems: expected greater than or equal to 2, got 1"),
        ({"seeds": 2}, "seeds: expected a field of the config (seed?), got an unknown one"),
        (
            {"cases": [make_case(CHAIN, AUTO | {"method": "c5"}) | {"name": "one"}]},
            f"cases.0.estimators.0.method: expected one of {', '.join(METHODS)}, got 'c5'",
        ),
        (
            {
                "cases": [
                    make_case(
                        CHAIN | {"tokens": [9, 1]},
                        AUTO | {"method": "c3", "plan": plan_of("auto", budget=21, unit="tokens")},
                    )
                ]
            },
            "cases.0.estimators.0.plan: auto: expected a budget of at least 22 tokens for method c3, got 21",
        ),
        (
            {"cases": [make_case(CHAIN, AUTO | {"normalise": "group"})]},
            "cases.0.estimators.0.normalise: method shrunk: expected normalise none or turn or batch, got 'group'",
        ),
        (
            {"cases": [make_case({"kind": "bandit", "turns": 16}, MAPPO)]},
            "cases.0.game: expected at most 65536 joint messages for the exact truth, got 4294967296 from 16 turns",
        ),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_a_wrong_bench_is_refused_in_one_sentence(changes, sentence):
    with pytest.raises(ConfigError) as refused:
        parse_study(make_bench(SHRUNK, **changes))
    assert str(refused.value) == sentence
