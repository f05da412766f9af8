"""Tokenizers: the fast tokenizers of Hugging Face as the few functions of `types.Tokenizer`.

No JAX here. transformers takes seconds to import, so it is imported where it is first needed.
"""

from __future__ import annotations

import copy
import datetime
import json
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from unittest import mock

from c3jax.types import Tokenizer, UserError

if TYPE_CHECKING:
    import tokenizers
    from transformers import PreTrainedTokenizerFast

PAD, STOP = "<pad>", "<stop>"
# Today's date for templates that ask for one, or a run's contexts would change overnight and from turn to turn: the one
# that Llama 3's have where they are given none.
_DATE = "26 Jul 2024"
_LFS = b"version https://git-lfs.github.com/spec/"
# No white space, and in no text: stands for what follows a piece.
_FOLLOWING = "\ue000"
# What steps of a tokenizer that put a space before a text call it: Prepend, Metaspace and ByteLevel.
_NO_PREFIX = {"prepend": "", "prepend_scheme": "never", "add_prefix_space": False}
_ROLES = ("system", "user", "assistant")
_MARKS = tuple(f"<|{role}|>" for role in _ROLES)
# Role marks are words like any other, a single space from their neighbours.
_WORD_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|> ' + message['content'] + ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


class _StoppedClock(datetime.datetime):
    """Midnight of _DATE."""

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> _StoppedClock:
        """Tell the time."""
        return cls(2024, 7, 26, tzinfo=tz)


def make_word_tokenizer(words: Sequence[str]) -> Tokenizer:
    """A tokenizer with one token per word, text being words between white space, and five special tokens after them.

    Token i is words[i]; then come <pad>, <stop> and the marks <|system|>, <|user|>, <|assistant|>. Encoding a word that
    is not in the list raises UserError naming it.

    Raises:
      UserError: the list is empty, repeats a word or has an entry that is no word.
    """
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    specials = (PAD, STOP, *_MARKS)
    if not words:
        raise UserError("words: expected at least one word for the tokenizer, got none")
    for index, word in enumerate(words):
        if word.split() != [word] or word in specials:
            raise UserError(f"words.{index}: expected a word that is no special token, got {word!r}")
    if len(set(words)) < len(words):
        repeated = next(word for word in words if words.count(word) > 1)
        raise UserError(f"words: expected every word once, got {repeated!r} more than once")
    # The special tokens are no words of the model, so text that spells one is an unknown word, not the token.
    vocabulary = {word: index for index, word in enumerate(words)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=""))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(list(specials))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=PAD, eos_token=STOP, clean_up_tokenization_spaces=False
    )
    fast.chat_template = _WORD_TEMPLATE
    return wrap_tokenizer(fast, own_stop_tokens(fast))


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of a Hugging Face folder: tokenizer.json, and a chat template in its config or chat_template.jinja.

    Its stop tokens are every eos_token_id of generation_config.json, else of config.json, else the tokenizer's own.

    Raises:
      UserError: in one sentence, where a file cannot be read or there is no chat template or stop token.
    """
    from transformers import PreTrainedTokenizerFast

    folder = Path(folder)
    read_json(folder / "tokenizer.json")
    if (folder / "tokenizer_config.json").exists():
        read_json(folder / "tokenizer_config.json")
    try:
        fast = PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # what transformers and tokenizers raise of a faulty file is of any kind
        raise UserError(f"{folder}: expected a tokenizer that can be read, got {describe_error(error)}") from None
    if not fast.chat_template:
        raise UserError(f"{folder}: expected a chat template (tokenizer_config.json or chat_template.jinja), got none")
    stop_tokens = _read_stop_tokens(folder, fast)
    if not set(own_stop_tokens(fast)) <= set(stop_tokens):
        warnings.warn(
            f"{folder}: {fast.eos_token}, the tokenizer's own end of a turn, is not among the stop tokens"
            f" {list(stop_tokens)} of generation_config.json or config.json: messages may run to max_tokens",
            stacklevel=2,
        )
    return wrap_tokenizer(fast, stop_tokens)


def describe_error(error: Exception) -> str:
    """What kind of error it is and what it says, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")[:300]


