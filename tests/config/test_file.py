"""Configs as YAML: read, overridden, written and listed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from c3jax.config.fields import list_fields
from c3jax.config.file import dump_config, load_config, parse_config, parse_override
from c3jax.config.run import ConfigError, RunConfig, slots_of

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# Of the paper's runs the parts are no configs by themselves.
SHIPPED = sorted(
    path for path in CONFIGS.rglob("*.yaml") if not {"studies", "parts"} & set(path.relative_to(CONFIGS).parts)
)

TEXT = """
seed: 3
steps: 5
problems: 8
task: {kind: arithmetic, train_problems: 64}
protocol:
  question_tokens: 32
  turns:
    - {name: plan, role: planner, system: "plan {{well}} .", user: "{question} plan :", max_tokens: 16}
    - {name: answer, role: solver, user: "{question} {plan} answer :", max_tokens: 4}
model: {kind: random, width: 32, heads: 2, key_value_heads: 2}
credit: {method: c3, fan_out: [2, 4], budget: 8, normalise: none}
learner: {learning_rate: 4e-3, minibatches: 2}
"""
NUMERIC = {"kind": "numeric", "path": "train.jsonl", "heldout_path": "test.jsonl"}
THREE_TURNS = [
    {"name": name, "role": "a", "user": "{question} " + slots + ":", "max_tokens": 4}
    for name, slots in (("one", ""), ("two", "{one}"), ("three", "{two}"))
]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "team.yaml"
    path.write_text(TEXT, encoding="utf-8")
    return path


def make_tree() -> dict[str, Any]:
    """The config above without YAML's help."""
    plan = {"name": "plan", "role": "planner", "system": "plan {{well}} .", "user": "{question} plan :"}
    answer = {"name": "answer", "role": "solver", "user": "{question} {plan} answer :"}
    return {
        "seed": 3,
        "steps": 5,
        "problems": 8,
        "task": {"kind": "arithmetic", "train_problems": 64},
        "protocol": {"question_tokens": 32, "turns": [plan | {"max_tokens": 16}, answer | {"max_tokens": 4}]},
        "model": {"kind": "random", "width": 32, "heads": 2, "key_value_heads": 2},
        "credit": {"method": "c3", "fan_out": [2, 4], "budget": 8, "normalise": "none"},
        "learner": {"learning_rate": 0.004, "minibatches": 2},
    }


# --------------------------------------------------------------------------------------------------------------------
# Reading and writing


def test_a_config_is_read_as_it_is_written(path):
    config = load_config(path)
    assert config == parse_config(make_tree())
    assert config.learner.learning_rate == 0.004 and config.credit.fan_out == (2, 4)
    assert config.learner.epochs == 1 and config.imitation is None  # defaults
    assert [slots_of(turn) for turn in config.protocol.turns] == [["question"], ["question", "plan"]]
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 4


