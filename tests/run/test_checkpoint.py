"""Checkpoints: exact, atomic, checked, and kept by the rule."""

import json
import re
import subprocess
import sys
import textwrap
import warnings
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from c3jax.config.run import Learner
from c3jax.learner.optimiser import OPTIMISERS, make_optimiser
from c3jax.run.checkpoint import CheckpointError, CheckpointStore, find_best_step, list_steps, restore_step


class State(NamedTuple):
    params: dict
    opt_state: optax.OptState
    updates: jax.Array


def make_state(seed: int) -> State:
    weight = jax.random.normal(jax.random.key(seed), (40, 50))
    params = {"layers": [{"w": weight}, {"w": weight.astype(jnp.bfloat16)}], "b": jnp.arange(3, dtype=jnp.uint32)}
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    return State(params, optimiser.init(jax.tree.map(lambda x: x.astype(jnp.float32), params)), jnp.int32(seed))


def bits(tree: Any) -> list[tuple[str, tuple[int, ...], bytes]]:
    return [(str(leaf.dtype), leaf.shape, np.asarray(leaf).tobytes()) for leaf in jax.tree.leaves(tree)]


def abstract(tree: Any) -> Any:
    return jax.eval_shape(lambda: tree)


def refuse(sentence: str) -> None:
    raise AssertionError(f"nothing was to be printed, but: {sentence}")


def save_steps(run_dir: Path, steps: list[int]) -> None:
    with CheckpointStore(run_dir, keep=9, print_line=refuse) as store:
        for step in steps:
            store.save(step, make_state(step))


# --------------------------------------------------------------------------------------------------------------------
# Round trips


def test_state_comes_back_bit_for_bit(tmp_path):
    state = make_state(7)
    with CheckpointStore(tmp_path, keep=2, print_line=refuse) as store:
        store.save(10, state)
        for like in (state, abstract(state)):
            step, restored = store.restore_newest(like)
            assert step == 10 and bits(restored) == bits(state)
            assert jax.tree.structure(restored) == jax.tree.structure(state)
            assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(restored))


@pytest.mark.parametrize("name", OPTIMISERS)
def test_every_optimiser_goes_on_from_a_checkpoint_bit_for_bit(tmp_path, name):
    """Weights as a decoder has them: one that Muon and Adafactor treat as a matrix, and ones that they do not."""
    shapes = {"embedding": (130, 128), "final_norm": (128,), "blocks": {"up": {"kernel": (2, 128, 129)}}}
    random, is_shape = np.random.default_rng(0), lambda leaf: isinstance(leaf, tuple)
    draw = lambda: jax.tree.map(lambda shape: jnp.float32(random.normal(size=shape)), shapes, is_leaf=is_shape)  # noqa: E731
    params, gradients = draw(), [{"actor": draw()} for _ in range(3)]
    optimiser, _ = make_optimiser(Learner(learning_rate=0.1, optimiser=name, weight_decay=0.01), 10, is_per_role=True)
    update = jax.jit(optimiser.update)

    def take(state: State, gradient: Any) -> State:
        changes, opt_state = update(gradient, state.opt_state, state.params)
        return State(optax.apply_updates(state.params, changes), opt_state, state.updates + 1)  # type: ignore[arg-type]

    start = State({"actor": params}, optimiser.init({"actor": params}), jnp.int32(0))
    state = take(take(start, gradients[0]), gradients[1])
    with CheckpointStore(tmp_path, keep=2, print_line=refuse) as store:
        store.save(2, state)
        _, restored = store.restore_newest(abstract(start))
    assert jax.tree.structure(restored) == jax.tree.structure(state) and bits(restored) == bits(state)
    assert bits(take(restored, gradients[2])) == bits(take(state, gradients[2]))


def test_unusual_values_come_back_bit_for_bit(tmp_path):
    odd = {
        "nan payload": np.array([0x7FC00001, 0xFF800000, 0x80000000], np.uint32).view(np.float32),
        "negative zeros": np.full(9, -0.0, np.float32),  # equal to the fill value of a chunk, and not the same
        "empty": np.zeros((0, 3), np.float32),
        "bool": np.array([[True], [False]]),
        "transposed": np.arange(6, dtype=np.int32).reshape(2, 3).T,
        "f16": np.array(1.5, np.float16),
    }
    with CheckpointStore(tmp_path, keep=1, print_line=refuse) as store:
        store.save(0, odd)
        _, restored = store.restore_newest(odd)
    assert bits(restored) == bits(odd)


