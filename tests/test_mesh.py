"""A run on several devices is the run on one: programs on eight forced devices, and the arithmetic of the mesh."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import optax
import pytest
from jax.sharding import PartitionSpec

from c3jax.config.file import load_config
from c3jax.config.run import Mesh
from c3jax.models import decoder, sharding
from c3jax.models.spec import Adapters, DecoderSpec
from c3jax.setup.team import make_setup
from c3jax.types import UserError

PROGRAM = Path(__file__).parent / "mesh_program.py"
SPEC = DecoderSpec(60, 2, 16, 4, 2, 4, 32, 128, 1e4, 1e-5, False, biases=("query",), adapters=Adapters(2, 1.0, ("up",)))


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_DISABLE_MOST_OPTIMIZATIONS": "true", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, str(PROGRAM)], env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_mesh_changes_nothing_but_rounding(measured):
    found = measured["all"]
    assert found["same_messages"]
    assert found["figures"] < 1e-4  # log-probabilities of behaviour, credit, figures of the update
    assert found["params"] < 1e-5 < found["moved"]
    assert found["traces"] == 1  # the state comes out of an update as it went in


@pytest.mark.parametrize("held", ["params", "opt_state"])
def test_a_device_holds_its_part_of_the_weights(measured, held):
    # But for the norms, which every device holds whole, and the vocabulary where tensor does not divide it.
    first, whole = measured["all"]["held"][held]
    assert whole / 4 <= first < 0.35 * whole


def test_trees_drawn_on_devices_of_their_own_are_those_of_one(measured):
    one, apart = measured["one"], measured["apart"]
    assert "2 devices, which draw trees: data 2, fsdp 1, tensor 1" in apart["said"] and len(one["records"]) == 3
    for ours, theirs in zip(one["records"], apart["records"], strict=True):
        for this, that in zip(ours.splitlines(), theirs.splitlines(), strict=True):
            assert read_numbers(this)[0] == read_numbers(that)[0]  # messages, verdicts, returns
            assert read_numbers(this)[1] == pytest.approx(read_numbers(that)[1], abs=1e-5)
    for this, that in zip(one["rows"], apart["rows"], strict=True):
        same = [name for name in this if not name.startswith(("seconds", "tokens_per"))]
        assert [this[name] for name in same] == pytest.approx([that[name] for name in same], abs=1e-5)
    assert [row["staleness"] for row in apart["rows"]] == [0, 1, 1]


def read_numbers(line: str) -> tuple[str, list[float]]:
    """A record's text without the numbers that are no whole ones, and these."""
    pattern = r"-?\d+\.\d+(?:e-?\d+)?"
    return re.sub(pattern, "#", line), [float(number) for number in re.findall(pattern, line)]


@dataclass(frozen=True)
class Device:
    id: int
    process_index: int = 0
    platform: str = "cpu"


def make_devices(count: int) -> list[Any]:
    return [Device(number) for number in range(count)]


@pytest.mark.parametrize(
    ("sizes", "count", "expected"),
    [
        ((-1, 1, 1), 8, (8, 1, 1)),
        ((2, -1, 2), 8, (2, 2, 2)),
        ((1, 1, -1), 4, (1, 1, 4)),
        ((2, 1, 1), 8, (2, 1, 1)),  # the others stand idle
    ],
)
def test_a_size_may_be_the_rest(sizes, count, expected):
    mesh = sharding.make_mesh(Mesh(data=sizes[0], fsdp=sizes[1], tensor=sizes[2]), make_devices(count))
    assert mesh is not None and tuple(mesh.shape.values()) == expected


@pytest.mark.parametrize("sizes", [(3, -1, 1), (-1, -1, 1), (16, 1, 1), (2, 3, 2)])
def test_sizes_that_do_not_fit_are_refused_with_the_numbers(sizes):
    with pytest.raises(UserError, match=r"^mesh: expected sizes, one of them -1 at most, for the 8 devices here, got"):
        sharding.make_mesh(Mesh(data=sizes[0], fsdp=sizes[1], tensor=sizes[2]), make_devices(8))


def test_one_device_needs_no_mesh():
    assert sharding.make_mesh(Mesh(), make_devices(1)) is None


def test_the_last_devices_draw_and_the_others_learn(monkeypatch):
    section, devices = Mesh.model_validate({"fsdp": 2, "rollout": {"data": 2, "tensor": 2}}), make_devices(8)
    learning, drawing = sharding.make_mesh(section, devices), sharding.make_rollout_mesh(section, devices)
    assert learning is not None and tuple(learning.shape.values()) == (2, 2, 1)
    assert drawing is not None and tuple(drawing.shape.values()) == (2, 1, 2)
    assert [device.id for device in [*learning.devices.flat, *drawing.devices.flat]] == list(range(8))
    alone = sharding.make_mesh(Mesh.model_validate({"rollout": {}}), make_devices(2))
    assert alone is not None and alone.size == 1  # a mesh, for the default device is not told from others else
    with pytest.raises(UserError, match=r"^mesh.rollout: expected fewer than the 4 devices here, got 4$"):
        sharding.make_mesh(section, make_devices(4))
    with pytest.raises(UserError, match=r"^mesh: expected sizes, .* for the 1 devices here, got data -1, fsdp 2"):
        sharding.make_mesh(section, make_devices(5))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match=r"^mesh.rollout: expected a run of one process, got 2$"):
        sharding.make_mesh(section, devices)


