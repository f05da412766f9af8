"""What a clone installs and how it starts: dependencies declared and pinned, launch scripts whole, nothing ignored."""

from __future__ import annotations

import ast
import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import c3jax
from launch.environment import read_extras

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "c3jax"
SCRIPTS = [*sorted((ROOT / "launch").glob("*.sh")), *sorted((ROOT / "launch").glob("*.sbatch")), ROOT / ".ci" / "run"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = ("3.11", "3.12", "3.13")


def declared(lines: list[str]) -> dict[str, Requirement]:
    return {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, lines)}


RUNTIME = declared(PROJECT["dependencies"])
# What launch/test.sh installs; `reasoning` is one exact version, and jax's own packages follow from jax.
TESTED_EXTRAS = ("maths", "code", "lab", "tensorboard", "wandb", "smollm2", "search", "textarena")
TESTED = declared([line for extra in TESTED_EXTRAS for line in PROJECT["optional-dependencies"][extra]])
EXTRAS = declared([line for lines in PROJECT["optional-dependencies"].values() for line in lines])


def third_party_imports(is_at_top: bool = False) -> dict[str, set[str]]:
    """Top-level name -> files of c3jax that import it, anywhere in the file or outside of functions alone."""
    found: dict[str, set[str]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        tree = ast.parse(path.read_text(), str(path))
        for node in tree.body if is_at_top else ast.walk(tree):
            modules: list[str] = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [str(node.module)]
            for name in {module.partition(".")[0] for module in modules} - sys.stdlib_module_names - {"c3jax"}:
                found.setdefault(name, set()).add(str(path.relative_to(ROOT)))
    return found


def find_owners(name: str) -> set[str]:
    """Distributions that an imported name may come from."""
    return {canonicalize_name(owner) for owner in packages_distributions().get(name, [name])}


def pins(python: str) -> dict[str, Requirement]:
    lines = [line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    environment = {"python_version": python, "python_full_version": f"{python}.1"}
    applying = [
        requirement
        for requirement in map(Requirement, filter(None, lines))
        if requirement.marker is None or requirement.marker.evaluate(environment)
    ]
    names = [canonicalize_name(requirement.name) for requirement in applying]
    assert len(names) == len(set(names)), f"pinned twice for Python {python}"
    return dict(zip(names, applying, strict=True))


def pinned_version(requirement: Requirement) -> str:
    (specifier,) = requirement.specifier
    assert specifier.operator == "==" and not specifier.version.endswith("*"), f"{requirement} is no exact pin"
    return specifier.version


def test_every_import_of_the_source_is_declared():
    for name, paths in third_party_imports().items():
        assert find_owners(name) & (RUNTIME.keys() | EXTRAS.keys()), f"{name}, imported in {paths}, is undeclared"


def test_what_an_extra_brings_is_imported_where_it_is_used():
    """So every module can be imported without any of them, but for the studies, which begin with their figures."""
    for name, paths in third_party_imports(is_at_top=True).items():
        paths = {path for path in paths if not path.startswith("c3jax/lab/")}
        assert not paths or find_owners(name) & RUNTIME.keys(), f"{name} is imported at the top of {paths}"


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        ("grade numeric problems.jsonl answers.jsonl --out verdicts.jsonl", 0, ""),
        (
            "grade math problems.jsonl answers.jsonl --out verdicts.jsonl",
            2,
            "c3jax: task.kind: math needs the package mpmath (pip install 'c3jax[maths]'), found none\n",
        ),
        (
            f"study {ROOT / 'configs/studies/credit_bench.yaml'}",
            2,
            "c3jax: figures: expected the package matplotlib (pip install 'c3jax[lab]'), found none\n",
        ),
        (
            "figures runs --out figures",
            2,
            "c3jax: figures: expected the package matplotlib (pip install 'c3jax[lab]'), found none\n",
        ),
    ],
)
def test_a_missing_extra_is_named_in_one_sentence(tmp_path: Path, words: str, status: int, sentence: str):
    """The command in interpreters that find no package of any extra, worker processes included."""
    imported = {name for name in third_party_imports() if not find_owners(name) & RUNTIME.keys()}
    assert {"mpmath", "matplotlib", "pint"} <= imported
    hidden = f"import sys; sys.modules.update(dict.fromkeys({sorted(imported)!r}))"
    (tmp_path / "sitecustomize.py").write_text(hidden)
    (tmp_path / "problems.jsonl").write_text('{"id": "1", "question": "How many?", "answer": "3"}\n')
    (tmp_path / "answers.jsonl").write_text('{"id": "1", "answer": "It is 3."}\n')
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-m", "c3jax.cli", *words.split()]
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (status, sentence)
    if status == 0:
        assert '"return": 1.0' in (tmp_path / "verdicts.jsonl").read_text()


def test_torch_is_no_part_of_the_program():
    assert "torch" not in third_party_imports()
    assert "torch" not in RUNTIME | EXTRAS


@pytest.mark.parametrize("python", PYTHONS)
def test_each_dependency_is_pinned_within_its_range(python: str):
    pinned = pins(python)
    for name, requirement in (RUNTIME | TESTED).items():
        version = pinned_version(pinned[name])
        assert requirement.specifier.contains(version), f"{name}=={version} is outside {requirement} on {python}"
    assert pinned_version(pinned["jax"]) == pinned_version(pinned["jaxlib"])


