"""Who may import whom, and who may touch JAX: read off the source, imports inside functions included.

So a policy cannot see an answer key, credit cannot depend on text or on a trainer, the studies run the very functions
that the language-model run uses, and tasks, prompts and evaluators run in processes that never load JAX.
"""

from __future__ import annotations

import ast
import re
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


ENGINE = {
    *("types", "schema", "config", "markers", "protocol", "tasks", "rewards", "models", "rollout", "credit", "learner"),
    *("run", "setup", "analysis", "evaluate", "processes"),
}
# What a study may stand on; only the study of a small language model reaches further.
STUDY = {"types", "schema", "config", "credit", "learner.losses", "learner.objective", "analysis", "run", "processes"}

# A row for a room, and one for a file of it where the file's rule differs. The longest name that fits holds.
RULES = {
    "__init__": Rule(ENGINE | {"train"}, "never"),  # for types alone; names are imported when they are asked for
    "types": Rule(set(), "never"),
    "schema": Rule({"types"}, "never"),
    "tasks": Rule({"types", "schema"}, "never"),
    "config": Rule(  # plain numpy
        {"types", "schema", "tasks.sections", "tasks.task", "tasks.environment"}
        | {"credit.method", "credit.methods", "credit.pairing", "credit.plans", "learner.loss_table"},
        "never",
    ),
    "markers": Rule({"types"}, "never"),  # plain numpy
    "protocol": Rule({"types", "schema", "config", "markers"}, "never"),
    "rewards": Rule({"types", "tasks"}, "never"),
    "credit": Rule({"types"}, "anywhere"),
    **{
        f"credit.{name}": Rule({"types", "schema"}, "in functions")
        for name in ("__init__", "method", "methods", "pairing", "plans", "rows", "matrix", "apply", "compute", "batch")
    },
    "models": Rule({"types", "schema", "config", "run.files"}, "anywhere"),
    "processes": Rule({"types"}, "anywhere"),
    "rollout": Rule({"types", "config", "markers", "protocol", "models", "credit", "rewards", "processes"}, "anywhere"),
    "rollout.acting": Rule(
        {"types", "config", "protocol", "models", "rewards", "processes", "tasks.environment"}, "anywhere"
    ),
    "learner": Rule({"types", "schema", "config", "protocol", "credit", "models", "rollout"}, "anywhere"),
    "learner.loss_table": Rule({"schema"}, "never", is_closed=True),
    "learner.losses": Rule({"types"}, "anywhere", is_closed=True),
    "run": Rule({"types", "schema", "config", "processes"}, "anywhere"),
    "run.records": Rule({"types", "config", "credit.plans"}, "never"),
    "run.directory": Rule({"types", "schema", "config", "processes"}, "in functions"),
    "run.jobs": Rule({"types"}, "never"),  # the process that starts others holds no devices
    "setup": Rule(ENGINE - {"credit", "analysis", "evaluate"} | {"credit.plans"}, "anywhere"),
    "analysis": Rule({"types", "run"}, "anywhere"),
    "analysis.evaluations": Rule({"types", "run"}, "never"),
    "report": Rule({"types", "run", "analysis"}, "never"),
    "evaluate": Rule(ENGINE, "anywhere"),
    "train": Rule(ENGINE | {"report"}, "anywhere"),
    "commands": Rule(ENGINE, "anywhere"),
    "commands.calls": Rule({*ENGINE, "train", "report", "lab"}, "in functions"),
    "commands.parser": Rule({"types", "config", "commands", "lab"}, "never"),  # help and a wrong config answer at once
    "commands.plan": Rule(ENGINE, "anywhere"),
    "commands.programs": Rule(ENGINE | {"train"}, "anywhere"),  # what a run compiles
    **{
        f"commands.{name}": Rule(ENGINE, "never")
        for name in ("__init__", "compare", "figures", "grade", "prepare", "sweep", "table", "terminal", "traces")
    },
    "lab": Rule(STUDY, "anywhere"),
    **{f"lab.{name}": Rule(STUDY, "never") for name in ("config", "sections")},
    "lab.text": Rule(STUDY | ENGINE | {"train"}, "anywhere"),
    "cli": Rule({"types", "run", "commands"}, "never"),
}
ROOMS = {name.partition(".")[0] for name in RULES}


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
    rooms = {path.relative_to(SOURCE).parts[0].removesuffix(".py") for path in SOURCE.rglob("*.py")}
    assert rooms == ROOMS
    assert {name.partition(".")[0] for rule in RULES.values() for name in rule.may_import} <= ROOMS


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
        ("types", "if TYPE_CHECKING:\n    from c3jax.config.run import RunConfig", False),
        ("config.run", "from c3jax.credit import apply", False),
        ("config.checks", "from c3jax.credit import methods", True),
        ("config.checks", "from c3jax.credit.methods import METHODS", True),
        ("config.checks", "from c3jax.credit import matrix", False),
        ("config.checks", "import c3jax.credit", False),
        ("credit.methods", "import jax", False),
        ("credit.matrix", "def place():\n    import jax", True),
        ("credit.gae", "import jax", True),
        ("credit.apply", "import jax", False),
        ("credit.apply", "from c3jax.config.run import RunConfig", False),
        ("learner.update", "from c3jax.learner import losses", True),
        ("learner.losses", "from c3jax.learner import update", False),
        ("lab.games", "from c3jax.learner.losses import clip", True),
        ("lab.games", "from c3jax.learner.update import step", False),
        ("train", "from c3jax.lab import games", False),
        ("train", "from c3jax.report import page", True),
        ("evaluate", "from c3jax.report import page", False),
        ("report.page", "from c3jax.models import decoder", False),
        ("report.page", "def read():\n    import jax", False),
        ("report.transcripts", "from c3jax.commands import score", False),
        ("run.records", "from c3jax import __version__", True),
        ("commands.parser", "from c3jax.lab import config", True),
        ("cli", "from c3jax.lab import config", False),
        ("cellar.boxes", "", False),
        ("configuration", "import numpy", False),
    ],
)
def test_the_rules_are_read_as_they_are_meant(module: str, source: str, is_allowed: bool):
    assert (find_violations(source, module) == []) is is_allowed


# Words of a private dialect, and what the field calls each.
DIALECT = {
    **{"place": "index, path, row", "places": "indices", "said": "messages, text", "told": "info", "tells": "info"},
    **{
        "lean": "d_score",
        "drift": "delta",
        "push": "d_logits",
        "pull": "d_hidden",
        "lesson": "batch",
        "bed": "testbed",
    },
    **{"stage": "phase, step", "contender": "arm", "walls": "isolation", "say": "print, format", "spell": "canonical"},
    **{"blur": "noise", "quiet": "what it is", "solo": "critic_only"},
}


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=module_name)
def test_identifiers_are_of_the_fields_words(path: Path):
    """Names that a file gives: of functions, classes, arguments and variables, by the words that they are made of."""
    given = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            given.add(node.name)
        elif isinstance(node, ast.arg):
            given.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            given.add(node.id)
    words = {name: re.findall("[a-z]+", re.sub("([A-Z])", r"_\1", name).lower()) for name in given}
    assert {name: DIALECT[word] for name, parts in words.items() for word in parts if word in DIALECT} == {}
