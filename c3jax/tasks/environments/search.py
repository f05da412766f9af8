"""Search: the last message is a query, the answer the passages of a collection that fit it best, by BM25.

The collection is a file: JSON lines with `text` and, if they have one, `title`; or plain text, whose paragraphs are
the passages. Words are compared in small letters. Passages that fit equally well come in the file's order, so the
same query always has the same answer.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from c3jax.schema import ConfigError
from c3jax.tasks.environment import Environment, Message, Observation, check_package
from c3jax.tasks.jsonl import Row, TaskError, check_text, read_content, read_rows
from c3jax.types import Problem

_WORD = re.compile(r"\w+")
_JSON_LINES = (".jsonl", ".jsonl.gz")


class Collection(NamedTuple):
    """Passages and the index of their words."""

    passages: tuple[str, ...]
    index: Any  # of bm25s


class Searching(NamedTuple):
    """The state of an episode: a query leaves nothing behind."""

    collection: Collection
    results: int
    characters: int


def begin(problem: Problem, seed: int, path: str, results: int = 3, characters: int = 500) -> Searching:
    """Open the collection; each process reads it once.

    Args:
      problem, seed: of the episode; every episode searches the same collection.
      path: of the collection.
      results: passages in an answer, at most.
      characters: of a passage that an answer shows, at most.
    """
    status = os.stat(path)
    return Searching(_load_collection(path, status.st_mtime_ns, status.st_size), results, characters)


def answer(state: Searching, messages: Sequence[Message]) -> Observation:
    """The passages that fit the last message best, numbered, or that there are none."""
    words = _list_words(messages[-1].text)
    if not words:
        return Observation("no query")
    scores = state.collection.index.get_scores(words)
    best = [row for row in (-scores).argsort(kind="stable")[: state.results].tolist() if scores[row] > 0]
    if not best:
        return Observation("nothing found")
    found = [state.collection.passages[row][: state.characters] for row in best]
    return Observation("\n".join(f"[{number}] {passage}" for number, passage in enumerate(found, 1)))


def bind(settings: Mapping[str, Any], is_contained: bool) -> Environment:
    """Check, where a run is set up, that there is something to search and something to search it with.

    Args:
      settings: of `begin`.
      is_contained: nothing is run here that would need a sandbox.

    Raises:
      UserError: the package is not installed, a number is none, or the file holds no passages.
    """
    check_package("search", "bm25s", "search")
    for name in ("results", "characters"):
        number = settings.get(name, 1)
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise ConfigError(f"environment.settings.{name}: expected a number of at least 1, got {number!r}")
    path = settings.get("path")
    if not isinstance(path, str):
        raise ConfigError(f"environment.settings.path: expected the file to be searched, got {path!r}")
    read_passages(path)
    return SEARCH


def read_passages(path: str) -> tuple[str, ...]:
    """Read a collection's passages, their titles before them.

    Args:
      path: of JSON lines, where it ends like their files (.jsonl, .jsonl.gz), or else of paragraphs; gzipped or not.

    Raises:
      TaskError: the file cannot be read, a line is not as above, or no passage has a word.
    """
    if path.endswith(_JSON_LINES):
        passages = [_read_passage(row) for row in read_rows(path)]
    else:
        passages = _read_paragraphs(path)
    if not any(_list_words(passage) for passage in passages):
        raise TaskError(f"{path}: expected passages to search, found no word")
    return tuple(passages)


def _read_passage(row: Row) -> str:
    text, title = check_text(row.where, "text", row.fields.get("text")), row.fields.get("title")
    return text if title in (None, "") else f"{check_text(row.where, 'title', title)}: {text}"


def _read_paragraphs(path: str) -> list[str]:
    try:
        content = read_content(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TaskError(f"{path}: expected text in UTF-8 ({error})") from error
    paragraphs = (" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", content))
    return [paragraph for paragraph in paragraphs if paragraph]


def _list_words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


@functools.lru_cache(maxsize=4)
def _load_collection(path: str, changed_ns: int, size: int) -> Collection:
    passages = read_passages(path)
    index = _import_bm25s().BM25()
    index.index([_list_words(passage) for passage in passages], show_progress=False)
    return Collection(passages, index)


def _import_bm25s() -> Any:
    """bm25s runs a program on JAX's default device as it is imported. A worker process must not open that device."""
    is_hidden = "jax" not in sys.modules
    if is_hidden:
        sys.modules["jax"] = None  # pyright: ignore[reportArgumentType]
    try:
        import bm25s  # pyright: ignore[reportMissingImports]
    finally:
        if is_hidden:
            del sys.modules["jax"]
    return bm25s


SEARCH = Environment(reset=begin, step=answer, timeout_s=120.0, bind=bind)
