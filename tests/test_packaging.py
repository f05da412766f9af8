"""What a clone installs and how it starts: dependencies declared and pinned, launch scripts whole, nothing ignored."""

from __future__ import annotations

import ast
import fnmatch
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

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "c3jax"
SCRIPTS = [*sorted((ROOT / "launch").glob("*.sh")), *sorted((ROOT / "launch").glob("*.sbatch")), ROOT / ".ci" / "run"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = ("3.11", "3.12", "3.13")


def declared(lines: list[str]) -> dict[str, Requirement]:
    return {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, lines)}


RUNTIME = declared(PROJECT["dependencies"])
EXTRAS = declared([line for lines in PROJECT["optional-dependencies"].values() for line in lines])


def third_party_imports() -> dict[str, set[str]]:
    """Top-level name -> files of c3jax that import it, anywhere in the file."""
    found: dict[str, set[str]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            modules: list[str] = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [str(node.module)]
            for name in {module.partition(".")[0] for module in modules} - sys.stdlib_module_names - {"c3jax"}:
                found.setdefault(name, set()).add(str(path.relative_to(ROOT)))
    return found


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
    owners = packages_distributions()
    for name, paths in third_party_imports().items():
        distributions = {canonicalize_name(owner) for owner in owners.get(name, [name])}
        assert distributions & (RUNTIME.keys() | EXTRAS.keys()), f"{name}, imported in {paths}, is undeclared"


def test_torch_is_no_part_of_the_program():
    assert "torch" not in third_party_imports()
    assert "torch" not in RUNTIME | EXTRAS


@pytest.mark.parametrize("python", PYTHONS)
def test_each_runtime_dependency_is_pinned_within_its_range(python: str):
    pinned = pins(python)
    for name, requirement in RUNTIME.items():
        version = pinned_version(pinned[name])
        assert requirement.specifier.contains(version), f"{name}=={version} is outside {requirement} on {python}"
    assert pinned_version(pinned["jax"]) == pinned_version(pinned["jaxlib"])


def test_what_the_dependencies_need_is_pinned_too():
    pinned = pins(f"{sys.version_info.major}.{sys.version_info.minor}")
    waiting, seen = list(RUNTIME), set()
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
