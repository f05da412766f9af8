"""`python -m benchmarks.against.generate [--small]`: sampling beside Hugging Face's `generate`, call by call in turn.

The same sizes, float32, random weights, and nothing stops a message: 4 contexts of 512 tokens, 8 alternatives of 32 at
each. `generate` runs in a process and an environment of its own, made where it is not there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import venv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.rollout import Sizes, choose_sizes, make_samplers
from benchmarks.timing import time_in_turn

# On Linux PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu spares the gigabytes of CUDA.
PACKAGES = ("torch==2.13.0", "transformers==5.23.0")
# Answers every line on its input with a line, when a call is done.
GENERATE = """
import json, sys, torch
from transformers import LlamaConfig, LlamaForCausalLM
sizes = json.loads(sys.argv[1])
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(**sizes["model"])).eval()
prompt = torch.randint(1, sizes["model"]["vocab_size"], (sizes["contexts"], sizes["prompt"]))
new = sizes["new_tokens"]
settings = dict(do_sample=True, top_k=0, num_return_sequences=sizes["alternatives"], eos_token_id=None, pad_token_id=0)
settings |= dict(attention_mask=torch.ones_like(prompt), min_new_tokens=new, max_new_tokens=new)
for line in sys.stdin:
    with torch.inference_mode():
        out = model.generate(prompt, **settings)
    assert out.shape == (sizes["contexts"] * sizes["alternatives"], sizes["prompt"] + new), out.shape
    print("done", flush=True)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print the figures as one JSON object. Returns the exit code, 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.against.generate")
    parser.add_argument("--small", action="store_true", help="tiny sizes: checks that it runs, measures nothing")
    parser.add_argument("--environment", metavar="DIR", default=".against/transformers", help="made if not there")
    parser.add_argument("--repeats", metavar="N", type=int, default=3, help="timed calls of each, in turn (3)")
    arguments = parser.parse_args(argv)
    sizes, python = choose_sizes(arguments.small), make_environment(Path(arguments.environment), PACKAGES)
    rows, sample = sizes.contexts * sizes.alternatives, make_samplers(sizes)
    words = [str(python), "-c", GENERATE, json.dumps(_describe(sizes))]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        cases = {
            "generate": _ask(process),
            "c3jax": sample(sizes.contexts, sizes.new_tokens),
            "c3jax_repeated": sample(rows, sizes.new_tokens),  # each row with a context of its own, as in `generate`
        }
        seconds = time_in_turn(cases, arguments.repeats)
        assert process.stdin is not None
        process.stdin.close()  # no more calls
    ratios = {
        name: [theirs / ours for theirs, ours in zip(seconds["generate"], seconds[name], strict=True)]
        for name in ("c3jax", "c3jax_repeated")
    }
    print(json.dumps({"bench": "against generate", "seconds": seconds, "generate_over": ratios}, indent=2))
    return 0


def make_environment(path: Path, packages: Sequence[str]) -> Path:
    """The interpreter of an environment, which is made with these packages where it is not there."""
    python = path / "bin" / "python"
    if not python.exists():
        venv.create(path, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    return python


def _describe(sizes: Sizes) -> dict[str, Any]:
    spec = sizes.spec
    model = {
        **{"vocab_size": spec.vocab_size, "hidden_size": spec.width, "intermediate_size": spec.mlp_width},
        **{"num_hidden_layers": spec.layers, "num_attention_heads": spec.heads, "head_dim": spec.head_dim},
        **{"num_key_value_heads": spec.kv_heads, "max_position_embeddings": spec.context, "tie_word_embeddings": True},
    }
    fields = ("contexts", "alternatives", "prompt", "new_tokens")
    return {"model": model, **{name: getattr(sizes, name) for name in fields}}


def _ask(process: subprocess.Popen[str]) -> Callable[[], None]:
    def call() -> None:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        if process.stdout.readline() != "done\n":
            sys.exit("benchmarks: generate ended before it was done")

    return call


if __name__ == "__main__":
    sys.exit(main())
