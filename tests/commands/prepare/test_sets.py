"""Public sets written in our own record: from planted files whose content, hashes and faults are known."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from c3jax.cli import main
from c3jax.commands.prepare.fetch import DataError
from c3jax.commands.prepare.sets import prepare_set
from c3jax.commands.prepare.sources import SOURCES, Source, SourceFile
from c3jax.tasks.code import records as code_records
from c3jax.tasks.maths import task as maths
from c3jax.tasks.task import find_task
from c3jax.types import UserError

CODE_SAMPLE = Path(__file__).parents[2] / "tasks" / "code" / "sample.jsonl"
TRAIN = [
    {"question": "Two and two?", "answer": "2 + 2 = 4\n#### 4"},
    {"question": "Unanswered?", "answer": " "},
    {"question": "五加五等于几？", "answer": "#### 10"},
]
TEST = [
    {"unique_id": "test/a/1.json", "problem": "$1+1$?", "solution": r"It is $\boxed{2}$.", "answer": "2"},
    {"unique_id": "test/a/2.json", "problem": "Half?", "solution": r"It is $\boxed{\frac12}$."},
    {"unique_id": "test/a/1.json", "problem": "$1+1$!", "answer": "2"},
    {"unique_id": "test/a/3.json", "problem": "Ill posed?", "answer": "0"},
]


OTHER = b"{}\n"


def to_jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def pack(content: bytes) -> bytes:
    """Gzipped without the time of day, which would be in the names of the tests below."""
    return gzip.compress(content, mtime=0)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def make_source(*files: SourceFile, **changes: Any) -> dict[str, Source]:
    fields: dict[str, Any] = {"task": "math", "home": "https://home", "revision": "r1", "licence": "MIT"}
    return {"planted": Source(**fields | {"files": files, "rows": {"train": 3, "test": 4}} | changes)}


def make_files(url: str = "https://nowhere.invalid", **changes: Any) -> tuple[SourceFile, SourceFile]:
    train = SourceFile("train.jsonl", f"{url}/train.jsonl", sha256(to_jsonl(TRAIN)), "train")
    packed = SourceFile("test.jsonl.gz", f"{url}/test.jsonl.gz", None, "test", sha256(to_jsonl(TEST)))
    return train, packed._replace(**changes)


@pytest.fixture
def folder(tmp_path) -> Path:
    """The published files: one plain, one gzipped."""
    path = tmp_path / "published"
    path.mkdir()
    (path / "train.jsonl").write_bytes(to_jsonl(TRAIN))
    (path / "test.jsonl.gz").write_bytes(pack(to_jsonl(TEST)))
    return path


SOURCE = make_source(*make_files(), left_out={"test/a/3.json": "ill posed"})


def test_a_set_is_written_in_our_record_with_its_card(folder, tmp_path):
    line = prepare_set("planted", folder, tmp_path / "data", SOURCE)
    made = tmp_path / "data" / "planted"
    assert line == (
        f"planted: train 2, test 2 in {made} (MIT); left out 1 (published without an answer);"
        " left out 1 (its id is that of a row before it); left out 1 (ill posed)"
    )
    assert read_jsonl(made / "train.jsonl") == [
        {"id": "planted/train/0", "question": "Two and two?", "answer": "4"},
        {"id": "planted/train/2", "question": "五加五等于几？", "answer": "10"},
    ]
    assert read_jsonl(made / "test.jsonl") == [
        {"id": "test/a/1.json", "question": "$1+1$?", "answer": "2"},
        {"id": "test/a/2.json", "question": "Half?", "answer": r"\frac12"},
    ]
    card = json.loads((made / "card.json").read_text())
    assert card["splits"]["test"] == {
        **{"file": "test.jsonl", "published": 4, "rows": 2},
        "sha256": sha256((made / "test.jsonl").read_bytes()),
    }
    assert [(file["sha256_unpacked"], file["pinned"]) for file in card["files"]] == [
        (sha256(to_jsonl(TRAIN)), True),
        (sha256(to_jsonl(TEST)), True),
    ]
    assert card["left_out"] == {
        "published without an answer": ["planted/train/1"],
        "its id is that of a row before it": ["test/a/1.json"],
        "ill posed": ["test/a/3.json"],
    }
    # Again somewhere else, from an unpacked copy in a folder of the set's name: the same bytes.
    (folder / "planted").mkdir()
    (folder / "planted" / "test.jsonl").write_bytes(to_jsonl(TEST))
    (folder / "test.jsonl.gz").unlink()
    prepare_set("planted", folder, tmp_path / "again", SOURCE)
    for name in ("train.jsonl", "test.jsonl", "card.json"):
        assert (tmp_path / "again" / "planted" / name).read_bytes() == (made / name).read_bytes()


def test_what_is_there_is_checked_and_left_alone(folder, tmp_path):
    prepare_set("planted", folder, tmp_path, SOURCE)
    made = tmp_path / "planted"
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in made.iterdir()}
    line = prepare_set("planted", tmp_path / "nowhere", tmp_path, SOURCE)  # nothing is fetched
    assert line.endswith("; it was there, and its hashes agree")
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in made.iterdir()} == before

    newer = make_source(*make_files(), revision="r2")
    with pytest.raises(DataError, match="^planted: .* was prepared from revision r1, now r2; remove .* to prepare"):
        prepare_set("planted", folder, tmp_path, newer)
    (made / "train.jsonl").write_bytes(b"changed")
    expected, got = sha256(before[made / "train.jsonl"][0]), sha256(b"changed")
    with pytest.raises(DataError, match=f"train.jsonl: expected SHA-256 {expected}, as its card says, got {got}"):
        prepare_set("planted", folder, tmp_path, SOURCE)
    (made / "card.json").write_text("{}")
    with pytest.raises(DataError, match="card.json is no card of a prepared set; remove "):
        prepare_set("planted", folder, tmp_path, SOURCE)


def test_what_a_kill_left_behind_is_made_again(folder, tmp_path):
    part = tmp_path / ".planted.part"
    part.mkdir()
    (part / "train.jsonl").write_text("half a li")
    prepare_set("planted", folder, tmp_path, SOURCE)
    assert sorted(path.name for path in (tmp_path / "planted").iterdir()) == ["card.json", "test.jsonl", "train.jsonl"]
    assert not part.exists()


def test_a_file_that_nobody_could_pin_is_said_to_be_so(folder, tmp_path):
    train, packed = make_files(unpacked_sha256=None)
    line = prepare_set("planted", folder, tmp_path, make_source(train, packed))
    assert line.endswith(f"; test.jsonl.gz is not pinned: SHA-256 {sha256(to_jsonl(TEST))}")
    card = json.loads((tmp_path / "planted" / "card.json").read_text())
    assert [file["pinned"] for file in card["files"]] == [True, False]


def test_programs_are_judged_by_the_same_tests(tmp_path):
    """A prepared problem is the published one, mended tests, several names and heads included."""
    rows = read_jsonl(CODE_SAMPLE)
    rows += [
        {
            **{"task_id": 900, "text": "Pair.", "code": "class A:\n    pass\ndef b(x):\n    return x"},
            **{"test_list": ["assert b(A()) is not None"], "test_setup_code": "import math", "test_imports": []},
        },
        {
            **{"task_id": "HumanEval/7", "prompt": "import re\ndef f(x):\n    '''Double x.'''\n", "entry_point": "f"},
            "test": "def check(candidate):\n    out, exp = candidate(1), 2\n    assert np.allclose(out, exp, atol=1)\n",
        },
    ]
    (tmp_path / "code.jsonl").write_bytes(to_jsonl(rows))
    file = SourceFile("code.jsonl", "https://nowhere.invalid", None, "test")
    prepare_set("planted", tmp_path, tmp_path, make_source(file, task="code", rows={"test": len(rows)}))
    published = code_records.load_problems(str(tmp_path / "code.jsonl"))
    prepared = code_records.load_problems(str(tmp_path / "planted" / "test.jsonl"))
    assert [each[2:] for each in prepared] == [each[2:] for each in published]
    assert "np.shape(out)" in prepared[-1].answer
    with_ids = [place for place, row in enumerate(rows) if "id" in row or "task_id" in row]
    assert with_ids and all(prepared[place].id == published[place].id for place in with_ids)


# --------------------------------------------------------------------------------------------------------------------
# What can go wrong: one sentence, and nothing written


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("train.jsonl", None, r"planted: expected .*planted/train.jsonl \(from https://nowhere.invalid/train.jsonl\)"),
        ("train.jsonl", OTHER, f"train.jsonl: expected SHA-256 {sha256(to_jsonl(TRAIN))}, got {sha256(OTHER)}$"),
        ("test.jsonl.gz", pack(to_jsonl(TEST))[:-9], "test.jsonl.gz is no whole gzip file"),
        ("test.jsonl.gz", b"plain", "test.jsonl.gz is no whole gzip file"),
        ("test.jsonl.gz", pack(b""), "test.jsonl.gz: the set is empty"),
        ("test.jsonl.gz", pack(b'{"problem": "?"\n'), "test.jsonl.gz, line 1: the line is not JSON"),
        (
            "test.jsonl.gz",
            pack(to_jsonl([*TEST, {"problem": 7, "answer": "1"}])),
            "test.jsonl.gz, line 5: the field 'problem' must be text, got int",
        ),
        ("test.jsonl.gz", pack(to_jsonl(TEST[:3])), "planted: expected 4 rows of test, as .* got 3"),
        (
            "test.jsonl.gz",
            pack(to_jsonl([{"problem": "?", "answer": ""}] * 4)),
            "planted: expected rows of test with an answer, got none of 4",
        ),
    ],
)
def test_a_file_that_is_not_as_published_is_refused(folder, tmp_path, file, content, message):
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    source = make_source(*make_files(unpacked_sha256=None))
    with pytest.raises(UserError) as caught:
        prepare_set("planted", folder, tmp_path / "data", source)
    assert re.search(message, str(caught.value)) and "\n" not in str(caught.value)
    assert not (tmp_path / "data").exists()


def test_an_unknown_set_names_the_known_ones(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", "chess"]) == 2
    assert capsys.readouterr().err == f"c3jax: NAME: expected all or one of {', '.join(SOURCES)}, got 'chess'\n"
    assert main(["prepare", "all", "--from", "here"]) == 2  # a line of each, then what failed
    shown = capsys.readouterr()
    assert [line.partition(":")[0] for line in shown.out.splitlines()] == list(SOURCES)
    assert shown.err.startswith("c3jax: all: 14 of 14 sets could not be prepared: math, ")
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------------------------------------------------
# Fetching


@pytest.fixture
def server(folder) -> Iterator[str]:
    """The published files behind an address."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            pass

    serving = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=serving.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{serving.server_port}"
    serving.shutdown()
    thread.join()
    serving.server_close()


