"""Sampling beside other programs: one of them is stood in for, so that no environment has to be made."""

from __future__ import annotations

import json

from benchmarks.against import generate


def test_calls_are_timed_in_turn_beside_the_other_program(tmp_path, capsys):
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\necho "$3" > {tmp_path}/sizes\nwhile read -r line; do echo done; done\n')
    python.chmod(0o755)
    assert generate.main(["--small", "--repeats", "2", "--environment", str(tmp_path)]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert {name: len(values) for name, values in figures["seconds"].items()} == {
        "generate": 2, "c3jax": 2, "c3jax_repeated": 2
    }  # fmt: skip
    pairs = zip(figures["seconds"]["generate"], figures["seconds"]["c3jax"], strict=True)
    assert figures["generate_over"]["c3jax"] == [theirs / ours for theirs, ours in pairs]
    asked = json.loads((tmp_path / "sizes").read_text())
    assert (asked["contexts"], asked["alternatives"], asked["prompt"], asked["new_tokens"]) == (2, 2, 16, 4)
    assert asked["model"]["hidden_size"] == 48 and asked["model"]["num_key_value_heads"] == 1