@pytest.mark.parametrize("shipped", SHIPPED, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_shipped_configs_are_read_and_written_back(shipped, tmp_path):
    config = load_config(shipped)
    (tmp_path / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    assert load_config(tmp_path / "config.yaml") == config


def test_there_is_a_shipped_config():
    assert CONFIGS / "quickstart.yaml" in SHIPPED


@pytest.mark.parametrize(
    "role", ["4e-3", "1e5", "no", "null", "2020-01-01", " a ", "a: b # c", "grün\n\t\x07", "'", "\N{ROCKET}", "x " * 99]
)
def test_any_text_is_written_so_that_it_is_read_back(path, role):
    config = load_config(path, {"protocol.turns.0.role": role, "learner.adam_eps": 1e-08})
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path) == config and config.protocol.turns[0].role == role


@pytest.mark.parametrize(
    ("written", "number"),
    [("4e-3", 0.004), ("1E+2", 100.0), (".5e1", 5.0), ("5.e-1", 0.5), ("0.25", 0.25), ("1_0e1", 100.0), ("3", 3.0)],
)
def test_numbers_are_read_as_people_write_them(path, written, number):
    path.write_text(TEXT.replace("4e-3", written), encoding="utf-8")
    assert load_config(path).learner.learning_rate == number


def test_a_part_that_yaml_repeats_is_overridden_in_one_place(path):
    turns = "&t {name: a, role: a, user: '{question} {a}', max_tokens: 4}"
    tree = make_tree()
    tree["protocol"]["turns"] = "TURNS"
    text = yaml.safe_dump(tree).replace("TURNS", f"\n  - {turns}\n  - {{<<: *t, name: b}}")
    path.write_text(text, encoding="utf-8")
    config = load_config(path, {"protocol.turns.0.user": "{question} :", "protocol.turns.0.role": "other"})
    assert [(turn.name, turn.role, turn.user) for turn in config.protocol.turns] == [
        ("a", "other", "{question} :"),
        ("b", "a", "{question} {a}"),
    ]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"seed: [", r"not valid YAML \(line 1: expected the node content, but found '<stream end>'\)"),
        (b"seed: 1\nseed: 2", r"not valid YAML \(line 1: the key 'seed' is given twice\)"),
        (b"seed: 1\nlearner:\n  clip: 1\n  clip: 1", r"not valid YAML \(line 3: the key 'clip' is given twice\)"),
        (b"a: b: c", r"not valid YAML \(line 1: mapping values are not allowed here\)"),
        (b"a: !!python/object:os.system x", r"not valid YAML \(line 1: could not determine a constructor for .*\)"),
        (b"a: 2020-13-45", r"not valid YAML \(month must be in 1..12\)"),
        (b"2020-01-01: 1", r"not valid YAML \(keys must be str, .*\)"),
        (b"a: &x [*x]", r"not valid YAML \(Circular reference detected\)"),
        (b"a: \x07", r"not valid YAML \(unacceptable character .*\)"),
        pytest.param(b"[" * 5000, r"not valid YAML \(too many levels\)", id="deep"),
        pytest.param(
            b"a0: &a0 1\n"
            + b"".join(b"a%d: &a%d [%s]\n" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 9)),
            r"not valid YAML \(more than 100,000 parts, .*\)",
            id="repeated",
        ),
        (b"", "expected a mapping of sections, got null"),
        (b"- 1", r"expected a mapping of sections, got \[1\]"),
        (b"seed", 'expected a mapping of sections, got "seed"'),
        (b"seed: \xff", r"cannot be read \(it is not UTF-8 text\)"),
    ],
)
def test_what_is_no_config_at_all_is_said_in_one_line(path, content, sentence):
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert re.fullmatch(f"config {re.escape(str(path))}: {sentence}", str(caught.value))


def test_a_path_that_is_no_file_is_said(tmp_path):
    with pytest.raises(
        ConfigError, match="^.*/none.yaml: expected a YAML file, or one of code_repair, debate, .*, found none$"
    ):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r"^config .*: cannot be read \(Is a directory\)$"):
        load_config(tmp_path)


# --------------------------------------------------------------------------------------------------------------------
# Overrides


@pytest.mark.parametrize(
    ("dotted", "text", "value"),
    [
        ("learner.learning_rate", "4e-3", 0.004),
        ("sampling.top_p", "-0.5", -0.5),
        ("seed", "-3", -3),
        ("learner.micro_problems", "null", None),
        ("protocol.turns.0.trained", "false", False),
        ("credit.fan_out", "[4, 2]", [4, 2]),
        ("task", "{kind: numeric, path: a}", {"kind": "numeric", "path": "a"}),
        ("seed", "2020-01-01", "2020-01-01"),
        ("seed", "2020-13-45", "2020-13-45"),
        ("seed", "[", "["),
        ("unknown", "{a", "{a"),
        # For a field of text, the text itself
        ("protocol.turns.0.user", "{question}", "{question}"),
        ("protocol.turns.1.user", "Solve: {question}", "Solve: {question}"),
        ("protocol.turns.1.role", "null", "null"),
        ("task.path", "007", "007"),
        ("task.path", "[{path: a, weight: 2}, {path: b}]", [{"path": "a", "weight": 2}, {"path": "b"}]),
        ("task.path", "{a}.jsonl", "{a}.jsonl"),
        ("task.path", "[ab", "[ab"),
        ("task.path.0.path", "007", "007"),
        ("credit.method", "no", "no"),
    ],
)
def test_an_override_is_read_for_its_field(dotted, text, value):
    read = parse_override(dotted, text)
    assert read == value and type(read) is type(value)


def test_overrides_reach_sections_lists_and_what_is_not_there_yet(path):
    config = load_config(
        path,
        {
            "seed": 9,
            "protocol.turns.1.max_tokens": 7,
            "credit.fan_out.0": 4,
            "credit.fan_out.1": 2,
            "learner.kl.coefficient": 0.5,  # a section that the file leaves out
            "imitation.updates": 1,
            "imitation.problems": 2,
            "imitation.learning_rate": 0.5,
            "checkpoint": {"keep": 7},
        },
    )
    assert config.seed == 9 and config.protocol.turns[1].max_tokens == 7 and config.credit.fan_out == (4, 2)
    assert config.learner.kl.coefficient == 0.5 and config.learner.kl.estimator == "k3"
    assert config.imitation is not None and config.imitation.problems == 2 and config.checkpoint.keep == 7
    untouched = load_config(path)
    assert config.model == untouched.model and config.protocol.turns[0] == untouched.protocol.turns[0]


