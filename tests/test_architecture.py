"""Who may import whom, and who may touch JAX: read off the source, imports inside functions included.

So a policy cannot see an answer key, credit cannot depend on text or on a trainer, the studies run the very functions
that the language-model run uses, and tasks, prompts and evaluators run in processes that never load JAX.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Literal, NamedTuple

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "c3jax"
ARRAY_LIBRARIES = {"jax", "jaxlib", "flax", "optax", "chex", "orbax"}  # the last two load JAX themselves

Arrays = Literal["never", "in functions", "anywhere"]


class Rule(NamedTuple):
    """What a room may import of c3jax besides itself, and where it may import an array library."""

    may_import: set[str]
    arrays: Arrays
    is_closed: bool = False  # may not import the rest of its own room either


ROOMS = {
    *("types", "config", "config_file", "protocol", "tasks", "models", "rollout", "rewards", "credit", "learner"),
    *("team", "warmup", "train", "evaluate", "ask", "bench", "checkpoint", "metrics", "records"),
    *("ledger", "rundir", "startup", "progress", "summary", "cli", "diagnostics", "studies", "report"),
    *("score", "grade", "suites", "overlap", "compare", "export", "data", "memory"),
    *("config_base", "task_sections", "config_checks", "study_config", "study_sections"),
}
ALL_BUT_THE_OUTER = ROOMS - {
    *("cli", "studies", "study_config", "study_sections", "score", "grade", "report", "export", "compare"),
}
# What a study may stand on besides the credit code; only the study of a small language model reaches further.
STUDY = {"types", "credit", "learner.losses", "diagnostics", "study_config", "study_sections", "records"}

# A row for a room, and one for a file of it where the file's rule differs. The longest name that fits holds.
RULES = {
    "__init__": Rule(set(), "never"),
    "types": Rule(set(), "never"),
    "config_base": Rule({"types"}, "never"),
    "task_sections": Rule({"config_base"}, "never"),
    "config": Rule({"config_base", "task_sections"}, "never"),
    "config_checks": Rule(
        {"config", "config_base", "task_sections", "credit.methods", "credit.plans"}, "never"
    ),  # which are plain numpy
    "config_file": Rule({"types", "config", "config_base", "config_checks"}, "never"),
    "study_sections": Rule({"types", "config", "config_base", "credit.methods", "credit.plans"}, "never"),
    "study_config": Rule(
        {"types", "config", "config_base", "config_file", "study_sections", "credit.methods"}, "never"
    ),
    "tasks": Rule({"types"}, "never"),
    "data": Rule({"types", "tasks"}, "never"),
    "protocol": Rule({"types", "config"}, "never"),
    "rewards": Rule({"types", "tasks"}, "never"),
    "credit": Rule({"types"}, "anywhere"),
    "credit.__init__": Rule({"types"}, "in functions"),  # runs whenever credit.methods is imported
    "credit.methods": Rule({"types"}, "in functions"),
    "credit.plans": Rule({"types"}, "in functions"),
    "credit.rows": Rule({"types"}, "in functions"),
    "credit.matrix": Rule({"types"}, "in functions"),
    "models": Rule({"types", "config"}, "anywhere"),
    "rollout": Rule({"types", "config", "protocol", "models"}, "anywhere"),
    "learner": Rule({"types", "config", "protocol", "credit", "models", "rollout"}, "anywhere"),
    "learner.losses": Rule({"types"}, "anywhere", is_closed=True),
    "records": Rule({"types", "config"}, "anywhere"),
    "ledger": Rule({"types", "config"}, "anywhere"),
    "metrics": Rule({"types", "config"}, "anywhere"),
    "rundir": Rule({"types", "config", "config_base", "config_file"}, "in functions"),
    "checkpoint": Rule({"types", "config"}, "anywhere"),
    "diagnostics": Rule({"types", "records"}, "anywhere"),
    "report": Rule({"types", "records"}, "anywhere"),
    "studies": Rule(STUDY, "anywhere"),
    "studies.text": Rule(STUDY | ALL_BUT_THE_OUTER, "anywhere"),
    "score": Rule({"types", "records", "credit", "diagnostics"}, "anywhere"),
    "grade": Rule({"types", "config", "config_file", "records", "rewards", "tasks"}, "never"),
    "overlap": Rule({"rewards"}, "anywhere"),
    "suites": Rule({"types", "config", "models", "rewards", "tasks", "team", "evaluate"}, "anywhere"),
    "compare": Rule({"types", "config", "config_file", "rundir", "diagnostics"}, "never"),
    "startup": Rule({"types", "config"}, "anywhere"),
    "progress": Rule({"types", "config"}, "never"),
    "summary": Rule({"types", "config", "evaluate", "metrics", "records"}, "anywhere"),
    "team": Rule(
        {"types", "config", "task_sections", "protocol", "tasks", "data", "models", "rollout", "memory"}, "anywhere"
    ),
    "memory": Rule({"types", "config", "protocol", "models", "rollout"}, "anywhere"),
    "warmup": Rule({"types", "config", "tasks", "team", "rollout", "learner"}, "anywhere"),
    "train": Rule(ALL_BUT_THE_OUTER, "anywhere"),
    "evaluate": Rule(ALL_BUT_THE_OUTER, "anywhere"),
    "ask": Rule(ALL_BUT_THE_OUTER, "anywhere"),
    "bench": Rule(ALL_BUT_THE_OUTER, "anywhere"),
    "bench.__init__": Rule(set(), "never"),
    "bench.grade": Rule({"types", "rewards", "tasks"}, "never"),
    "export": Rule(ALL_BUT_THE_OUTER, "anywhere"),
    "cli": Rule(ROOMS, "in functions"),  # help and a wrong config answer at once
}


class Import(NamedTuple):
    module: str  # absolute
    line: int
    is_in_function: bool
    is_for_types: bool  # under `if TYPE_CHECKING:`, so it never runs


def module_name(path: Path) -> str:
    """c3jax/credit/matrix.py -> credit.matrix"""
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts)


def find_rule(module: str) -> Rule | None:
    names = module.split(".")
    prefixes = (".".join(names[:length]) for length in range(len(names), 0, -1))
    return next((RULES[prefix] for prefix in prefixes if prefix in RULES), None)


def find_imports(source: str, module: str) -> list[Import]:
    """All imports of a file; `from package import name` counts as package.name, which may be a module."""
    found: list[Import] = []

    def visit(node: ast.AST, is_in_function: bool, is_for_types: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, node.lineno, is_in_function, is_for_types) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            ancestors = ["c3jax", *module.split(".")][: -node.level] if node.level else []
            package = ".".join([*ancestors, *([node.module] if node.module else [])])
            found.extend(
                Import(f"{package}.{alias.name}", node.lineno, is_in_function, is_for_types) for alias in node.names
            )
        is_in_function |= isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for child in node.body:
                visit(child, is_in_function, True)
            for child in node.orelse:
                visit(child, is_in_function, is_for_types)
            return
        for child in ast.iter_child_nodes(node):
            visit(child, is_in_function, is_for_types)

    visit(ast.parse(source), False, False)
    return found


def find_violations(source: str, module: str) -> list[str]:
    rule = find_rule(module)
    if rule is None:
        return [f"{module} belongs to no room"]
    room = module.partition(".")[0]
    allowed = rule.may_import | (set() if rule.is_closed else {room})
    broken = []
    for found in find_imports(source, module):
        top, _, inner = found.module.partition(".")
        if top == "c3jax":
            is_of_root = inner == "" or inner.partition(".")[0] == "__version__"
            if not is_of_root and not any(f"{inner}.".startswith(f"{name}.") for name in allowed):
                broken.append(f"{module}:{found.line} imports {found.module}")
        elif top in ARRAY_LIBRARIES and not found.is_for_types:
            if rule.arrays == "never" or (rule.arrays == "in functions" and not found.is_in_function):
                broken.append(f"{module}:{found.line} imports {found.module}")
    return broken


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=module_name)
def test_a_file_imports_only_what_its_room_may(path: Path):
    assert find_violations(path.read_text(), module_name(path)) == []


def test_every_room_has_a_rule():
    assert {name.partition(".")[0] for name in RULES} == ROOMS | {"__init__"}
    assert set().union(*(rule.may_import for rule in RULES.values())) <= ROOMS | set(RULES)


def test_rooms_without_jax_do_not_load_it():
    """What the rows say of single files, seen from outside: a fresh interpreter imports them all and holds no JAX."""
    modules = []
    for path in sorted(SOURCE.rglob("*.py")):
        rule = find_rule(module_name(path))
        if rule is not None and rule.arrays != "anywhere":
            modules.append(f"c3jax.{module_name(path)}".removesuffix(".__init__"))
    assert "c3jax.types" in modules
    program = (
        "import importlib, sys\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        f"    print(*(name + ' loads ' + top for top in {sorted(ARRAY_LIBRARIES)!r} if top in sys.modules))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=SOURCE.parent, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split("\n") == [""] * (len(modules) + 1)


@pytest.mark.parametrize(
    ("module", "source", "is_allowed"),
    [
        ("tasks.numeric", "from c3jax.types import Problem", True),
        ("tasks.numeric", "from c3jax import types", True),
        ("tasks.numeric", "from ..types import Problem", True),
        ("tasks.numeric", "from . import arithmetic", True),
        ("tasks.numeric", "from c3jax.protocol import Turn", False),
        ("tasks.numeric", "def read():\n    from c3jax import models", False),
        ("tasks.numeric", "from ..models import decoder", False),
        ("tasks.__init__", "from .. import models", False),
        ("tasks.numeric", "def read():\n    import jax.numpy", False),
        ("tasks.numeric", "try:\n    import optax\nexcept ImportError:\n    optax = None", False),
        ("types", "if TYPE_CHECKING:\n    import jax", True),
        ("types", "if TYPE_CHECKING:\n    import numpy\nelse:\n    import jax", False),
        ("types", "if TYPE_CHECKING:\n    from c3jax.config import RunConfig", False),
        ("config", "from c3jax.credit import methods", False),
        ("config_checks", "from c3jax.credit import methods", True),
        ("config_checks", "from c3jax.credit.methods import METHODS", True),
        ("config_checks", "from c3jax.credit import matrix", False),
        ("config_checks", "import c3jax.credit", False),
        ("credit.methods", "import jax", False),
        ("credit.matrix", "def place():\n    import jax", True),
        ("credit.apply", "import jax", True),
        ("credit.apply", "from c3jax.config import RunConfig", False),
        ("learner.update", "from c3jax.learner import losses", True),
        ("learner.losses", "from c3jax.learner import update", False),
        ("studies.games", "from c3jax.learner.losses import clip", True),
        ("studies.games", "from c3jax.learner.update import step", False),
        ("train", "from c3jax.studies import games", False),
        ("records", "from c3jax import __version__", True),
        ("cli", "from c3jax.studies import games", True),
        ("cellar.boxes", "", False),
        ("configuration", "import numpy", False),
    ],
)
def test_the_rules_are_read_as_they_are_meant(module: str, source: str, is_allowed: bool):
    assert (find_violations(source, module) == []) is is_allowed
