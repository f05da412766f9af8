"""What comes along when the command line names another kind of model or task, or another method of credit."""

import math

import pytest

from c3jax.config.file import dump_config, load_config
from c3jax.config.run import ConfigError, Critic

OWN = Critic(network="own", learning_rate=5e-4)  # the learner's rate


@pytest.mark.parametrize(
    ("name", "overrides", "credit"),
    [
        ("quickstart", {"method": "no_loo"}, ("no_loo", (2, 4), "none", None)),  # what fits stays
        ("quickstart", {"method": "rloo"}, ("rloo", (8, 1), "none", None)),
        ("quickstart", {"method": "grpo"}, ("grpo", (8, 1), "group", None)),
        ("quickstart", {"method": "mappo"}, ("mappo", (8, 1), "none", OWN)),
        ("quickstart", {"method": "value_only"}, ("value_only", (2, 4), "none", OWN)),
        ("quickstart", {"method": "rloo", "budget": 6}, ("rloo", (6, 1), "none", None)),
        ("quickstart", {"method": "c3", "budget": 6}, ("c3", (2, 3), "none", None)),
        ("trio", {"method": "rloo"}, ("rloo", (8, 1, 1), "none", None)),
    ],
)
def test_a_method_brings_what_it_needs(name, overrides, credit):
    config = load_config(name, {f"credit.{field}": value for field, value in overrides.items()})
    got = config.credit
    assert (got.method, got.fan_out, got.normalise, got.critic) == credit


@pytest.mark.parametrize(
    ("method", "budget", "draws"),
    [
        ("c3_replay", 8, (4, None, 1)),
        ("at_grpo", 12, (6, None, 1)),
        ("vine_ppo", 8, (None, 2, 2)),
        ("difference", 6, (None, 2, 1)),
        ("shapley", 8, (None, 2, 1)),
        ("ccpo", 8, (None, 4, 1)),
    ],
)
def test_a_method_that_draws_no_tree_brings_its_draws_and_leaves_them(tmp_path, method, budget, draws):
    config = load_config("quickstart", {"credit.method": method, "credit.budget": budget})
    got = config.credit.draws
    assert got is not None and config.credit.fan_out is None
    assert (got.alternatives, got.episodes, got.continuations) == draws
    (tmp_path / "there.yaml").write_text(dump_config(config))
    back = load_config(tmp_path / "there.yaml", {"credit.method": "c3"}).credit
    assert back.draws is None and math.prod(back.fan_out) == budget


def test_what_is_said_stays():
    with pytest.raises(ConfigError, match="^credit.fan_out: method rloo compares whole episodes"):
        load_config("quickstart", {"credit.method": "rloo", "credit.fan_out": [2, 4]})
    with pytest.raises(ConfigError, match="^credit.normalise: method grpo: expected normalise group"):
        load_config("quickstart", {"credit.method": "grpo", "credit.normalise": "none"})
    with pytest.raises(ConfigError, match="^credit.critic: expected a section for method mappo"):
        load_config("quickstart", {"credit.method": "mappo", "credit.critic": None})
    with pytest.raises(ConfigError, match="^credit.method: "):
        load_config("quickstart", {"credit.method": "c4"})


def test_a_field_of_the_critic_that_a_method_brings_may_be_another():
    critic = load_config("quickstart", {"credit.method": "value_only", "credit.critic.epochs": 8}).credit.critic
    assert critic is not None and (critic.network, critic.learning_rate, critic.epochs) == ("own", 5e-4, 8)


def test_a_method_goes_back(tmp_path):
    (tmp_path / "mappo.yaml").write_text(dump_config(load_config("quickstart", {"credit.method": "mappo"})))
    back = load_config(tmp_path / "mappo.yaml", {"credit.method": "c3"}).credit
    assert (back.fan_out, back.critic) == ((2, 4), None)


def test_a_kind_leaves_the_other_ones_fields():
    config = load_config("quickstart", {"model.kind": "folder", "model.path": "x", "model.dtype": "bfloat16"})
    assert config.model.model_dump() == {
        **{"kind": "folder", "path": "x", "family": "auto", "dtype": "bfloat16", "remat": "layer", "attention": "auto"}
    }
    assert config.imitation is None  # it is trained already
    config = load_config("gsm8k_smollm2", {"model.kind": "hub", "model.name": "x/y", "task.kind": "math"})
    assert (config.model.kind, config.task.kind) == ("hub", "math")
    with pytest.raises(ConfigError, match="^model.path: expected a value, got nothing"):
        load_config("quickstart", {"model.kind": "folder"})