def test_the_last_of_two_overrides_holds(path):
    overrides = {"learner.kl": {"coefficient": 0.1, "target": 2.0}, "learner.kl.target": None}
    assert load_config(path, overrides).learner.kl.target is None


def test_a_message_is_read_whole_by_default_and_by_all(path):
    part = load_config(path, {"protocol.turns.0.visible.after": "</think>"}).protocol.turns[0].visible
    assert (part.after, part.tag) == ("</think>", None)
    for value in ("all", {}):
        assert load_config(path, {"protocol.turns.0.visible": value}) == load_config(path)


# --------------------------------------------------------------------------------------------------------------------
# A fan-out that is a list or auto


def test_a_fan_out_may_be_chosen_by_the_run(path):
    auto = {"credit.fan_out": "auto", "credit.auto.unit": "messages", "credit.budget": 16, "credit.decay": 0.5}
    config = load_config(path, auto | {"credit.method": "shrunk"})
    assert (config.credit.fan_out, config.credit.auto.unit, config.credit.decay) == ("auto", "messages", 0.5)
    assert (config.credit.auto.criterion, config.credit.auto.every) == ("gradient", 20)
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path) == config
    assert load_config(path, {"credit.fan_out": [4, 2], "credit.budget": 8}).credit.fan_out == (4, 2)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"fan_out": 3}, "credit.fan_out: expected a list or 'auto', got 3"),
        ({"fan_out": "foo"}, "credit.fan_out: expected a list or 'auto', got \"foo\""),
        ({"fan_out": []}, "credit.fan_out: expected at least one entry or 'auto', got []"),
        ({"fan_out": [2, 0]}, "credit.fan_out.1: expected greater than or equal to 1, got 0"),
        ({"fan_out": [2, "x"]}, 'credit.fan_out.1: expected an integer, got "x"'),
        ({"decay": 1.0}, "credit.decay: expected less than 1, got 1.0"),
        (
            {"fan_out": "auto", "budget": 3},
            "credit.fan_out: auto: expected a budget of at least 4 calls for method c3, got 3",
        ),
        # Two messages of 16 tokens and four of 4, the most that the turns may write.
        (
            {"fan_out": "auto", "budget": 47, "auto": {"unit": "tokens"}},
            "credit.fan_out: auto: expected a budget of at least 48 tokens for method c3, got 47",
        ),
        (
            {"fan_out": "auto", "method": "rloo"},
            "credit.fan_out: auto: expected a method of c3, no_loo, shrunk, got 'rloo'",
        ),
        (
            {"method": "shrunk", "normalise": "group"},
            "credit.normalise: method shrunk: expected normalise none or turn or batch, got 'group'",
        ),
    ],
    ids=str,
)
def test_a_fan_out_that_cannot_be_is_refused_in_one_sentence(path, overrides, sentence):
    with pytest.raises(ConfigError) as caught:
        load_config(path, {f"credit.{name}": value for name, value in overrides.items()})
    assert str(caught.value) == sentence


def test_a_budget_of_the_smallest_tree_is_enough(path):
    auto = {"credit.fan_out": "auto", "credit.auto.unit": "tokens", "credit.budget": 48}
    assert load_config(path, auto).credit.fan_out == "auto"
    # Where only the answer is trained, the planner may speak once: 16 + 2 * 4.
    last = load_config(path, auto | {"credit.budget": 24, "protocol.turns.0.trained": False})
    assert not last.protocol.turns[0].trained


# --------------------------------------------------------------------------------------------------------------------
# The list of fields