def test_devices_that_only_draw_need_a_step_ahead():
    with pytest.raises(UserError, match=r"^mesh.rollout: expected none without async_steps 1, for one half would wait"):
        load_config("quickstart", {"mesh.rollout.data": 2})
    assert load_config("quickstart", {"mesh.rollout.data": 2, "async_steps": 1}).mesh.rollout is not None


@pytest.mark.parametrize(
    ("sizes", "sentence"),
    [
        ({"fsdp": 3}, "mesh.fsdp: expected a divisor of the model's width 16, got 3"),
        ({"tensor": 4}, "mesh.tensor: expected a divisor of the model's key and value heads 2, got 4"),
    ],
)
def test_a_model_that_cannot_be_cut_so_is_refused(sizes, sentence):
    mesh = sharding.make_mesh(Mesh(data=1, **sizes), make_devices(12)[: max(sizes.values())])
    with pytest.raises(UserError, match=sentence):
        sharding.check_spec(mesh, SPEC)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"problems": 6}, "problems"),
        ({"learner.minibatches": 4}, "learner.minibatches"),
        ({"rollout_problems": 2}, "rollout_problems"),
        ({"learner.micro_problems": 2}, "learner.micro_problems"),
        ({"imitation.problems": 6}, "imitation.problems"),
    ],
)
def test_problems_that_do_not_divide_are_refused_with_the_numbers(monkeypatch, changes, field):
    config = load_config(PROGRAM.parent.parent / "configs" / "quickstart.yaml", {"problems": 8, **changes})
    mesh = sharding.make_mesh(Mesh(), make_devices(4))
    monkeypatch.setattr(sharding, "make_mesh", lambda section: mesh)
    with pytest.raises(UserError, match=rf"^{field}: expected problems.* data x fsdp = 4 parts of the mesh divide"):
        make_setup(config, is_training=True, uses_mesh=True)


def test_where_each_axis_of_the_weights_is_cut():
    mesh = jax.sharding.AbstractMesh((2, 2, 2), sharding.AXES)
    shapes = decoder.define_decoder(SPEC)[1]
    # Wherever they stand: under a role, among an optimiser's moments.
    found = jax.tree.map(lambda cut: cut.spec, sharding.list_shardings(mesh, {"reasoner": (shapes, shapes)}))  # type: ignore[arg-type]
    for each in found["reasoner"]:
        assert each["embedding"] == each["head"] == PartitionSpec("tensor", "fsdp")
        assert each["final_norm"] == PartitionSpec()
        blocks = each["blocks"]
        assert blocks["query"]["kernel"] == blocks["up"]["kernel"] == PartitionSpec(None, "fsdp", "tensor")
        assert blocks["query"]["bias"] == PartitionSpec(None, "tensor")
        assert blocks["down"]["kernel"] == blocks["output"]["kernel"] == PartitionSpec(None, "tensor", "fsdp")
        assert blocks["up"]["a"] == PartitionSpec(None, "fsdp")
        assert blocks["up"]["b"] == PartitionSpec(None, None, "tensor")
    # Of Adafactor's, rows and columns are whole, and what stands for a weight that has them is one number.
    state = jax.eval_shape(optax.scale_by_factored_rms(min_dim_size_to_factor=1).init, shapes)
    factors = sharding.list_shardings(mesh, state)  # type: ignore[arg-type]
    assert factors.v_row["embedding"].spec == factors.v_col["blocks"]["up"]["kernel"].spec == PartitionSpec()
    assert factors.v["embedding"].spec == PartitionSpec()
    assert factors.v["blocks"]["query"]["bias"].spec in (PartitionSpec(), PartitionSpec(None, "tensor"))
    odd = SPEC._replace(vocab_size=61)
    cut = sharding.list_shardings(mesh, decoder.define_decoder(odd)[1])  # type: ignore[arg-type]
    assert cut["head"].spec == PartitionSpec(None, "fsdp")


def test_what_is_not_cut_at_the_end_is_not_written():
    """As the compiler writes it of its results: in another form a second step would compile all programs again."""
    mesh = jax.sharding.AbstractMesh((2, 4, 1), sharding.AXES)
    shardings = sharding.list_shardings(mesh, decoder.define_decoder(SPEC)[1])  # type: ignore[arg-type]
    assert shardings["blocks"]["query"]["kernel"].spec == PartitionSpec(None, "fsdp")
    assert all(leaf.spec == PartitionSpec() or leaf.spec[-1] is not None for leaf in jax.tree.leaves(shardings))


@pytest.mark.parametrize(
    ("order", "expected"),
    [((0, 1, 2, 3, 4, 5, 6, 7), [0, 1, 2, 3]), ((0, 4, 1, 5, 2, 6, 3, 7), [0, 1, 2, 3, 4, 5, 6, 7])],
)
def test_each_process_owns_the_problems_that_it_is_the_first_to_hold(order, expected):
    devices = [Device(number, process_index=number // 4) for number in order]  # in the second, tensor spans processes
    mesh = sharding.make_mesh(Mesh(data=2, fsdp=2, tensor=2), devices)
    assert sharding.list_own(mesh, 8) == expected
