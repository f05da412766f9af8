"""Tokenizers: words, and Hugging Face folders written here by hand."""

import json
import re

import pytest
import tokenizers

from c3jax.models import tokenizer
from c3jax.types import UserError

WORDS = ("turn", "the", "dial", "7", "up", ".")
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture(scope="module")
def words():
    return tokenizer.make_word_tokenizer(WORDS)


@pytest.fixture
def folder(tmp_path):
    """A folder as a model's is: a byte-level vocabulary whose last three tokens are special."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*alphabet, "ab"])}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[("a", "b")]))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(["<begin>", "<end>", "<turn>"])  # 257, 258, 259
    backend.post_processor = tokenizers.processors.TemplateProcessing("<begin> $A", None, [("<begin>", 257)])
    backend.enable_truncation(4)  # as some folders have it
    backend.save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<begin>", "eos_token": "<end>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": TEMPLATE}))
    return tmp_path


def _change(path, **fields):
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **fields}))


# --------------------------------------------------------------------------------------------------------------------
# Words


def test_words_are_tokens_in_their_order(words):
    assert words.encode_text("turn the dial up .") == [0, 1, 2, 4, 5]
    assert words.encode_text("  turn\n the ") == [0, 1] and words.encode_text("") == []
    assert words.decode([0, 1, 2, 3, 7]) == "turn the dial 7 <stop>"
    assert words.vocab_size == 6 + 5 and words.stop_tokens == (7,)  # <pad> is 6, <stop> is 7


def test_word_prompts_carry_role_marks(words):
    assert words.render("", "turn up") == "<|user|> turn up <|assistant|>"
    prompt = words.render("the dial .", "turn up")
    assert prompt == "<|system|> the dial . <|user|> turn up <|assistant|>"
    assert words.encode_prompt(prompt) == [8, 1, 2, 5, 9, 0, 4, 10]


@pytest.mark.parametrize("text", ["turn left up", "turn left"])
def test_an_unknown_word_is_named(words, text):
    for encode in (words.encode_text, words.encode_prompt):
        with pytest.raises(ValueError, match="'left', which is none of its 6$"):
            encode(text)


@pytest.mark.parametrize("special", ["<pad>", "<stop>", "<|system|>", "<|user|>", "<|assistant|>"])
def test_special_tokens_in_text_are_no_tokens(words, special):
    assert len(words.encode_prompt(f"up {special}")) == 2
    with pytest.raises(ValueError, match="expected words of the tokenizer, got"):
        words.encode_text(f"up {special}")


@pytest.mark.parametrize(
    "bad, message",
    [
        ((), "expected at least one word"),
        (("a", "b c"), r"words\.1: expected a word .* got 'b c'"),
        (("", "a"), r"words\.0: .* got ''"),
        (("a", "<stop>"), r"words\.1: .* got '<stop>'"),
        (("a", "b", "a"), "expected every word once, got 'a'"),
    ],
)
def test_lists_that_are_no_vocabulary_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        tokenizer.make_word_tokenizer(bad)


def test_saved_words_load_as_they_were(words, tmp_path):
    words.save(str(tmp_path))
    loaded = tokenizer.load_tokenizer(tmp_path)
    prompt = words.render("the dial .", "turn up")
    assert loaded.render("the dial .", "turn up") == prompt
    assert loaded.encode_prompt(prompt) == words.encode_prompt(prompt)
    assert (loaded.stop_tokens, loaded.vocab_size) == (words.stop_tokens, words.vocab_size)
    with pytest.raises(ValueError, match="'left'"):
        loaded.encode_text("turn left")


# --------------------------------------------------------------------------------------------------------------------
# Folders


def test_a_folder_renders_by_its_template(folder):
    loaded = tokenizer.load_tokenizer(folder)
    assert loaded.render("", "hi") == "<begin>[user]hi[assistant]"
    assert loaded.render("be brief", "hi") == "<begin>[system]be brief[user]hi[assistant]"
    (folder / "chat_template.jinja").write_text("{{ messages[-1]['content'] }}!")
    assert tokenizer.load_tokenizer(folder).render("be brief", "hi") == "hi!"


def test_special_tokens_count_in_prompts_only(folder):
    loaded = tokenizer.load_tokenizer(folder)
    text = "ab<end>é<turn> ab"
    prompt_ids, text_ids = loaded.encode_prompt(text), loaded.encode_text(text)
    # ab, <end>, the two bytes of é, <turn>, a space and ab; no <begin> unless it is written.
    assert len(prompt_ids) == 7 and (prompt_ids[0], prompt_ids[1], prompt_ids[4]) == (256, 258, 259)
    assert len(text_ids) == 1 + 5 + 2 + 6 + 2 and max(text_ids) == 256
    assert loaded.encode_prompt(text) == prompt_ids  # whichever was called before
    assert loaded.decode(prompt_ids) == text and loaded.decode(text_ids) == text
    assert loaded.decode(loaded.encode_text("a , b . don 't")) == "a , b . don 't"  # nothing is cleaned up


@pytest.mark.parametrize(
    "generation, config, expected",
    [
        ({}, {}, (258,)),  # the tokenizer's own
        ({}, {"eos_token_id": 259}, (259,)),
        ({"eos_token_id": None}, {"eos_token_id": [259, 258]}, (259, 258)),
        ({"eos_token_id": [258, 259, 258]}, {"eos_token_id": 257}, (258, 259)),
        ({"eos_token_id": 257}, {}, (257,)),
    ],
)
def test_stop_tokens_come_from_the_first_file_that_names_them(folder, generation, config, expected):
    _change(folder / "generation_config.json", **generation)
    _change(folder / "config.json", **config)
    assert tokenizer.load_tokenizer(folder).stop_tokens == expected


def test_a_saved_folder_loads_as_it_was(folder, tmp_path):
    _change(folder / "generation_config.json", eos_token_id=[258, 259])
    loaded = tokenizer.load_tokenizer(folder)
    loaded.save(str(tmp_path / "out"))
    written = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"  # a name that transformers 4 knows too
    again = tokenizer.load_tokenizer(tmp_path / "out")
    assert again.stop_tokens == (258, 259) and again.vocab_size == loaded.vocab_size == 260
    prompt = loaded.render("x", "<turn>ab")
    assert again.render("x", "<turn>ab") == prompt
    assert again.encode_prompt(prompt) == loaded.encode_prompt(prompt)
    assert again.encode_text(prompt) == loaded.encode_text(prompt)


def test_a_space_before_a_text_is_put_before_a_context_alone(tmp_path):
    # As Llama 2 has it: every text, and what follows a special token, begins with a space that nobody wrote.
    names = ["<unk>", "<s>", "</s>", "_", "a", "b", "[", "]", "_a", "_b", "_["]
    pairs = [("_", "a"), ("_", "b"), ("_", "[")]
    vocabulary = {name.replace("_", "\u2581"): index for index, name in enumerate(names)}
    merges = [(left.replace("_", "\u2581"), right) for left, right in pairs]
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>"))
    steps = tokenizers.normalizers
    backend.normalizer = steps.Sequence([steps.Prepend("\u2581"), steps.Replace(" ", "\u2581")])
    backend.add_special_tokens(["<s>", "</s>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "chat_template": "[ ]"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    loaded = tokenizer.load_tokenizer(tmp_path)

    def show(ids):
        return " ".join(names[token] for token in ids)

    assert show(loaded.encode_prompt("<s>[a ")) == "<s> _[ a _"
    assert show(loaded.encode_prompt("a b")) == "_a _b"  # TinyLlama's contexts begin so, with no special token
    assert show(loaded.encode_text("a b")) == "a _b"
    assert show(loaded.encode_prompt("] a</s><s>[b", False)) == "] _a </s> <s> _[ b"
    assert show(loaded.encode_prompt(" ]", False)) == "_ ]"
    # A conversation in three pieces is the whole, but for the space before the message.
    whole = loaded.encode_prompt("<s>[a b ]a")
    pieces = [loaded.encode_prompt("<s>[", True, True), loaded.encode_text("a b"), loaded.encode_prompt(" ]a", False)]
    assert show(whole) == "<s> _[ a _b _ ] a" and sum(pieces, []) == whole


def test_white_space_before_a_cut_is_split_as_before_a_text(tmp_path):
    # GPT-2's pattern takes all white space at the end of a text together, but leaves the last to what follows it.
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    newline = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str("\n")[0][0]
    vocabulary = {token: index for index, token in enumerate([*alphabet, 2 * newline])}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[(newline, newline)]))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_special_tokens(["<end>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>", "chat_template": "x"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    loaded = tokenizer.load_tokenizer(tmp_path)
    a, line = vocabulary["a"], vocabulary[newline]
    assert loaded.encode_prompt("a\n\na") == [a, line, line, a]
    assert loaded.encode_prompt("a\n\n", True, True) == [a, line, line]
    assert loaded.encode_prompt("a\n\n") == [a, 256]


def test_the_bytes_of_byte_level_tokens_are_those_they_stand_for(folder):
    loaded = tokenizer.load_tokenizer(folder)
    pieces = loaded.list_bytes()
    text = "a\u00e9 \u6f22\n\u00a0</think> \U0001f600ab"
    assert b"".join(pieces[token] for token in loaded.encode_text(text)) == text.encode()
    assert sorted(pieces[:256]) == [bytes([byte]) for byte in range(256)]
    assert pieces[256:] == [b"ab", b"<begin>", b"<end>", b"<turn>"]
    assert loaded.added_tokens == {"<begin>": 257, "<end>": 258, "<turn>": 259}


def test_the_bytes_of_other_tokens_are_what_they_add_in_the_middle_of_a_text(words, tmp_path):
    # As Llama 2 has it: a mark for a space, which decoding strips from a text's start, and bytes for other characters.
    names = ["<unk>", "<s>", "</s>", "<0xE2>", "\u2581", "\u2581a", "b", "\u00e9", "<0x3c>"]
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({name: i for i, name in enumerate(names)}, []))
    steps = tokenizers.decoders
    backend.decoder = steps.Sequence(
        [steps.Replace("\u2581", " "), steps.ByteFallback(), steps.Fuse(), steps.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "chat_template": "x"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    expected = [b"<unk>", b"<s>", b"</s>", b"\xe2", b" ", b" a", b"b", "\u00e9".encode(), b"<"]
    assert tokenizer.load_tokenizer(tmp_path).list_bytes() == expected
    assert words.list_bytes()[:3] == [b" turn", b" the", b" dial"]


def _no_template(folder):
    _change(folder / "tokenizer_config.json", chat_template=None)


def _no_end(folder):
    _change(folder / "tokenizer_config.json", eos_token=None)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (_no_template, "expected a chat template"),
        (_no_end, "expected an eos_token_id"),
        (lambda folder: (folder / "tokenizer.json").unlink(), r"tokenizer\.json: cannot be read"),
        (lambda folder: (folder / "tokenizer.json").write_text('{"mod'), r"tokenizer\.json: expected JSON"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "expected a tokenizer that can be read, got "),
        (
            lambda folder: (folder / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid 1"),
            r"tokenizer\.json: expected the file, got a Git LFS pointer to it \(git lfs pull fetches it\)$",
        ),
        (lambda folder: (folder / "tokenizer_config.json").write_text("[]"), "expected a JSON object, got list"),
        (lambda folder: _change(folder / "config.json", eos_token_id="2"), r"config\.json: .* eos_token_id .* '2'"),
        (lambda folder: _change(folder / "config.json", eos_token_id=260), r"expected tokens below 260, got \[260\]"),
    ],
)
def test_folders_that_cannot_be_used_say_why(folder, spoil, message):
    spoil(folder)
    with pytest.raises(ValueError, match=message):
        tokenizer.load_tokenizer(folder)


def test_a_template_that_refuses_a_system_prompt_says_so(folder):
    _change(folder / "tokenizer_config.json", chat_template="{{ raise_exception('no system role') if messages[1] }}x")
    loaded = tokenizer.load_tokenizer(folder)
    assert loaded.render("", "hi") == "x"
    with pytest.raises(ValueError, match="got its error: no system role"):
        loaded.render("be brief", "hi")


@pytest.mark.parametrize(
    ("template", "error"),
    [
        ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
        ("{{ 'a' + 1 }}", "TypeError: can only concatenate str"),
        ("{{ messages[0]['content']['text'].x.y }}", "its error: "),
        ([{"name": "rag", "template": "x"}, {"name": "tool_use", "template": "y"}], "ValueError: .*template"),
    ],
)
def test_a_template_that_fails_is_one_sentence(folder, template, error):
    _change(folder / "tokenizer_config.json", chat_template=template)
    loaded = tokenizer.load_tokenizer(folder)
    with pytest.raises(UserError, match=f"^{re.escape(str(folder))}: expected .* got {error}"):
        loaded.render("", "hi")


def test_the_clock_stands_still_in_templates(folder):
    template = "{{ strftime_now('%Y-%m-%d %H:%M:%S.%f') }} {{ date_string }}"
    _change(folder / "tokenizer_config.json", chat_template=template)
    assert tokenizer.load_tokenizer(folder).render("", "hi") == "2024-07-26 00:00:00.000000 26 Jul 2024"


def test_an_end_of_turn_that_stops_nothing_is_said(folder):
    (folder / "generation_config.json").write_text('{"eos_token_id": 1}')
    with pytest.warns(UserWarning, match=r"the tokenizer's own end of a turn, is not among the stop tokens \[1\]"):
        tokenizer.load_tokenizer(folder)
