"""Search: what is found and in which order, by arithmetic from outside, and what is refused where a run is set up."""

import importlib.util
import json
import math
import subprocess
import sys

import pytest

from c3jax.tasks.environment import Call, Message, open_environments, run_call
from c3jax.tasks.sections import EnvironmentSection
from c3jax.types import Problem, UserError

PROBLEM = Problem(0, "0", "Where?", "")
ROWS = [
    {"title": "Oslo", "text": "the capital of Norway is a port"},
    {"text": "a port, a port, a PORT"},
    {"text": "the cat sat"},
    {"text": "the cat sat"},
    {"title": "", "text": "Ümläute and so on"},
]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "collection.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    return str(path)


def open_search(**settings):
    section = EnvironmentSection(kind="search", settings=settings)
    return open_environments([None, section], None, True).environments


def search(query: str, **settings) -> str:
    asked = ((Message("ask", "asker", "whatever"), Message("look", "asker", query)),)
    ((text, reward, done),) = run_call(open_search(**settings), PROBLEM, Call(0, 1, asked))
    assert (reward, done) == (0.0, False)
    return text


def test_passages_come_by_their_score_and_equal_ones_by_their_row(path):
    oslo, port = "[{}] Oslo: the capital of Norway is a port", "[{}] a port, a port, a PORT"
    assert search("norway", path=path) == oslo.format(1)
    assert search("Cat!", path=path) == "[1] the cat sat\n[2] the cat sat"
    assert search("cat", path=path, results=1) == "[1] the cat sat"
    assert search("port", path=path) == f"{port.format(1)}\n{oslo.format(2)}"
    assert search("port capital", path=path) == f"{oslo.format(1)}\n{port.format(2)}"
    assert search("ÜMLÄUTE", path=path) == "[1] Ümläute and so on"
    assert search("norway", path=path, characters=8) == "[1] Oslo: th"
    assert search("zebra", path=path) == "nothing found"
    assert [search(query, path=path) for query in ("", " ?! ")] == ["no query"] * 2


def test_scores_are_those_of_the_formula(path):
    """BM25 with k1 = 1.5, b = 0.75: ln(1 + (N - n + .5) / (n + .5)) tf / (tf + k1 (1 - b + b length / mean))."""
    from c3jax.tasks.environments.search import begin

    index = begin(PROBLEM, 0, path).collection.index
    lengths = [8, 6, 3, 3, 4]  # in words; "port" is once in the first passage and three times in the second
    idf = math.log(1 + 3.5 / 2.5)
    expected = [
        idf * times / (times + 1.5 * (0.25 + 0.75 * length * 5 / sum(lengths)))
        for times, length in zip((1, 3, 0, 0, 0), lengths, strict=True)
    ]
    assert index.get_scores(["port"]).tolist() == pytest.approx(expected, rel=1e-6)


def test_paragraphs_of_a_text_are_passages_and_a_changed_file_is_read_again(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("First\nparagraph.\n\n \nSecond one.\n\n")
    assert search("paragraph", path=str(path)) == "[1] First paragraph."
    assert search("one", path=str(path)) == "[1] Second one."
    path.write_text("Another paragraph altogether.")
    assert search("paragraph", path=str(path)) == "[1] Another paragraph altogether."


@pytest.mark.parametrize(
    ("name", "content", "settings", "sentence"),
    [
        ("c.jsonl", None, {}, r"c.jsonl: the file cannot be read \(No such file"),
        ("c.txt", None, {}, r"c.txt: the file cannot be read \(No such file"),
        ("c.jsonl", b"", {}, "c.jsonl: "),
        ("c.txt", b" \n\n ", {}, "c.txt: expected passages to search, found no word"),
        ("c.txt", b"\xff\xfe", {}, "c.txt: expected text in UTF-8"),
        ("c.txt", b"\x1f\x8b", {}, "c.txt: this is no whole gzip file"),
        ("c.jsonl", b'{"title": "A"}', {}, "c.jsonl, line 1: the field 'text' is missing"),
        ("c.jsonl", b'{"text": "a", "title": 3}', {}, "c.jsonl, line 1: the field 'title' must be text"),
        ("c.txt", b"a", {"results": 0}, "environment.settings.results: expected a number of at least 1, got 0"),
        ("c.txt", b"a", {"characters": "9"}, "environment.settings.characters: expected a number of at least 1"),
        ("c.txt", b"a", {"top": 3}, "settings: expected what the reset of search takes"),
    ],
)
def test_what_cannot_be_searched_is_one_sentence_at_set_up(tmp_path, name, content, settings, sentence):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        open_search(path=str(path), **settings)


def test_a_collection_and_the_package_are_asked_for(path, monkeypatch):
    with pytest.raises(UserError, match="environment.settings.path: expected the file to be searched, got None"):
        open_search()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs the package bm25s \(pip install 'c3jax\[search\]'\), found none"):
        open_search(path=path)


def test_a_worker_process_searches_without_jax(path):
    """The package would open JAX's default device, an accelerator that the run itself needs."""
    program = (
        "import sys\n"
        "from c3jax.tasks.environments.search import answer, begin\n"
        "from c3jax.tasks.environment import Message\n"
        f"print(answer(begin(None, 0, {path!r}), [Message('a', 'a', 'norway')]).text, 'jax' in sys.modules)"
    )
    environment = {"PYTHONPATH": ":".join(filter(None, sys.path))}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert run.stdout == "[1] Oslo: the capital of Norway is a port False\n", run.stderr
