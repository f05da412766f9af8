"""Policies as Hugging Face folders: bit for bit, the same to transformers and PEFT, whole or not there."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import yaml
from flax import nnx

from c3jax.cli import main
from c3jax.config.file import parse_config
from c3jax.models import decoder
from c3jax.models.huggingface import weights as hf_weights
from c3jax.models.policy import make_model
from c3jax.models.tokenizer import load_tokenizer
from c3jax.run.checkpoint import CheckpointStore
from c3jax.run.directory import open_run_dir
from c3jax.run.files import hash_file
from c3jax.setup import team
from c3jax.setup.team import Setup, make_setup
from c3jax.types import Frame
from tests import tiny_run

TREE = tiny_run.TREE | {
    **{"seed": 2, "steps": 9, "sampling": {"temperature": 0.7, "top_k": 20, "top_p": 0.8}},
    "model": tiny_run.TREE["model"] | {"layers": 2, "width": 16, "heads": 2, "mlp_width": 24},
}
TOKENS = np.array([[3, 1, 4, 1, 5, 9, 2, 6]])


def make_run(path: Path, tree: dict[str, Any]) -> Setup:
    """A run with checkpoints 4 and 7; the weights of the team that is returned are those of 7, and twice those of 4."""
    config = parse_config(tree)
    setup = make_setup(config)
    random = np.random.default_rng(0)
    trained = jax.tree.map(lambda leaf: jnp.float32(0.3 * random.normal(size=leaf.shape)), setup.weights.trained)
    facts = {"inputs": setup.inputs}
    with open_run_dir(path, config, ["c3jax"], facts=facts), CheckpointStore(path, 2, print) as store:
        store.save(4, {"params": jax.tree.map(lambda leaf: leaf / 2, trained), "other": jnp.zeros(2)})
        store.save(7, {"params": trained, "other": jnp.zeros(2)})
    return setup._replace(weights=setup.weights._replace(trained=trained))


@pytest.fixture(scope="module", autouse=True)
def settings(tmp_path_factory) -> Iterator[None]:
    """What commands set for the whole process is set back; programs here run for milliseconds."""
    before = {
        "jax_default_matmul_precision": jax.config.jax_default_matmul_precision,
        "jax_compilation_cache_dir": jax.config.jax_compilation_cache_dir,
        "jax_compilation_cache_max_size": jax.config.jax_compilation_cache_max_size,
        "jax_persistent_cache_min_compile_time_secs": jax.config.jax_persistent_cache_min_compile_time_secs,
        "jax_disable_most_optimizations": jax.config.read("jax_disable_most_optimizations"),
    }
    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> tuple[Path, Setup]:
    path = tmp_path_factory.mktemp("shared") / "run"
    return path, make_run(path, TREE)


@pytest.fixture(scope="module")
def adapted(shared, tmp_path_factory) -> tuple[Path, Setup, Path]:
    """A run with adapters over the folder that the shared run is exported to, and that folder."""
    path = tmp_path_factory.mktemp("adapted")
    assert main(["export", str(shared[0]), "--to", str(path / "base")]) == 0
    model = {"kind": "folder", "path": str(path / "base")}
    adapters = {"kind": "adapters", "rank": 3, "alpha": 7.5, "targets": ["query", "value", "down"]}
    return path / "run", make_run(path / "run", TREE | {"model": model, "policy": adapters}), path / "base"


def compute_logits(model: decoder.Decoder) -> np.ndarray:
    hidden, _ = model.extend((), Frame(jnp.asarray(TOKENS), jnp.ones(TOKENS.shape, bool)))
    return np.asarray(model.compute_logits(hidden))


def check_equal(got: Any, expected: Any) -> None:
    jax.tree.map(lambda one, other: np.testing.assert_array_equal(one, other, strict=True), got, expected)


# --------------------------------------------------------------------------------------------------------------------
# What is written


def test_an_exported_run_is_the_model_of_another(shared, tmp_path, capsys):
    run, setup = shared
    assert main(["export", str(run), "--to", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == f"wrote step 7 of {run} to {tmp_path / 'out'}\n"
    model = {"kind": "folder", "path": str(tmp_path / "out")}
    again = make_setup(parse_config(TREE | {"model": model}))
    assert again.spec == setup.spec and again.plans == setup.plans
    assert (again.train, again.heldout) == (setup.train, setup.heldout)  # the words have their tokens
    check_equal(again.weights.trained, setup.weights.trained)
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation == {
        "eos_token_id": list(setup.tokenizer.stop_tokens),
        **{"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8},
    }
    # The step that is asked for, and nothing left beside the folder.
    (tmp_path / "four").mkdir()
    assert main(["export", str(run), "--to", str(tmp_path / "four"), "--checkpoint", "4"]) == 0
    halves = jax.tree.map(lambda leaf: leaf / 2, setup.weights.trained)
    check_equal(hf_weights.load_folder(tmp_path / "four")[1], halves)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["four", "out"]


def test_bfloat16_is_stored_rounded_and_comes_back_bit_for_bit(shared, tmp_path):
    run, setup = shared
    assert main(["export", str(run), "--to", str(tmp_path / "short"), "--dtype", "bfloat16"]) == 0
    _, params = hf_weights.load_folder(tmp_path / "short")
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), setup.weights.trained)
    check_equal(params, rounded)
    tree = TREE | {"model": {"kind": "folder", "path": str(tmp_path / "short")}}
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(tree))
    words = ["export", str(tmp_path / "again.yaml"), "--to", str(tmp_path / "again"), "--dtype", "bfloat16"]
    assert main(words) == 0
    one, other = (path / "model.safetensors" for path in (tmp_path / "short", tmp_path / "again"))
    assert one.read_bytes() == other.read_bytes()


def test_every_role_with_weights_of_its_own_has_a_folder(tmp_path, capsys):
    setup = make_run(tmp_path / "run", TREE | {"policy": {"kind": "per_role"}})
    assert main(["export", str(tmp_path / "run"), "--to", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        f"  {tmp_path / 'out' / role}" for role in ("planner", "solver")
    ]
    for role in ("planner", "solver"):
        check_equal(hf_weights.load_folder(tmp_path / "out" / role)[1], setup.weights.trained[role])


def test_merged_adapters_give_the_logits_of_the_unmerged(adapted, tmp_path):
    run, setup, base = adapted
    assert main(["export", str(run), "--to", str(tmp_path / "out")]) == 0
    logits = {}
    for role in ("planner", "solver"):
        spec, params = hf_weights.load_folder(tmp_path / "out" / role)
        assert spec == setup.spec
        adapter, blocks = setup.weights.trained[role], setup.weights.frozen["blocks"]
        merged = {
            name: {"kernel": blocks[name]["kernel"] + 7.5 / 3 * np.matmul(part["a"], part["b"])}
            for name, part in adapter.items()
        }
        merged = setup.weights.frozen | {"blocks": blocks | {name: blocks[name] | merged[name] for name in merged}}
        jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-6), params, merged)
        logits[role] = compute_logits(nnx.merge(decoder.define_decoder(spec)[0], params))
        unmerged = compute_logits(make_model(setup.policy, setup.weights, role))
        np.testing.assert_allclose(logits[role], unmerged, atol=1e-5)
    assert np.abs(logits["planner"] - logits["solver"]).max() > 0.1


def test_an_adapter_folder_holds_its_matrices_transposed(adapted, tmp_path):
    run, setup, base = adapted
    assert main(["export", str(run), "--to", str(tmp_path / "out"), "--adapters", "peft"]) == 0
    config = json.loads((tmp_path / "out" / "solver" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (3, 7.5, str(base))
    assert sorted(config["target_modules"]) == ["down_proj", "q_proj", "v_proj"]
    tensors = safetensors.numpy.load_file(tmp_path / "out" / "solver" / "adapter_model.safetensors")
    assert len(tensors) == 2 * 2 * 3
    name = "base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"
    np.testing.assert_array_equal(tensors[name], np.asarray(setup.weights.trained["solver"]["down"]["a"])[1].T)
    assert load_tokenizer(tmp_path / "out" / "solver").stop_tokens == setup.tokenizer.stop_tokens


# --------------------------------------------------------------------------------------------------------------------
# Beside torch, where it is installed


def test_transformers_reads_the_folder_as_we_do(shared, tmp_path):
    torch = pytest.importorskip("torch")
    import transformers

    run, setup = shared
    assert main(["export", str(run), "--to", str(tmp_path / "out")]) == 0
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values())
    with torch.no_grad():
        logits = theirs(torch.tensor(TOKENS)).logits.numpy()
    ours = compute_logits(make_model(setup.policy, setup.weights, "solver"))
    assert ours.std() > 0.3
    np.testing.assert_allclose(logits, ours, atol=1e-5)
    assert theirs.generation_config.eos_token_id == list(setup.tokenizer.stop_tokens)
    assert (theirs.generation_config.top_k, theirs.generation_config.temperature) == (20, 0.7)
    vocabulary = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    messages = [{"role": "user", "content": "the dial shows 3 . plan :"}]
    ids = vocabulary.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids == setup.tokenizer.encode_prompt(setup.tokenizer.render("", messages[0]["content"]))


def test_peft_puts_the_adapter_on_the_exported_base(adapted, tmp_path):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    import transformers

    run, setup, base = adapted
    assert main(["export", str(run), "--to", str(tmp_path / "out"), "--adapters", "peft"]) == 0
    for role in ("planner", "solver"):
        network = transformers.AutoModelForCausalLM.from_pretrained(base)
        theirs = peft.PeftModel.from_pretrained(network, str(tmp_path / "out" / role))
        with torch.no_grad():
            logits = theirs(torch.tensor(TOKENS)).logits.numpy()
        ours = compute_logits(make_model(setup.policy, setup.weights, role))
        np.testing.assert_allclose(logits, ours, atol=1e-5)


# --------------------------------------------------------------------------------------------------------------------
# What is refused


def refuse(capsys, *words: str) -> str:
    capsys.readouterr()
    assert main(["export", *words]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    return printed.err


def test_what_cannot_be_exported_is_one_sentence(shared, tmp_path, capsys):
    run, _ = shared
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").write_text("")
    assert "full: expected a folder that is empty or not there yet, got one with" in refuse(
        capsys, str(run), "--to", str(full)
    )
    assert "mine: expected a folder that is empty or not there yet, got something else" in refuse(
        capsys, str(run), "--to", str(full / "mine")
    )
    out = ["--to", str(tmp_path / "out")]
    assert "expected newest, best or one of [4, 7], got '5'" in refuse(capsys, str(run), *out, "--checkpoint", "5")
    assert "expected a run with a config.yaml, found none" in refuse(capsys, str(full), *out)
    assert "expected a run directory, a config file, or one of code_repair, debate, " in refuse(
        capsys, str(tmp_path / "none"), *out
    )
    got = refuse(capsys, str(run), *out, "--adapters", "peft")
    assert "--adapters: expected a run with policy.kind adapters for peft, got policy.kind 'shared'" in got
    assert not (tmp_path / "out").exists()


@contextmanager
def files_of_at_most(count: int) -> Iterator[None]:
    """The system refuses larger files: as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_folder_that_cannot_be_written_whole_is_not_written(shared, tmp_path, capsys):
    run, _ = shared
    with files_of_at_most(4096):  # more than config.json, less than the weights
        said = refuse(capsys, str(run), "--to", str(tmp_path / "deep" / "out"))
    assert "out: cannot be written (File too large)" in said
    assert list((tmp_path / "deep").iterdir()) == []