# Another value for every field, in a config where it is allowed.
PRETRAINED = {"task": NUMERIC, "model": {"kind": "folder", "path": "somewhere"}}
HUB = {"task": NUMERIC, "model": {"kind": "hub", "name": "somebody/model"}}
MIXED = PRETRAINED | {"task": NUMERIC | {"path": [{"path": "a.jsonl"}, {"path": "b.jsonl", "weight": 2.0}]}}
GENERATED = PRETRAINED | {"task": {"kind": "reasoning", "generator": "countdown"}}
PROGRAMS = PRETRAINED | {"task": NUMERIC | {"kind": "code"}}
GAMES = {"task": {"kind": "number"}}
STORIES = {"task": {"kind": "stories"}, "model": {"kind": "smollm2"}}
CRITIC = {"credit.method": "mappo", "credit.fan_out": [8, 1], "credit.critic": {"network": "own", "learning_rate": 0.1}}
SUITE = {"name": "one", "kind": "math", "path": "one.jsonl", "fields": {}, "problems": None, "samples": None}
FIELDS = {"question": ["Body", "Question"], "answer": "Answer"}
SUITED = {"evaluation.suites": [SUITE | {"path": "other.jsonl"}]}
TOOL = {"name": "tool", "environment": {"kind": "calculator"}, "max_tokens": 4}
ANSWERED = {
    "protocol.turns": [TOOL, {"name": "actor", "role": "actor", "user": "{question} {tool} :", "max_tokens": 4}],
    "credit.fan_out": [1, 8],
}
ANOTHER = {
    "task.kind": ("numeric", {"task": {k: v for k, v in NUMERIC.items() if k != "kind"}, "model": {"kind": "smollm2"}}),
    "task.path": ("other.jsonl", PRETRAINED),
    "task.path.N.path": ("other.jsonl", MIXED),
    "task.path.N.weight": (0.75, MIXED),
    "task.heldout_path": ("other.jsonl", PRETRAINED),
    "data.ngram_overlap": ("refuse", {}),
    "data.drop_overlap": (True, {}),
    "task.limit": (4, PRETRAINED),
    "task.fields": (FIELDS, PRETRAINED),
    "task.path.N.fields": (FIELDS, MIXED),
    "task.changes": (4, STORIES),
    "task.largest": (4, STORIES),
    "task.loss_share": (0.75, STORIES),
    "task.span": (5, GAMES),
    "task.highest": (9, GAMES),
    "task.generator": ("puzzle24", GENERATED),
    "task.settings": ({"min_numbers": 3}, GENERATED),
    "task.threshold": (0.5, GENERATED),
    "task.reward": ("fraction", PROGRAMS),
    "task.timeout": (2.5, PROGRAMS),
    "task.wall": (90.0, PROGRAMS),
    "task.memory": (512, PROGRAMS),
    "task.output": (4, PROGRAMS),
    "model.kind": ("smollm2", {"task": NUMERIC, "model": {}}),
    "model.path": ("elsewhere", PRETRAINED),
    "model.name": ("somebody/other", HUB),
    "model.revision": ("0123abc", HUB),
    "model.family": ("qwen2", PRETRAINED),
    "model.heads": (8, {}),
    "model.key_value_heads": (1, {}),
    "protocol.turns": (THREE_TURNS, {"credit.fan_out": [2, 2, 2]}),
    "protocol.turns.N.name": ("idea", {"protocol.turns.1.user": "{question} {idea} :"}),
    "protocol.turns.N.user": ("say {question} :", {}),
    "protocol.turns.N.unless_done": (True, ANSWERED),
    "protocol.turns.N.environment.kind": ("examples.own_environment:NUMBER", ANSWERED),
    "protocol.turns.N.environment.settings": (
        *({"most": 9}, ANSWERED | {"protocol.turns.0.environment.kind": "examples.own_environment:NUMBER"}),
    ),
    "credit.method": ("no_loo", {}),
    "credit.fan_out": ([4, 2], {}),
    "credit.budget": (16, {"credit.fan_out": [2, 8]}),
    "credit.draws.alternatives": (4, {"credit.method": "c3_replay"}),
    "credit.draws.continuations": (2, {"credit.method": "c3_replay", "credit.draws.alternatives": 2}),
    "credit.draws.episodes": (2, {"credit.method": "difference", "credit.budget": 6}),
    **{f"mesh.rollout.{name}": (4, {"async_steps": 1, "mesh.rollout": {}}) for name in ("data", "fsdp", "tensor")},
    "credit.critic.network": ("trunk", CRITIC),
    "credit.critic.loss": ("mse", CRITIC),
    **{f"credit.critic.{name}": (4, CRITIC) for name in ("warmup_updates", "critic_only_steps", "epochs")},
    **{f"credit.critic.{name}": (0.75, CRITIC) for name in ("learning_rate", "discount", "decay", "clip", "share")},
    "protocol.turns.N.thinking": (False, {}),
    "policy.targets": (["query", "value"], {}),
    "sampling.top_p": (0.5, {"sampling.top_k": 4}),
    "learner.loss.kind": ("gspo", {}),
    "learner.loss.dual_clip": (3.5, {}),
    "learner.loss.length": (32, {"learner.loss.aggregation": "constant"}),
    "learner.minibatches": (4, {}),
    "learner.kl.target": (0.5, {"learner.kl.coefficient": 0.25}),
    "evaluation.sampling.top_p": (0.5, {"evaluation.sampling.top_k": 4}),
    "evaluation.suites": ([SUITE], {}),
    **{f"evaluation.suites.N.{name}": (value, SUITED) for name, value in (SUITE | {"name": "another"}).items()},
    "evaluation.suites.N.kind": ("code", SUITED),
    "evaluation.suites.N.fields": (FIELDS, SUITED),
    **{f"evaluation.suites.N.{name}": (4, SUITED) for name in ("problems", "samples")},
    **{f"mesh.{name}": (2, {}) for name in ("data", "fsdp", "tensor")},
    "async_steps": (1, {}),
    "trackers": (["jsonl"], {}),
    "alarms.length": (2.5, {}),
    "alarms.stop": (["kl"], {}),
    "imitation.updates": (7, {"imitation": {"problems": 1, "learning_rate": 1.0}}),
    "imitation.problems": (7, {"imitation": {"updates": 1, "learning_rate": 1.0}}),
    "imitation.learning_rate": (0.5, {"imitation": {"updates": 1, "problems": 1}}),
}


