"""Policies: one decoder for the Llama and Qwen families, its attention over frames, tokenizers and weights."""
