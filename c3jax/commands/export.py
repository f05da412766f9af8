"""A trained policy as Hugging Face folders, which transformers, PEFT and c3jax itself read.

    policy      what is written to DIR
    shared      DIR is the model
    per_role    DIR/<role> is each trained role's model
    adapters    DIR/<role> is each trained role's model with its adapter merged in, or its adapter for PEFT

Only weights are read of the run: its problems need not be at hand. DIR is written whole or not at all.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
from rich.console import Console

from c3jax.config import run as config_lib
from c3jax.models import decoder, load, policy
from c3jax.models.huggingface import peft as peft_folder
from c3jax.models.huggingface import weights as hf_weights
from c3jax.rollout import address
from c3jax.run.checkpoint import restore_step
from c3jax.run.directory import check_inputs
from c3jax.run.files import explain_failure
from c3jax.run.source import open_source
from c3jax.setup.team import hash_inputs, list_words
from c3jax.tasks.task import find_task
from c3jax.types import UserError


class Form(NamedTuple):
    """In which form a policy is written."""

    dtype: str = "float32"  # of the stored weights; PEFT's are always float32
    is_peft: bool = False  # adapters alone, instead of merged models


class _Source(NamedTuple):
    """What is exported: a run's checkpoint, or, with no run, a config's model before training."""

    config: config_lib.RunConfig
    run: Path | None
    step: int
    model: load.Description


def export_source(
    source: str, checkpoint: str, target: Path, form: Form, console: Console, accepting: Sequence[str] = ()
) -> int:
    """Write the policy of a run's checkpoint, or a config's model before training, as a Hugging Face folder.

    Args:
      source: a run directory or a config.
      checkpoint: of a run: newest, best, or a step.
      target: the folder, empty or not there yet.
      form: of what is written.
      console: to print on.
      accepting: as for `check_inputs`.

    Returns:
      0, the exit code.

    Raises:
      UserError: source or checkpoint cannot be used, the folder has something in it, or the disk does not take it.
    """
    _check_target(target)
    config, run, step = open_source(source, checkpoint)
    words = list_words(config, find_task(config.task.kind))
    opened = _Source(config, run, step, load.describe_model(config.model, words))
    if opened.run is not None:
        check_inputs(opened.run, hash_inputs(opened.config, None, opened.model), opened.step, accepting)
    roles = _list_roles(opened, form)
    with explain_failure(f"--to {target}: cannot be written"):
        target.parent.mkdir(parents=True, exist_ok=True)
        _check_space(opened, form, max(1, len(roles)), target.parent)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as part:
            written = Path(part) / target.name
            _write(opened, form, roles, written)
            written.replace(target)  # takes the place of an empty folder too
    what = f"step {opened.step} of {source}" if opened.run else f"the model of {source}"
    console.print(f"wrote {what} to {target}", highlight=False, markup=False, soft_wrap=True)
    for role in roles:
        console.print(f"  {target / role}", highlight=False, markup=False, soft_wrap=True)
    return 0


def _check_target(target: Path) -> None:
    if target.is_dir() and any(target.iterdir()):
        raise UserError(f"--to {target}: expected a folder that is empty or not there yet, got one with files")
    if not target.is_dir() and (target.exists() or target.is_symlink()):
        raise UserError(f"--to {target}: expected a folder that is empty or not there yet, got something else")


def _list_roles(source: _Source, form: Form) -> list[str]:
    """Roles with a folder of their own; none where DIR itself is the model."""
    kind = source.config.policy.kind
    if form.is_peft and (kind != "adapters" or source.run is None):
        got = f"policy.kind {kind!r}" if source.run else "a config, whose adapters are not trained"
        raise UserError(f"--adapters: expected a run with policy.kind adapters for peft, got {got}")
    if kind == "shared" or source.run is None:
        return []
    roles = config_lib.trained_roles(source.config.protocol)
    for role in roles:
        if "/" in role or "\0" in role or role in (".", ".."):
            raise UserError(f"protocol.turns: expected roles that can name a folder, got {role!r}")
    return roles


def _check_space(source: _Source, form: Form, models: int, folder: Path) -> None:
    if form.is_peft:
        return
    numbers = decoder.count_params(decoder.define_decoder(source.model.spec)[1])
    size = models * numbers * (2 if form.dtype == "bfloat16" else 4)
    free = shutil.disk_usage(folder).free
    if size > free:
        raise UserError(f"--to: expected {size:,} free bytes on its disk, got {free:,}")


# --------------------------------------------------------------------------------------------------------------------
# Writing


def _write(source: _Source, form: Form, roles: Sequence[str], target: Path) -> None:
    if source.config.policy.kind == "adapters" and source.run is not None:
        _write_adapters(source, form, roles, target)
        return
    for folder, params in _read_models(source, roles, target):
        _write_model(source, form, folder, params)


def _read_models(source: _Source, roles: Sequence[str], target: Path) -> Iterator[tuple[Path, dict]]:
    """Each whole model and its folder, one at a time in memory."""
    if source.run is None:
        yield target, _load_start(source)
        return
    _, shapes = decoder.define_decoder(source.model.spec)
    for role in roles or [None]:
        part = "params" if role is None else f"params.{role}"
        yield target / (role or ""), restore_step(source.run, source.step, shapes, part)


def _load_start(source: _Source) -> dict:
    """The parameters of the network that the run began with."""
    key = address.make_stream(source.config.seed, address.INIT)
    return load.load_params(source.model, key)


def _write_adapters(source: _Source, form: Form, roles: Sequence[str], target: Path) -> None:
    section, run = source.config.policy, source.run
    assert run is not None  # a config's adapters are not trained
    scale = section.alpha / section.rank
    spec = source.model.spec._replace(adapters=decoder.Adapters(section.rank, scale, tuple(section.targets)))
    shapes = jax.eval_shape(partial(policy.init_adapter, spec), jax.random.key(0))
    params = {} if form.is_peft else _load_start(source)
    for role in roles:
        adapter = restore_step(run, source.step, shapes, f"params.{role}")
        if form.is_peft:
            base = _name_base(source.config.model)
            peft_folder.save_peft_folder(target / role, spec.family, adapter, section.alpha, *base)
            _write_tokenizer(source, target / role)
        else:
            _write_model(source, form, target / role, params, adapter)


def _name_base(model: load.ModelSection) -> tuple[str, str | None]:
    """Where PEFT finds the network below an adapter, and which revision of it."""
    if model.kind == "hub":
        return model.name, model.revision
    if model.kind == "folder":
        return str(Path(model.path).resolve()), None
    return "HuggingFaceTB/SmolLM2-135M-Instruct", None


def _write_model(source: _Source, form: Form, folder: Path, params: dict, adapter: dict | None = None) -> None:
    scale = source.config.policy.alpha / source.config.policy.rank

    def change_kernel(name: str, layer: int, kernel: jax.Array) -> jax.Array:
        if adapter is None or name not in adapter:
            return kernel
        part = {letter: leaf[layer] for letter, leaf in adapter[name].items()}
        return peft_folder.merge_kernel(kernel, part, scale)

    stop_tokens = source.model.tokenizer.stop_tokens
    hf_weights.save_folder(folder, source.model.spec, params, form.dtype, stop_tokens, change_kernel=change_kernel)
    _write_tokenizer(source, folder)


def _write_tokenizer(source: _Source, folder: Path) -> None:
    """The tokenizer's files, and a generation_config.json with every stop token and the sampling of the run."""
    source.model.tokenizer.save(str(folder))
    sampling = source.config.sampling
    config = {
        "eos_token_id": list(source.model.tokenizer.stop_tokens),
        "do_sample": True,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,  # 0 is all of them, and 50 where it is left out
        "top_p": sampling.top_p,
    }
    (folder / "generation_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