def test_saved_arrays_may_be_donated_at_once(tmp_path):
    state = make_state(3)
    original = bits(state)
    spoil = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 0 + 1, tree), donate_argnums=0)
    with CheckpointStore(tmp_path, keep=2, print_line=refuse) as store:
        store.save(5, state)
        spoiled = spoil(state)
        assert jax.tree.leaves(state)[0].is_deleted()
        for _ in range(3):
            spoiled = spoil(spoiled)
        store.wait()
        _, restored = store.restore_newest(spoiled)
    assert bits(restored) == original


def test_restored_arrays_can_be_donated(tmp_path):
    state = [jnp.arange(4096.0) + index for index in range(30)]  # many, because memory is shared by chance of alignment
    add = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    with CheckpointStore(tmp_path, keep=2, print_line=refuse) as store, warnings.catch_warnings():
        warnings.simplefilter("error")
        store.save(1, state)
        _, first = store.restore_newest(state)
        pointers = {leaf.unsafe_buffer_pointer() for leaf in first}
        changed = add(first)
        assert {leaf.unsafe_buffer_pointer() for leaf in changed} == pointers
        assert all(np.array_equal(leaf, np.arange(4096.0) + index + 1) for index, leaf in enumerate(changed))
        _, second = store.restore_newest(state)
        assert bits(second) == bits(state)


def test_arrays_go_where_like_has_them(tmp_path):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with CheckpointStore(tmp_path, keep=2, print_line=refuse) as store:
        store.save(1, {"w": jnp.ones(2)})
        for like, is_committed in [
            (jnp.ones(2), False),
            (jax.device_put(jnp.ones(2), sharding), True),
            (jax.ShapeDtypeStruct((2,), jnp.float32, sharding=sharding), True),
        ]:
            _, restored = store.restore_newest({"w": like})
            assert restored["w"].committed == is_committed and restored["w"].sharding == sharding


# --------------------------------------------------------------------------------------------------------------------
# What is kept


@pytest.mark.parametrize(
    ("keep", "values", "kept", "best"),
    [
        (2, [None] * 6, [0, 4, 5], None),
        (1, [None] * 6, [0, 5], None),
        (2, [0.1, 0.5, 0.9, 0.3, 0.2, 0.2], [0, 2, 4, 5], 2),
        (2, [0.1, 0.5, 0.9, 0.9, 0.2, 0.9], [0, 2, 4, 5], 2),  # of equals, the earlier
        (1, [0.9, 0.1, 0.1, 0.1], [0, 3], 0),
        (1, [None, 0.2, float("nan"), None, float("inf"), 0.1], [0, 1, 5], 1),  # only finite values are candidates
        (1, [0.1, 0.2, 0.3], [0, 2], 2),
    ],
)
def test_newest_first_and_best_are_kept(tmp_path, keep, values, kept, best):
    with CheckpointStore(tmp_path, keep=keep, print_line=refuse) as store:
        for step, value in enumerate(values):
            store.save(step, {"w": jnp.full(2, step)}, value)
        assert store.steps() == kept and find_best_step(tmp_path) == best
    assert list_steps(tmp_path) == kept and find_best_step(tmp_path) == best
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == sorted(map(str, kept))


def test_best_is_remembered_by_the_next_process(tmp_path):
    with CheckpointStore(tmp_path, keep=1, print_line=refuse) as store:
        store.save(10, {"w": jnp.ones(2)}, 0.75)
    with CheckpointStore(tmp_path, keep=1, print_line=refuse) as store:
        for step in (20, 30):
            store.save(step, {"w": jnp.ones(2)}, 0.5)
        assert store.steps() == [10, 30] and find_best_step(tmp_path) == 10


def test_a_part_of_one_step_is_restored(tmp_path):
    save_steps(tmp_path, [0, 10])
    like = abstract(make_state(0).params)
    restored = restore_step(tmp_path, 0, like, "params")
    assert bits(restored) == bits(make_state(0).params)
    assert jax.tree.structure(restored) == jax.tree.structure(like)
    assert bits(restore_step(tmp_path, 10, jnp.int32(0), "updates")) == bits(jnp.int32(10))
    with CheckpointStore(tmp_path, keep=2, print_line=refuse) as store:
        assert bits(store.restore_step(10, like, "params")) == bits(make_state(10).params)
    with pytest.raises(CheckpointError, match=r"^checkpoint 5: expected one of the steps \[0, 10\] in "):
        restore_step(tmp_path, 5, like, "params")


def test_nothing_saved_is_none(tmp_path):
    assert list_steps(tmp_path) == [] and find_best_step(tmp_path) is None
    with CheckpointStore(tmp_path, keep=2, print_line=refuse) as store:
        assert store.restore_newest({"w": jnp.ones(2)}) is None


