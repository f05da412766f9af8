"""What is set before JAX compiles anything."""

import os

import pytest

from c3jax.commands import runtime

TOLD = {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v4-8"}


@pytest.mark.parametrize(
    ("platforms", "node", "given", "expected"),
    [
        ("", None, {}, TOLD),
        ("", "accel0", {}, {}),  # a TPU VM's own metadata say what it is
        ("tpu", None, {}, {}),
        ("", None, {"TPU_WORKER_HOSTNAMES": "a,b"}, TOLD | {"TPU_WORKER_HOSTNAMES": "a,b"}),
    ],
)
def test_libtpu_is_silenced_where_no_tpu_is(monkeypatch, tmp_path, platforms, node, given, expected):
    environment = {"JAX_PLATFORMS": platforms} | given
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr(runtime, "_TPU_NODES", (str(tmp_path / "accel*"),))
    if node is not None:
        (tmp_path / node).touch()
    runtime.silence_absent_tpu()
    assert environment == {"JAX_PLATFORMS": platforms} | expected


def test_a_tpus_compiler_is_asked_once_to_share_code_and_the_users_own_flags_stand(monkeypatch):
    flag = "xla_tpu_enable_deduplicated_calls"
    for given, expected in (
        ({}, f"--undefok={flag} --{flag}=ENABLED"),
        ({"LIBTPU_INIT_ARGS": "--of_the_user=1"}, f"--undefok={flag} --{flag}=ENABLED --of_the_user=1"),
        ({"LIBTPU_INIT_ARGS": f"--{flag}=AUTO"}, f"--{flag}=AUTO"),
    ):
        monkeypatch.setattr(os, "environ", environment := dict(given))
        for _ in range(2):
            runtime.set_tpu_compiler()
        assert environment == {"LIBTPU_INIT_ARGS": expected}