def test_files_are_fetched_and_checked(server, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    source = make_source(*make_files(server))
    assert prepare_set("planted", None, tmp_path, source).startswith("planted: train 2, test 3 in ")
    (folder / "train.jsonl").write_bytes(OTHER)
    with pytest.raises(
        DataError, match=f"^planted: {server}/train.jsonl: expected SHA-256 {sha256(to_jsonl(TRAIN))}, got"
    ):
        prepare_set("planted", None, tmp_path / "other", source)
    (folder / "train.jsonl").unlink()
    with pytest.raises(
        DataError, match=rf"^planted: {server}/train.jsonl cannot be fetched \(.*\); .* give its folder by --from$"
    ):
        prepare_set("planted", None, tmp_path / "other", source)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("name", SOURCES)
def test_the_table_pins_what_it_names(name):
    source = SOURCES[name]
    assert sum(source.rows.values()) > 0 and source.licence and source.home.startswith("https://")
    for file in source.files:
        assert file.url.startswith("https://") and file.url.endswith("/" + file.name)
        assert any(revision in file.url for revision in source.revision.split(" and "))
        known = [sha256 for sha256 in (file.sha256, file.unpacked_sha256) if sha256 is not None]
        assert known and all(re.fullmatch("[0-9a-f]{64}", sha256) for sha256 in known)


def test_splits_are_those_of_the_literature():
    split = SOURCES["mbpp"].files[0].split
    assert callable(split)
    numbers = {split({"task_id": number}): number for number in reversed(range(1, 975))}
    assert numbers == {"prompt": 1, "test": 11, "validation": 511, "train": 601}
    split = SOURCES["math"].files[0].split
    assert callable(split)
    assert [split({"unique_id": each}) for each in ("train/algebra/1.json", "test/geometry/2.json")] == [
        "train",
        "test",
    ]


def test_answers_are_found_under_every_published_name():
    read = find_task("math").prepare.read
    for row in ({"golden": "4"}, {"answer": 4}, {"Solution": r"\boxed{4}"}, {"golden": "", "answer": "4"}):
        assert read(maths.Row("f, line 1", 0, {"question": "?"} | row)) is not None
    for row in ({"golden": " "}, {"answer": None}, {"input": "?"}):
        assert read(maths.Row("f, line 1", 0, row)) is None