def test_what_the_dependencies_need_is_pinned_too():
    pinned = pins(f"{sys.version_info.major}.{sys.version_info.minor}")
    waiting, seen = [*RUNTIME, *TESTED], set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        assert name in pinned, f"{name} is installed with c3jax and not pinned in requirements.txt"
        for requirement in map(Requirement, distribution(name).requires or []):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(canonicalize_name(requirement.name))


def test_the_command_and_the_version_are_those_of_the_package():
    assert PROJECT["scripts"] == {"c3jax": "c3jax.cli:main"}
    assert "version" in PROJECT["dynamic"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", c3jax.__version__)


def test_every_folder_of_the_source_is_a_package_and_holds_only_python():
    """Else a wheel would lack it: only packages are found, and no package data is declared."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    data = settings.get("package-data", {}).get("c3jax", [])
    for path in SOURCE.rglob("*"):
        if path.is_dir() or "__pycache__" in path.parts:
            continue
        relative = path.relative_to(SOURCE)
        assert path.suffix == ".py" or any(relative.match(pattern) for pattern in data), f"{relative} is not shipped"
        assert (path.parent / "__init__.py").is_file(), f"{relative.parent} is no package"


def test_a_wheel_holds_the_package_alone():
    """Experiments, like tests, are run from a checkout: setuptools looks for packages by these patterns."""
    find = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    assert (ROOT / "experiments" / "claims" / "__init__.py").is_file() and not find["namespaces"]
    for name, is_in in (("c3jax", True), ("c3jax.lab", True), ("experiments", False), ("experiments.claims", False)):
        assert any(fnmatch.fnmatch(name, pattern) for pattern in find["include"]) is is_in


def test_no_unanchored_ignore_pattern_matches_a_name_of_the_source():
    names = {part for path in SOURCE.rglob("*.py") for part in path.relative_to(ROOT).parts}
    lines = (ROOT / ".gitignore").read_text().split("\n")
    patterns = [line.rstrip("/") for line in lines if line and not line.startswith("#")]
    for pattern in (pattern for pattern in patterns if "/" not in pattern):  # a slash inside anchors it
        assert not fnmatch.filter(names, pattern), f"{pattern} in .gitignore hides source"
    assert {"/.venv", "/runs"} <= set(patterns)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_launch_scripts_parse(script: Path):
    assert script.read_text().startswith("#")
    result = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert script.name == "environment.sh" or os.access(script, os.X_OK), f"{script} is not executable"


@pytest.mark.parametrize("script", ["quickstart.sh", "test.sh"])
def test_a_launch_without_a_python_says_so_in_one_sentence(script: str, tmp_path: Path):
    bash = shutil.which("bash")
    assert bash is not None
    command = [bash, str(ROOT / "launch" / script)]
    environment = {"PATH": str(tmp_path / "nothing"), "C3JAX_VENV": str(tmp_path / "venv")}
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1 and "Python of version 3.11 or newer" in result.stderr
    assert not (tmp_path / "venv").exists()


def test_a_launch_does_not_take_any_folder_for_its_environment(tmp_path: Path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "draft").write_text("Dear ...")
    link = tmp_path / "start"
    link.symlink_to(ROOT / "launch" / "quickstart.sh")
    environment = {**os.environ, "PYTHON": sys.executable, "C3JAX_VENV": "letters"}
    result = subprocess.run(["bash", str(link)], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2
    assert str(tmp_path / "letters") in result.stderr and len(result.stderr.splitlines()) == 1
    assert [path.name for path in (tmp_path / "letters").iterdir()] == ["draft"]


@pytest.mark.parametrize(
    ("variable", "value", "part"),
    [
        ("C3JAX_EXTRAS", "maths cudda", "expected extras of pyproject.toml, got cudda"),
        ("C3JAX_VENV", "letter", "letter holds something other than a Python environment"),
        ("C3JAX_VENV", "letter/venv", "the environment cannot be made: "),
        ("PYTHON", "/no/python", "no Python of version 3.11 or newer"),
    ],
)
def test_what_a_launch_cannot_do_is_one_sentence(tmp_path: Path, variable: str, value: str, part: str):
    (tmp_path / "letter").write_text("Dear ...")
    environment = {**os.environ, "PYTHON": sys.executable, "C3JAX_VENV": "venv", variable: value}
    command = ["bash", str(ROOT / "launch" / "quickstart.sh")]
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("c3jax: ") and part in result.stderr and len(result.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["letter"] and (tmp_path / "letter").is_file()


def test_an_environment_counts_only_as_it_was_made_from_what_stands_here_now(tmp_path: Path):
    stamp = tmp_path / "c3jax-stamp"
    assert read_extras(tmp_path, ["root", "pins"]) == set()
    stamp.write_text(json.dumps([["root", "pins"], ["dev", "maths"]]))
    assert read_extras(tmp_path, ["root", "pins"]) == {"dev", "maths"}
    assert read_extras(tmp_path, ["root", "other pins"]) == set()
    stamp.write_text("")  # as a killed launch leaves it
    assert read_extras(tmp_path, ["root", "pins"]) == set()
