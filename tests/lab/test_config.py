"""Studies as YAML: read, overridden, written, and refused in one sentence."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from c3jax.config.file import dump_config, parse_override
from c3jax.credit import plans
from c3jax.credit.method import SCOPES
from c3jax.credit.methods import METHODS
from c3jax.lab.config import BenchStudy, LearningStudy, list_study_fields, load_study, parse_study
from c3jax.lab.families import make_family
from c3jax.lab.sections import (
    Auto,
    Estimator,
    Sizes,
    choose_trained,
    count_costs,
    describe_estimator,
    list_messages,
    list_trained,
    make_plan,
    parse_estimator,
)
from c3jax.schema import ConfigError

SHIPPED = sorted((Path(__file__).resolve().parents[2] / "configs" / "studies").glob("*.yaml"))
CHAIN = {"kind": "chain", "messages": 3}


def make_tree(**changes: Any) -> dict[str, Any]:
    """A small learning study."""
    game = {"kind": "chain", "messages": 3, "problems": 4}
    tree = {
        **{"kind": "learning", "seed": 0, "seeds": 2, "updates": 4, "every": 2, "problems": 4},
        "cases": [{"name": "pair", "game": game, "estimators": ["c3 2x4", "rloo 8 group"]}],
        **{"policy": "tabular", "learning_rates": [0.1]},
    }
    return tree | changes


def make_case(game: dict[str, Any], *estimators: Any) -> dict[str, Any]:
    return {"name": "a case", "game": game, "estimators": list(estimators)}


# --------------------------------------------------------------------------------------------------------------------
# Estimators

WRITTEN = [
    ("c3 2x4", Estimator("c3", Sizes("tree", (2, 4)))),
    ("rloo 8", Estimator("rloo", Sizes("flat", (8,)))),
    ("rloo 8x1", Estimator("rloo", Sizes("tree", (8, 1)))),
    ("c3_replay 4+4", Estimator("c3_replay", Sizes("replay", (4, 4)))),
    ("magrpo 8 group", Estimator("magrpo", Sizes("flat", (8,)), "group")),
    ("vine_ppo 2+3", Estimator("vine_ppo", Sizes("auxiliary", (2, 3)))),
    ("shapley 2", Estimator("shapley", Sizes("coalition", (2,)))),
    ("c3 1x8 group, turn 0 untrained", Estimator("c3", Sizes("tree", (1, 8)), "group", untrained=(0,))),
    ("shrunk auto 8 calls", Estimator("shrunk", Auto("auto", 8, "calls", "gradient"))),
    ("c3 auto 90 tokens batch, credit", Estimator("c3", Auto("auto", 90, "tokens", "credit"), "batch")),
    (
        "mappo 8 batch, error 0.15, discount 0.9, decay 0",
        Estimator("mappo", Sizes("flat", (8,)), "batch", error=0.15, discount=0.9, decay=0.0),
    ),
    ("value_assisted 2x2, share 0.25", Estimator("value_assisted", Sizes("tree", (2, 2)), share=0.25)),
    ("c3 2x4, error 0.1, mean 0.5", Estimator("c3", Sizes("tree", (2, 4)), error=0.1, mean=0.5)),
]


@pytest.mark.parametrize(("text", "estimator"), WRITTEN, ids=[text for text, _ in WRITTEN])
def test_an_estimator_is_read_as_it_is_printed(text, estimator):
    assert parse_estimator(text) == estimator
    assert describe_estimator(estimator) == text


def list_every_estimator() -> list[Estimator]:
    """Every method on every form of plan that it may stand on, in every scope, with every extra and with none."""
    sizes = {
        "auxiliary": [(2, 3)],
        **dict.fromkeys(("removal", "first_removal", "masked", "coalition"), [(4,)]),
        **dict.fromkeys(("replay", "best_branch"), [(2, 1), (3,), (1, 1, 1, 1)]),
    }
    drawn: list[Estimator] = []
    for method, row in METHODS.items():
        own = [Sizes(row.sampling, numbers) for numbers in sizes.get(row.sampling, [])]
        if row.sampling in ("tree", "flat"):
            own = [Sizes("flat", (8,)), Sizes("tree", (2, 4)), Sizes("tree", (12, 1, 1))]
            own += [Auto("auto", 24, unit, what) for unit in ("calls", "tokens") for what in ("gradient", "credit")]
        for plan, scope in itertools.product(own, SCOPES):
            plain = Estimator(method, plan, scope)
            changed = {
                "error": 1e-7,
                "discount": 0.123456789,
                "decay": 0.0,
                "share": 0.5,
                "mean": 0.3,
                "untrained": (0, 2),
            }
            drawn += [plain, *(plain._replace(**{name: value}) for name, value in changed.items())]
            drawn.append(plain._replace(**changed))
    return drawn


def test_every_estimator_is_printed_as_a_text_of_its_own_and_read_back():
    estimators = list_every_estimator()
    texts = [describe_estimator(estimator) for estimator in estimators]
    assert len(set(texts)) == len(texts) > 1000
    assert [parse_estimator(text) for text in texts] == estimators


def test_every_shipped_estimator_is_written_as_tables_print_it():
    for path in SHIPPED:
        config = load_study(path)
        lines = {line.strip(" -") for part in path.read_text(encoding="utf-8").split("[") for line in part.split("\n")}
        words = {word.strip(" ]") for line in lines for word in [line, *line.split(", ")]}
        cases = getattr(config, "cases", [config] if config.kind == "text" else [])
        for estimator in [each for case in cases for each in case.estimators]:
            text = describe_estimator(estimator)
            assert parse_estimator(text) == estimator and text in words, (path.name, text)


def test_a_method_of_ones_own_is_written_as_any_other():
    text = f"{Path(__file__).parents[2] / 'examples' / 'own_method.py'}:BLENDED 2x4 batch"
    estimator = parse_estimator(text)
    assert estimator.plan == Sizes("tree", (2, 4)) and describe_estimator(estimator) == text


def test_space_is_free():
    assert parse_estimator("  c3   2x4  group ") == parse_estimator("c3 2x4 group")


@pytest.mark.parametrize(
    ("text", "turns", "plan"),
    [
        ("c3 2x4", 2, plans.make_tree((2, 4))),
        ("c3_replay 4+2", 3, plans.make_replay((4, 2), 3)),
        ("at_grpo 2+2", 2, plans.make_replay((2, 2), 2, continues_best=True)),
        ("vine_ppo 2+3", 2, plans.make_auxiliary(2, 3, 2)),
        ("difference 2", 3, plans.make_arms("removal", 2, 3)),
        ("difference_masked 2", 3, plans.make_arms("masked", 2, 3)),
        ("shapley 2", 3, plans.make_arms("coalition", 2, 3)),
        ("ccpo 4", 2, plans.make_arms("first_removal", 4, 2)),
        ("rloo 8", 3, plans.make_flat(8, 3)),
        ("rloo 8x1x1", 3, plans.make_flat(8, 3)),
    ],
)
def test_a_plan_is_what_its_sizes_say(text, turns, plan):
    assert make_plan(parse_estimator(text).plan, turns) == plan


@pytest.mark.parametrize(
    ("estimator", "words"),
    [
        (
            "nowhere.py:MINE 2x4",
            ["expected a method that can be loaded (credit.method: expected a file, found none at"],
        ),
        ("c4 2x4", ["expected one of c3, no_loo", "coma, or your own as module:NAME, and its sizes", '"c4 2x4"']),
        ("c3", ["expected an estimator in one line, as in c3 2x4", '"c3"']),
        ("c3 2x0", ["expected an estimator in one line"]),
        ("c3 2x4 grupp", ["expected an estimator in one line"]),
        ("c3 2x4, turn 0", ["expected an estimator in one line"]),
        ("c3 2+4", ["expected sizes of c3 as in c3 2x4", '"c3 2+4"']),
        ("shapley 2x2", ["expected sizes of shapley as in shapley 2, got"]),
        ("vine_ppo 2", ["expected sizes of vine_ppo as in vine_ppo 2+2, got"]),
        ("c3 2x4, credit", ["expected credit, a criterion, only where auto chooses the sizes"]),
        ("mappo 8, decay 1.5", ["expected at most 1 for discount, decay, share and mean"]),
        (8, ["expected an estimator in one line", "got 8"]),
        ({"plan": "c3 2x4"}, ["estimators.0.plan: expected method and sizes in one line, as in c3 2x4"]),
        ("c3 1x8", ["method c3 would give turn 0 zero credit", "at least 2", "(1, 8)"]),
        ("c3 2x2x2", ["expected 2 sizes, one a turn, got 'c3 2x2x2'"]),
        ("grpo 4", ["method grpo: expected normalise group, got 'none'"]),
        ("c3 2x2, turn 2 untrained", ["expected untrained turns below 2, got 2"]),
        ("reinforce 4, mean 0.5", ["expected a mean beside a baseline of returns (rae is all mean), got 'reinforce"]),
        ("shrunk 2x2, mean 0.5", ["expected a mean beside a baseline of returns (rae is all mean), got 'shrunk"]),
        ("coma 4", ["expected a method with no critic or one of contexts", "'coma'"]),
        ("shrunk auto 8 calls", ["expected beside sizes and scope only untrained, discount, decay, mean, got 'shrunk"]),
        (
            "mappo 8, error 0.1",
            ["expected beside sizes and scope only untrained, discount, decay, mean, got 'mappo 8,"],
        ),
    ],
    ids=str,
)
def test_a_wrong_estimator_is_refused_in_one_sentence(estimator, words):
    with pytest.raises(ConfigError, match=r"^cases\.0\.estimators\.0") as refused:
        parse_study(make_tree(cases=[make_case(CHAIN, estimator)]))
    sentence = str(refused.value)
    assert "\n" not in sentence
    assert all(word in sentence for word in words), sentence


# --------------------------------------------------------------------------------------------------------------------
# Studies of training runs


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_studies_are_read_and_written_back(path, tmp_path):
    config = load_study(path)
    (tmp_path / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    assert load_study(tmp_path / "config.yaml") == config


def test_the_learning_study_is_as_large_as_it_says():
    config = load_study(next(path for path in SHIPPED if path.stem == "learning"))
    assert isinstance(config, LearningStudy)
    methods = {estimator.method for case in config.cases for estimator in case.estimators}
    assert (config.seeds, len(methods), config.updates) == (20, 10, 500)


def test_overrides_reach_into_lists(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(dump_config(parse_study(make_tree())), encoding="utf-8")
    words = parse_override("cases.0.estimators.0", "c3 4x2, turn 1 untrained", list_study_fields)
    config = load_study(path, {"cases.0.game.messages": 5, "cases.0.estimators.0": words})
    assert isinstance(config, LearningStudy)
    assert list_messages(config.cases[0].game) == (5, 5)
    assert describe_estimator(config.cases[0].estimators[0]) == "c3 4x2, turn 1 untrained"


def test_an_override_of_text_stays_text():
    assert parse_override("cases.0.name", "12", list_study_fields) == "12"
    assert parse_override("seeds", "12", list_study_fields) == 12


def test_who_is_trained_is_the_games_and_the_estimators():
    game = {"kind": "chain", "messages": 3, "turns": 2, "mates": 1, "mates_speak": "first"}
    case = parse_study(make_tree(cases=[make_case(game, "rloo 4, turn 2 untrained")])).cases[0]
    assert list_trained(case.game) == make_family(case.game).shape.trained == (False, True, True)
    assert choose_trained(list_trained(case.game), case.estimators[0]) == (False, True, False)


def test_the_parts_of_a_game_go_together():
    """A graph with team-mates first: their turns come before, and what is read moves up with the turns."""
    game = {"kind": "fresh", "turns": 3, "reads": [[], [0], [0]], "mates": 2, "mates_speak": "first", "features": 5}
    case = parse_study(make_tree(policy="mlp", cases=[make_case(game, "rloo 4")])).cases[0]
    family = make_family(case.game)
    assert family.shape.sees == ((), (), (), (2,), (2,))
    assert family.shape.messages == list_messages(case.game) == (4,) * 5
    assert (family.is_fresh, family.features) == (True, 5)


@pytest.mark.parametrize(
    ("plan", "costs"),
    [
        (plans.make_flat(4, 2), (4, 8, 4 * 3 + 4 * 1)),
        (plans.make_tree((2, 2)), (4, 6, 2 * 3 + 4 * 1)),
        # At the first turn 2 alternatives and the second turn's 3 continuations, at the second 2, scored 3 times.
        (plans.make_replay((1, 2), 2), (6, 7, 2 * 3 + 5 * 1)),
        # Removal generates the second turn again where the first was removed; a masked copy generates nothing.
        (plans.make_arms("removal", 2, 2), (6, 6, 2 * 3 + 4 * 1)),
        (plans.make_arms("masked", 2, 2), (6, 4, 2 * 3 + 2 * 1)),
        # An episode, two from the problem's start, and two from the context that the episode reached.
        (plans.make_auxiliary(1, 2, 2), (5, 8, 3 * 3 + 5 * 1)),
    ],
    ids=lambda value: value.form if isinstance(value, plans.Plan) else "",
)
def test_costs_of_a_plan_by_hand(plan, costs):
    found = count_costs(plan, (3.0, 1.0))
    assert (found["calls"], found["messages"], found["tokens"]) == costs


FIELDS = [
    ({"kind": "lerning"}, ["kind: expected one of learning", "'lerning'"]),
    ({"kind": None}, ["kind: expected one of learning", "nothing"]),
    ({"every": 3}, ["every: expected a divisor of updates (4), got 3"]),
    ({"seeds": 1}, ["seeds: expected", "2", "got 1"]),
    ({"problems": 5}, ["problems: expected at most 4", "cases.0.game.problems", "got 5"]),
    ({"policy": "table"}, ["policy: expected 'tabular' or 'mlp'", '"table"']),
    ({"learning_rates": [0.1, 0.1]}, ["learning_rates: expected different ones, got [0.1, 0.1]"]),
    ({"polcy": {}}, ["polcy: expected a field of the config (policy?)"]),
    ({"policy": {"kind": "mlp"}}, ["policy.kind: expected policy, policy_scale and policy_width instead, got"]),
    ({"optimiser": {"learning_rates": [1]}}, ["optimiser.learning_rates.0: expected optimiser, learning_rates and"]),
    ({"evaluation": {"kind": "exact"}}, ["evaluation.kind: expected episodes, 0 for exact evaluation"]),
    ({"gae": {"decay": 0.5}}, ["gae.decay: expected discount and decay of an estimator, as in mappo 8, decay 0.5"]),
    ({"compare_alone": 2}, ["compare_alone: expected python -m benchmarks sweep"]),
    ({"cases": make_tree()["cases"] * 2}, ["cases.1.name: expected a name no other case has, got 'pair'"]),
    ({"problems": 3, "minibatches": 2}, ["minibatches: expected a divisor of problems (3), got 2"]),
    ({"losses": []}, ["losses: expected"]),
    ({"losses": [{"kind": "pqo"}]}, ["losses.0.kind: expected", "pqo"]),
    (
        {"losses": [{"kind": "ppo"}, {"kind": "cispo", "dual_clip": 2.0}]},
        ["losses.1.dual_clip: expected none for cispo"],
    ),
    ({"losses": [{"clip_low": 0.1}, {"clip_low": 0.1}]}, ["losses.1: expected each once, got ppo clip_low 0.1 twice"]),
    (
        {"cases": [make_case(CHAIN, "rloo 4", "rloo  4")]},
        ["cases.0.estimators.1: expected each once, got rloo 4 twice"],
    ),
]
GAMES = [
    ({"kind": "chess"}, ["cases.0.game.kind: expected one of chain, fresh, bandit, answer", '"chess"']),
    (CHAIN | {"turn": 2}, ["cases.0.game.turn: expected a field", "(turns?)"]),
    (CHAIN | {"messages": 1}, ["cases.0.game.messages: expected", "got 1"]),
    (CHAIN | {"tokens": [1, 2, 3]}, ["cases.0.game.tokens: expected 2 numbers", "[1, 2, 3]"]),
    (CHAIN | {"place": "last"}, ["cases.0.game.place: expected mates_speak instead, got the old name"]),
    ({"kind": "fresh", "heldout": 9}, ["cases.0.game.heldout: expected problems instead, got the old name"]),
    ({"kind": "graph", "sees": [[], [0]]}, ["cases.0.game.sees.1.0: expected reads instead, got the old name"]),
    (CHAIN | {"reads": "some"}, ["cases.0.game.reads: expected 'all', 'previous' or 'none' or a list", '"some"']),
    (CHAIN | {"turns": 3, "reads": [[], [0]]}, ["cases.0.game.reads: expected 3 lists, one a turn, got 2"]),
    (
        CHAIN | {"turns": 3, "reads": [[], [0], [1, 0]]},
        ["cases.0.game.reads.2: expected turns before turn 2 in rising order, got [1, 0]"],
    ),
    ({"kind": "fresh"}, ["policy: expected mlp for cases.0", "'tabular'"]),
    ({"kind": "bandit", "turns": 16}, ["cases.0.game: expected at most 65536", "4294967296", "16 turns"]),
]


@pytest.mark.parametrize(
    ("changes", "words"),
    FIELDS + [({"cases": [make_case(game, "rloo 4")]}, words) for game, words in GAMES],
    ids=lambda value: value[0][:40] if isinstance(value, list) else "",
)
def test_a_wrong_study_is_refused_in_one_sentence(changes, words):
    with pytest.raises(ConfigError) as refused:
        parse_study(make_tree(**changes))
    sentence = str(refused.value)
    assert "\n" not in sentence
    assert all(word in sentence for word in words), sentence


def test_a_large_game_may_be_sampled():
    """Sixteen turns are too many to enumerate; a network that is measured by sampling never does."""
    case = make_case({"kind": "bandit", "turns": 16}, "rloo 4")
    config = parse_study(make_tree(cases=[case], policy="mlp", episodes=8))
    assert isinstance(config, LearningStudy) and len(list_messages(config.cases[0].game)) == 16
    with pytest.raises(ConfigError, match="joint messages for exact evaluation"):
        parse_study(make_tree(cases=[case], policy="mlp"))


def test_every_field_of_a_study_is_listed_with_a_description():
    fields = {field.path: field for field in list_study_fields()}
    assert {"kind", "seeds", "cases.N.game.kind", "cases.N.estimators", "policy_width", "ours"} <= set(fields)
    assert all(field.text and field.text != "." for field in fields.values() if not field.path.endswith("kind"))
    assert "learning" in fields["kind"].kind
    assert fields["cases.N.estimators"].kind == "list of text"


# --------------------------------------------------------------------------------------------------------------------
# A bench of estimators


def make_bench(*estimators: str, **changes: Any) -> dict[str, Any]:
    tree = {"kind": "bench", "seed": 0, "problems": 2, "samples": 12, "batches": 3}
    return tree | {"cases": [{"name": "pair", "game": CHAIN, "estimators": list(estimators)}]} | changes


def test_estimators_differ_by_all_that_their_names_say():
    """The same method and sizes may come again with another critic or scope, and no other way."""
    config = parse_study(make_bench("mappo 8", "mappo 8, error 0.1", "mappo 8, decay 0.5", "mappo 8 turn"))
    assert isinstance(config, BenchStudy) and len(config.cases[0].estimators) == 4
    with pytest.raises(ConfigError, match=r"^cases.0.estimators.1: expected each once, got mappo 8 twice$"):
        parse_study(make_bench("mappo 8", "mappo 8, decay 1"))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"samples": 13}, "samples: expected a multiple of batches (3), got 13"),
        ({"batches": 2, "samples": 12}, "batches: expected greater than or equal to 3, got 2"),
        ({"problems": 1}, "problems: expected greater than or equal to 2, got 1"),
        ({"seeds": 2}, "seeds: expected a field of the config (seed?), got an unknown one"),
        ({"ours": ["shrunk 2x4", "shrunk 2x2"]}, "ours.1: expected an estimator of a case, got 'shrunk 2x2'"),
        (
            {"cases": [make_case(CHAIN, "c5 auto 8 calls")]},
            f"cases.0.estimators.0: expected one of {', '.join(METHODS)}, or your own as module:NAME, and its"
            ' sizes, got "c5 auto 8 calls"',
        ),
        (
            {"cases": [make_case(CHAIN | {"tokens": [9, 1]}, "c3 auto 21 tokens")]},
            "cases.0.estimators.0: auto: expected a budget of at least 22 tokens for method c3, got 21",
        ),
        (
            {"cases": [make_case(CHAIN, "shrunk auto 8 calls group")]},
            "cases.0.estimators.0: method shrunk: expected normalise none or turn or batch, got 'group'",
        ),
        (
            {"cases": [make_case(CHAIN, "c3 2x4, turn 0 untrained")]},
            "cases.0.estimators.0: expected beside sizes and scope only auto, error, decay, share, mean,"
            " got 'c3 2x4, turn 0 untrained'",
        ),
        (
            {"cases": [make_case({"kind": "bandit", "turns": 16}, "mappo 8")]},
            "cases.0.game: expected at most 65536 joint messages for the exact truth, got 4294967296 from 16 turns",
        ),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_a_wrong_bench_is_refused_in_one_sentence(changes, sentence):
    with pytest.raises(ConfigError) as refused:
        parse_study(make_bench("shrunk 2x4", **changes))
    assert str(refused.value) == sentence