# --------------------------------------------------------------------------------------------------------------------
# Damage


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def hollow(path: Path) -> None:
    path.write_bytes(b"")


def largest(folder: Path) -> Path:
    return max((path for path in (folder / "state").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


@pytest.mark.parametrize(
    ("name", "spoil", "reason"),
    [
        (None, truncate, r"file state/ocdbt\S+ has \d+ bytes, not \d+"),
        (None, flip, r"file state/ocdbt\S+ has other bytes than were saved"),
        (None, Path.unlink, r"file state/ocdbt\S+: No such file or directory"),
        ("state/manifest.ocdbt", hollow, r"file state/manifest.ocdbt has 0 bytes, not \d+"),
        ("record.json", truncate, "record.json is not JSON"),
        ("record.json", flip, "record.json is not (JSON|what was saved)"),
        ("record.json", Path.unlink, "record.json: No such file or directory"),
        ("state", lambda path: path.rename(path.parent / "elsewhere"), r"file state/\S+: No such file or directory"),
    ],
)
def test_damage_is_said_and_the_one_before_is_used(tmp_path, name, spoil, reason, capfd):
    save_steps(tmp_path, [10, 20])
    newest = tmp_path / "checkpoints" / "20"
    spoil(newest / name if name else largest(newest))
    printed: list[str] = []
    with CheckpointStore(tmp_path, keep=2, print_line=printed.append) as store:
        step, restored = store.restore_newest(abstract(make_state(0)))
        assert step == 10 and bits(restored) == bits(make_state(10))
        [sentence] = printed
        pattern = rf"checkpoint 20 is damaged \({reason}\); it was moved to damaged-20-0, an earlier one is used"
        assert re.fullmatch(pattern, sentence)
        assert (tmp_path / "checkpoints" / "damaged-20-0").is_dir()
        store.save(20, make_state(21))
        step, restored = store.restore_newest(abstract(make_state(0)))
        assert step == 20 and bits(restored) == bits(make_state(21))
    assert capfd.readouterr() == ("", "")


def test_a_flipped_bit_in_any_file_is_noticed(tmp_path):
    save_steps(tmp_path, [10, 20])
    newest, like = tmp_path / "checkpoints" / "20", abstract(make_state(0))
    files = [path for path in newest.rglob("*") if path.is_file()]
    assert len(files) > 5
    for path in files:
        whole = path.read_bytes()
        flip(path)
        with pytest.raises(CheckpointError, match="^checkpoint 20: expected what was saved, got a damaged one "):
            restore_step(tmp_path, 20, like)
        path.write_bytes(whole)
    assert bits(restore_step(tmp_path, 20, like)) == bits(make_state(20))


def test_arrays_are_checked_beside_files(tmp_path):
    save_steps(tmp_path, [20])
    path = tmp_path / "checkpoints" / "20" / "record.json"
    record = json.loads(path.read_text())["record"]
    # The CRC-32 of int32 21 instead of int32 20, in a record that is whole.
    record["arrays"]["updates"]["crc32"] = zlib.crc32((21).to_bytes(4, "little"))
    path.write_text(json.dumps({"crc32": zlib.crc32(json.dumps(record).encode()), "record": record}))
    with pytest.raises(CheckpointError, match="got a damaged one .the array at updates is not what was saved"):
        restore_step(tmp_path, 20, abstract(make_state(0)))


def test_all_damaged_is_an_error_and_moves_nothing(tmp_path):
    save_steps(tmp_path, [0, 10])
    for step in ("0", "10"):
        (tmp_path / "checkpoints" / step / "record.json").unlink()
    with CheckpointStore(tmp_path, keep=2, print_line=refuse) as store:
        with pytest.raises(
            CheckpointError, match=r"expected one that can be read, got 2 damaged \(the newest, 10: rec"
        ):
            store.restore_newest(abstract(make_state(0)))
        assert store.steps() == [0, 10]


def test_damaged_twice_is_kept_twice(tmp_path):
    printed: list[str] = []
    for _ in range(2):
        with CheckpointStore(tmp_path, keep=2, print_line=printed.append) as store:
            for step in {10, 20} - set(store.steps()):
                store.save(step, make_state(step))
            store.wait()
            (tmp_path / "checkpoints" / "20" / "record.json").unlink()
            assert store.restore_newest(abstract(make_state(0)))[0] == 10
    assert ["damaged-20-0" in printed[0], "damaged-20-1" in printed[1], len(printed)] == [True, True, 2]


@pytest.mark.parametrize(
    ("like", "complaint"),
    [
        ({"w": jnp.ones(3), "b": jnp.ones(1)}, r"expected an array float32\[3\] at w, got an array float32\[2\]"),
        ({"w": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(1)}, r"expected an array bfloat16\[2\] at w, got an .*float32"),
        ({"w": jnp.ones(2)}, r"expected none at b, got an array float32\[1\]"),
        ({"w": jnp.ones(2), "b": jnp.ones(1), "c": jnp.ones(1)}, r"expected an array float32\[1\] at c, got none"),
    ],
)
def test_another_structure_is_an_error_and_no_damage(tmp_path, like, complaint):
    with CheckpointStore(tmp_path, keep=2, print_line=refuse) as store:
        store.save(3, {"w": jnp.ones(2), "b": jnp.ones(1)})
        with pytest.raises(CheckpointError, match="^checkpoint 3: " + complaint):
            store.restore_newest(like)
        assert store.steps() == [3]


# --------------------------------------------------------------------------------------------------------------------
# Failing and dying while saving


def test_a_failed_save_is_reported_and_can_be_repeated(tmp_path):
    with CheckpointStore(tmp_path, keep=2, print_line=refuse) as store:
        store.save(1, {"w": jnp.ones(2)})
        store.wait()
        obstacle = tmp_path / "checkpoints" / "2.writing"
        obstacle.write_text("in the way")
        store.save(2, {"w": jnp.ones(2)})
        with pytest.raises(CheckpointError, match="^checkpoint 2: cannot be written .*Not a directory"):
            store.wait()
        obstacle.unlink()
        store.save(2, {"w": jnp.ones(2)})
        assert store.steps() == [1, 2]
        with pytest.raises(CheckpointError, match="^checkpoint 2: expected a step that is not saved yet"):
            store.save(2, {"w": jnp.ones(2)})


def test_a_disk_too_small_is_said_before_writing(tmp_path):
    huge = np.broadcast_to(np.float32(0), (1 << 50,))  # 4 PiB on paper, 4 bytes in memory
    with CheckpointStore(tmp_path, keep=2, print_line=refuse) as store:
        with pytest.raises(CheckpointError, match=r"^checkpoint 1: expected 4,503,599,627,370,496 free bytes"):
            store.save(1, {"w": huge})
        assert store.steps() == []


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written .Not a directory"):
        CheckpointStore(tmp_path / "file", keep=2, print_line=refuse)


# Forks a saver for each delay that it is sent, and kills it that long after its first save. The parent imports and
# never computes, so that a fork is safe and quick.
NURSERY = """
    import os, signal, sys, time
    from pathlib import Path
    import numpy as np
    from c3jax.run.checkpoint import CheckpointStore

    for line in sys.stdin:
        saved, telling = os.pipe()
        child = os.fork()
        if child == 0:
            with CheckpointStore(Path(sys.argv[1]), keep=2, print_line=print) as store:
                for step in range(max(store.steps(), default=-1) + 1, 10**6):
                    state = {"w": np.random.default_rng(step).random((8, 1 << 16), np.float32), "step": np.int32(step)}
                    store.save(step, state)
                    store.wait()
                    os.write(telling, f"{step} ".encode())
        os.read(saved, 1)
        time.sleep(float(line))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(telling)
        print(os.read(saved, 10**6).decode(), flush=True)
        os.close(saved)
"""


def test_a_kill_while_saving_leaves_the_last_checkpoint_and_a_usable_store(tmp_path):
    like = {"w": jax.ShapeDtypeStruct((8, 1 << 16), np.float32), "step": jax.ShapeDtypeStruct((), np.int32)}
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(NURSERY), str(tmp_path)]
    leftovers = 0
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as nursery:
        for delay in (0.0, 0.013, 0.029, 0.047, 0.071, 0.113):
            nursery.stdin.write(f"{delay}\n")
            nursery.stdin.flush()
            reported = nursery.stdout.readline().split()
            leftovers += any(not path.name.isdecimal() for path in (tmp_path / "checkpoints").iterdir())
            with CheckpointStore(tmp_path, keep=2, print_line=refuse) as store:
                step, state = store.restore_newest(like)
            assert step >= max(map(int, reported), default=0) and state["step"] == step
            assert np.array_equal(state["w"], np.random.default_rng(step).random((8, 1 << 16), np.float32))
            assert all(path.name.isdecimal() for path in (tmp_path / "checkpoints").iterdir())
        nursery.stdin.close()
    assert leftovers  # some of the kills did hit a save