def check_fetched(path: Path) -> None:
    """Check that a file is there itself. Raises UserError where it is Git LFS's pointer to it."""
    with path.open("rb") as file:
        if file.read(len(_LFS)) == _LFS:
            raise UserError(f"{path}: expected the file, got a Git LFS pointer to it (git lfs pull fetches it)")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
      UserError: in one sentence, where it cannot be read or holds no object.
    """
    try:
        check_fetched(path)
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path}: expected JSON, got {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def own_stop_tokens(fast: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """The one end token that a transformers tokenizer names, or none."""
    return (fast.eos_token_id,) if isinstance(fast.eos_token_id, int) else ()


def wrap_tokenizer(fast: PreTrainedTokenizerFast, stop_tokens: Sequence[int]) -> Tokenizer:
    """A transformers tokenizer as the record.

    Args:
      fast: the tokenizer, with a chat template.
      stop_tokens: what ends a message.

    Raises:
      UserError: there is no stop token, or one that is none of the vocabulary.
    """
    vocabulary = fast.get_vocab()
    vocab_size = max(vocabulary.values()) + 1  # the number of entries is smaller where ids have gaps
    if not stop_tokens or not all(0 <= token < vocab_size for token in stop_tokens):
        raise UserError(
            f"{fast.name_or_path}: eos_token_id: expected tokens below {vocab_size}, got {list(stop_tokens)}"
        )
    encode = _make_encode_words(fast) if _is_word_level(fast) else _make_encode(fast)

    def save(folder: str) -> None:
        fast.save_pretrained(folder)
        path = Path(folder) / "tokenizer_config.json"
        # transformers 5 writes a name of its own for this class, which transformers 4 does not know.
        _write_json(path, read_json(path) | {"tokenizer_class": "PreTrainedTokenizerFast"})
        # The tokenizer's own files name one end token only.
        _write_json(Path(folder) / "generation_config.json", {"eos_token_id": list(stop_tokens)})

    return Tokenizer(
        encode_prompt=lambda text, is_start=True, is_cut=False: encode(text, False, is_start, is_cut),
        encode_text=lambda text: encode(text, True, False, False),
        decode=lambda tokens: fast.backend_tokenizer.decode(
            [int(token) for token in tokens], skip_special_tokens=False
        ),
        render=_make_render(fast),
        stop_tokens=tuple(stop_tokens),
        vocab_size=vocab_size,
        save=save,
        list_bytes=lambda: _list_bytes(fast, vocab_size),
        added_tokens={token.content: index for index, token in fast.added_tokens_decoder.items()},
    )


def _list_bytes(fast: PreTrainedTokenizerFast, vocab_size: int) -> list[bytes]:
    """What each token adds in the middle of a text; of an id without a token nothing."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    backend = fast.backend_tokenizer
    added = {index: token.content for index, token in fast.added_tokens_decoder.items()}
    words = [backend.id_to_token(token) for token in range(vocab_size)]
    if '"ByteLevel"' in json.dumps(json.loads(backend.to_str())["decoder"]):
        letters = {letter: byte for byte, letter in bytes_to_unicode().items()}

        def read_word(word: str) -> bytes:  # one with other letters is decoded as it stands
            return bytes(map(letters.__getitem__, word)) if letters.keys() >= {*word} else word.encode()

        return [added[token].encode() if token in added else read_word(word or "") for token, word in enumerate(words)]
    # Some decoders strip a text's first space: a token is decoded after a letter, which is taken off again.
    first = next(token for token, word in enumerate(words) if word is not None and token not in added)
    before = backend.decode([first], skip_special_tokens=False)
    pairs = backend.decode_batch([[first, token] for token in range(vocab_size)], skip_special_tokens=False)
    return [
        _read_byte(word) or pair.removeprefix(before).encode() if word is not None else b""
        for word, pair in zip(words, pairs, strict=True)
    ]


def _read_byte(word: str) -> bytes | None:
    """The byte of a token <0xE2>, by which such vocabularies spell what they have no token for."""
    found = re.fullmatch("<0x([0-9A-Fa-f]{2})>", word)
    return None if found is None else bytes([int(found[1], 16)])


def _is_word_level(fast: PreTrainedTokenizerFast) -> bool:
    import tokenizers

    model = fast.backend_tokenizer.model
    return isinstance(model, tokenizers.models.WordLevel) and model.token_to_id(model.unk_token) is None