def get_dotted(config: RunConfig, dotted: str) -> Any:
    value: Any = config.model_dump(mode="json")
    for part in dotted.split("."):
        value = value[int(part) if isinstance(value, list) else part]
    return value


@pytest.mark.parametrize("field", list_fields(), ids=lambda field: field.path)
def test_every_field_is_described_and_can_be_set(path, field):
    assert field.text.endswith(".") and "\n" not in field.text
    # What a turn leaves out depends on the one before it.
    dotted = field.path.replace(".N.", ".1." if field.path.endswith("unless_done") else ".0.")
    simple = {
        "integer": 4,
        "integer|null": 4,
        "number": 0.75,
        "number|null": 0.75,
        "text": "words",
        "true|false": False,
    }
    if field.path in ANOTHER:
        value, others = ANOTHER[field.path]
    elif field.kind in simple:
        value, others = simple[field.kind], {}
    else:
        value, others = next(choice for choice in field.kind.split("|") if choice != field.default), {}
    assert str(value) != field.default, "a value that shows nothing"
    config = load_config(path, others | {dotted: value})
    shown = get_dotted(config, dotted)
    if field.path == "protocol.turns":
        shown = [{name: turn[name] for name in value[0]} for turn in shown]
    assert shown == value


def list_leaves(value: Any, path: str) -> list[str]:
    """Paths of a dumped config's values, a list of sections counting as one too."""
    if isinstance(value, dict) and value:
        return [leaf for name, part in value.items() for leaf in list_leaves(part, f"{path}.{name}" if path else name)]
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [path, *list_leaves(value[0], f"{path}.N")]
    return [path]


def test_every_field_is_listed_once_with_its_default(path):
    imitation = {"updates": 1, "problems": 1, "learning_rate": 1.0}
    several = (
        {"imitation": imitation, "curriculum": {}},
        {"async_steps": 1, "mesh.rollout": {}},
        PRETRAINED,
        MIXED,
        HUB,
        STORIES,
        GAMES,
        GENERATED,
        PROGRAMS,
        CRITIC,
        {"credit.method": "c3_replay"},
        ANSWERED,
        SUITED | {"evaluation.sampling": {}},
    )
    dumps = [load_config(path, changes).model_dump(mode="json") for changes in several]
    null_in_some = {"imitation", "curriculum", "credit.critic", "credit.draws", "evaluation.sampling", "mesh.rollout"}
    null_in_some.add("protocol.turns.N.environment")
    leaves = {leaf for dump in dumps for leaf in list_leaves(dump, "")} - null_in_some
    assert sorted(field.path for field in list_fields()) == sorted(leaves)
    shown = {field.path: (field.kind, field.default) for field in list_fields()}
    assert shown["seed"] == ("integer", "required")
    assert shown["credit.fan_out"] == ("list of integer|auto|null", "null")
    assert shown["learner.kl.target"] == ("number|null", "null")
    assert shown["learner.loss.aggregation"] == ("token|message|constant|null", "null")
    assert shown["protocol.turns.N.system"] == ("text", '""')
    assert shown["task.path"] == ("text|list", "required") and shown["task.path.N.weight"] == ("number", "1.0")
    assert shown["task.kind"] == ("arithmetic|number|stories|numeric|math|code|reasoning", "required")