def test_a_base_that_was_exchanged_is_refused_wherever_it_is_read(adapted, tmp_path, capsys):
    run, _, base = adapted
    weights = base / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # one bit of one weight
    commands = (
        ["ask", str(run), "up"],
        ["evaluate", str(run)],
        ["export", str(run), "--to", str(tmp_path / "out")],
        ["train", str(run / "config.yaml"), "--run-dir", str(run)],
    )
    sentence = (
        f"c3jax: run directory {run}: expected model model.safetensors as the run was last started with, got another"
        " content (--accept-changes takes it)\n"
    )
    try:
        for words in commands:
            assert main(words) == 2 and capsys.readouterr().err == sentence
        starts = json.loads((run / "manifest.json").read_text())["starts"]
        for words in commands[:3]:
            assert main([*words, "--accept-changes"]) == 0
        # Both hashes are kept, with the command that took the new one; without it the next is refused as before.
        first, *others = json.loads((run / "manifest.json").read_text())["starts"][len(starts) :]
        assert [start["changes"]["command"] for start in (first, *others)] == [
            ["c3jax", *words, "--accept-changes"] for words in commands[:3]
        ]
        assert first["step"] == 7
        assert first["changes"]["inputs"]["model"]["model.safetensors"] == hash_file(weights)
        capsys.readouterr()
        assert main(commands[0]) == 2 and capsys.readouterr().err == sentence
    finally:
        weights.write_bytes(content)


def test_nothing_is_compared_with_a_configs_model_and_it_is_not_hashed(adapted, tmp_path, monkeypatch):
    run, _, _ = adapted
    config = tmp_path / "config.yaml"
    config.write_bytes((run / "config.yaml").read_bytes())

    def refuse_hash(path: Path) -> str:
        raise AssertionError(f"{path} is hashed")

    monkeypatch.setattr(team, "hash_file", refuse_hash)
    assert main(["ask", str(config), "up"]) == 0
    with pytest.raises(AssertionError, match="is hashed"):
        main(["ask", str(run), "up"])