def _make_encode(fast: PreTrainedTokenizerFast) -> Callable[[str, bool, bool, bool], list[int]]:
    """encode(text, are_specials_plain, is_start, is_cut); where a family begins with a token, its template has it."""
    bare = _strip_prefix(fast)

    def encode_alone(text: str, are_specials_plain: bool, is_start: bool) -> list[int]:
        ids = fast.encode(text, add_special_tokens=False, split_special_tokens=are_specials_plain)
        if bare is None or is_start:
            return ids
        if are_specials_plain:
            return bare.encode(text, add_special_tokens=False).ids
        # What stands before the first special token continues the piece before; the rest begins anew in any case.
        specials = fast.added_tokens_decoder
        first = next((index for index, token in enumerate(ids) if token in specials), len(ids))
        before = text[: text.index(specials[ids[first]].content)] if first < len(ids) else text
        return bare.encode(before, add_special_tokens=False).ids + ids[first:]

    following = encode_alone(_FOLLOWING, True, False)

    def encode(text: str, are_specials_plain: bool, is_start: bool, is_cut: bool) -> list[int]:
        # How white space at the end is split depends on whether more text follows.
        if is_cut and text[-1:].isspace():
            ids = encode_alone(text + _FOLLOWING, are_specials_plain, is_start)
            if ids[-len(following) :] == following:
                return ids[: -len(following)]
        return encode_alone(text, are_specials_plain, is_start)

    return encode


def _strip_prefix(fast: PreTrainedTokenizerFast) -> tokenizers.Tokenizer | None:
    """The tokenizer without the space that it puts before a text, as Llama 2's does; None where it puts none.

    A text in the middle of a context has no such space. It encodes special tokens as plain characters.
    """
    import tokenizers

    whole = json.loads(fast.backend_tokenizer.to_str())
    parts = {name: whole[name] for name in ("normalizer", "pre_tokenizer")}  # the vocabulary is large
    bare = copy.deepcopy(parts)
    for step in [step for part in bare.values() for step in _list_steps(part)]:
        step |= {name: value for name, value in _NO_PREFIX.items() if name in step}
    if bare == parts:
        return None
    stripped = tokenizers.Tokenizer.from_str(json.dumps(whole | bare))
    stripped.no_truncation()
    stripped.no_padding()
    stripped.encode_special_tokens = True
    return stripped


def _list_steps(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a normaliser or pre-tokenizer, those inside a sequence too."""
    if part is None:
        return []
    inside = part.get("normalizers", part.get("pretokenizers"))
    return [part] if inside is None else [step for each in inside for step in _list_steps(each)]


def _make_encode_words(fast: PreTrainedTokenizerFast) -> Callable[[str, bool, bool, bool], list[int]]:
    words = fast.backend_tokenizer.get_vocab(with_added_tokens=False)
    specials = fast.get_added_vocab()

    def encode(text: str, are_specials_plain: bool, is_start: bool, is_cut: bool) -> list[int]:
        for word in text.split():
            if word not in words and (are_specials_plain or word not in specials):
                raise UserError(f"expected words of the tokenizer, got {word!r}, which is none of its {len(words)}")
        return fast.encode(text, add_special_tokens=False, split_special_tokens=are_specials_plain)

    return encode


def _make_render(fast: PreTrainedTokenizerFast) -> Callable[[str, str], str]:
    import jinja2
    from transformers.utils import chat_template_utils

    name = fast.name_or_path

    def render(system: str, user: str, thinking: bool | None = None) -> str:
        passed: dict[str, Any] = {} if thinking is None else {"enable_thinking": thinking}
        messages = [{"role": "user", "content": user}]
        if system:
            messages.insert(0, {"role": "system", "content": system})
        try:
            # The clock that templates are given cannot be passed as an argument: no function can.
            with mock.patch.object(chat_template_utils, "datetime", _StoppedClock):
                return cast(
                    str,
                    fast.apply_chat_template(
                        messages, tokenize=False, add_generation_prompt=True, date_string=_DATE, **passed
                    ),
                )
        except jinja2.TemplateError as error:
            raise UserError(
                f"{name}: expected prompts that the chat template accepts, got its error: {error}"
            ) from None
        except Exception as error:  # a template is a program
            raise UserError(f"{name}: expected a chat template that works, got {describe_error(error)}") from None

    return render


def _read_stop_tokens(folder: Path, fast: PreTrainedTokenizerFast) -> tuple[int, ...]:
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        found: Any = read_json(path).get("eos_token_id") if path.exists() else None
        if found is None:
            continue
        tokens = found if isinstance(found, list) else [found]
        if not tokens or not all(type(token) is int for token in tokens):
            raise UserError(f"{path}: expected eos_token_id to be a token or a list of tokens, got {found!r}")
        return tuple(dict.fromkeys(tokens))
    if not own_stop_tokens(fast):
        raise UserError(f"{folder}: expected an eos_token_id (generation_config.json or config.json), got none")
    return own_stop_tokens(fast)
