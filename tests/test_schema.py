"""Names of a config that stand for records: rows of a table, and objects in the user's own files."""

from __future__ import annotations

import sys

import pytest

from c3jax.schema import ConfigError, find_origin, load_named

TABLE = {"three": 3, "lazy": "math:pi"}


def is_number(found: object) -> str | None:
    return None if isinstance(found, int | float) else "a number"


def find(name: str) -> object:
    return load_named("credit.method", name, TABLE, is_number)


@pytest.fixture(autouse=True)
def path_as_before(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)


def test_a_row_and_an_object_behind_a_row():
    assert (find("three"), find("lazy")) == (3, 3.141592653589793)
    assert find_origin("three") is None


@pytest.mark.parametrize("name", ["own_numbers:SEVEN", "./own_numbers.py:SEVEN", "{folder}/own_numbers.py:SEVEN"])
def test_an_object_of_the_users_own(tmp_path, name):
    (tmp_path / "own_numbers.py").write_text("SEVEN = 7\n")
    sys.modules.pop("own_numbers", None)
    name = name.format(folder=tmp_path)
    assert find(name) == 7
    origin = find_origin(name)
    assert origin is not None and (origin.name, origin.path) == (name, tmp_path / "own_numbers.py")


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("four", "credit.method: expected one of three, lazy, or your own as module:NAME, got 'four'"),
        ("no_such_module:X", "credit.method: expected a module on the path or in {folder}, found no 'no_such_module'"),
        ("./missing.py:X", "credit.method: expected a file, found none at {folder}/missing.py"),
        ("broken:X", "credit.method: importing broken failed (ZeroDivisionError: division by zero)"),
        ("leaves:X", "credit.method: importing leaves failed (SystemExit: 3)"),
        ("wants:X", "credit.method: importing wants failed (ModuleNotFoundError: No module named 'not_installed')"),
        ("good:X", "credit.method: expected a name that good defines after the colon, got 'X'"),
        ("good:", "credit.method: expected a name that good defines after the colon, got ''"),
        ("good:TEXT", "credit.method: expected a number at good:TEXT, got str"),
        ("./json.py:X", "credit.method: expected a file name that no other module has, got json.py: rename it"),
    ],
)
def test_what_cannot_be_had_is_one_sentence(tmp_path, name, complaint):
    files = {"broken": "1 / 0", "leaves": "raise SystemExit(3)", "wants": "import not_installed", "good": "TEXT = 'x'"}
    for stem, text in (files | {"json": "X = 1"}).items():
        (tmp_path / f"{stem}.py").write_text(text + "\n")
        if stem != "json":
            sys.modules.pop(stem, None)
    with pytest.raises(ConfigError) as caught:
        find(name)
    assert str(caught.value) == complaint.format(folder=tmp_path)
