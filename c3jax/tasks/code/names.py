"""What tests, setups and solutions define and use, read off their text. Host code; nothing is run."""

from __future__ import annotations

import ast
import builtins
import re
import sys
import types
from collections.abc import Callable, Iterable, Sequence


def find_definitions(module: ast.Module) -> dict[str, str]:
    """Find the functions and classes of a solution, and how each is called."""
    heads = {}
    for statement in module.body:
        if isinstance(statement, ast.FunctionDef):
            heads[statement.name] = f"`{statement.name}({ast.unparse(statement.args)})`"
        elif isinstance(statement, ast.ClassDef):
            inits = [node for node in statement.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"]
            arguments = ast.unparse(inits[0].args).partition(",")[2].strip() if inits else ""
            heads[statement.name] = f"the class `{statement.name}({arguments})`"
    return heads


def find_undefined(modules: Sequence[ast.Module]) -> list[str]:
    """Find the names that code reads, in the order in which they appear, and that nothing in it gives a meaning.

    The name of a module of the standard library is one of them where it is more than the start of a dotted name.
    """
    nodes = [node for module in modules for node in ast.walk(module)]
    dotted = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}
    methods = {id(method) for node in nodes if isinstance(node, ast.ClassDef) for method in node.body}
    known = set(dir(builtins)) | _find_bound(node for node in nodes if id(node) not in methods)
    read: dict[str, bool] = {}
    for node in nodes:
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            read[node.id] = read.get(node.id, False) or id(node) not in dotted
    return [
        name
        for name, is_alone in read.items()
        if name not in known and (is_alone or name not in sys.stdlib_module_names)
    ]


def _find_bound(nodes: Iterable[ast.AST]) -> set[str]:
    names = set()
    for node in nodes:
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            names.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.alias):
            names.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name is not None:
            names.add(node.name)
    return names


def find_modules(texts: Sequence[str]) -> set[str]:
    """Find modules of the standard library that tests use: MBPP leaves it to the solution to import them."""
    codes = [compile(text, "tests", "exec", dont_inherit=True) for text in texts]
    names: set[str] = set()
    while codes:
        code = codes.pop()
        names.update(code.co_names)
        codes.extend(constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    modules = names & set(sys.stdlib_module_names)
    return {name for name in modules if any(re.search(rf"(?<![\w.]){name}\s*\.", text) for text in texts)}


def looks_at_arguments(test: str, names: Sequence[str]) -> bool:
    """Whether a test calls the program for what it does to its arguments: a call whose result goes nowhere.

    In all other tests a program cannot change what it was given, so it cannot change what it is compared with.

    Args:
      test: Python.
      names: what the program defines.
    """
    if not re.search(rf"^[ \t]*(?:{'|'.join(map(re.escape, names))})\(", test, re.MULTILINE):
        return False
    return any(isinstance(node, ast.Expr) and _is_call(node.value, names) for node in ast.walk(ast.parse(test)))


def _is_call(node: ast.AST, names: Sequence[str]) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names


def is_mentioned(name: str, question: str) -> bool:
    """Whether a question names something: as code, or by a name that is no ordinary word."""
    word = rf"\b{re.escape(name)}\b"
    plain = "" if name.islower() and name.isalpha() else f"|{word}"
    return re.search(rf"`[^`\n]*{word}[^`\n]*`|{word}\({plain}", question) is not None


def find_classes(setup: ast.Module) -> set[str]:
    """Find the classes that a setup defines."""
    makers = ("namedtuple", "NamedTuple", "Enum", "IntEnum", "Flag", "make_dataclass")
    found = set()
    for one in setup.body:
        made = one.value.func if isinstance(one, ast.Assign) and isinstance(one.value, ast.Call) else None
        if isinstance(one, ast.ClassDef) or (made and ast.unparse(made).rpartition(".")[2] in makers):
            found |= _bind(one)
    return found


def share_setup(setup: ast.Module, tests: Sequence[str], names: Sequence[str], question: str) -> str:
    """Find what of a setup runs before the program, too: all but what the tests decide by.

    The tests decide by what they use outside of the arguments of a call to the program: a solution to compare with,
    a table of results. It stays with them, and what it is made from, unless the question mentions it. A single number
    that they only calculate with is shared, and so are classes, unless tests just call their methods.

    Args:
      names: what the program defines.
    """
    if all(isinstance(one, ast.Import | ast.ImportFrom) for one in setup.body):
        return ast.unparse(setup)
    modules = [ast.parse(test) for test in tests]
    parts = [(_bind(one), _find_read(ast.walk(one))) for one in setup.body]
    own = {name for one in setup.body if not isinstance(one, ast.Import | ast.ImportFrom) for name in _bind(one)}
    shared = {name for name in own if is_mentioned(name, question)}
    shared |= find_classes(setup) - _find_references([*modules, *setup.body], names)
    shared = _grow(shared, lambda known: [read for bound, read in parts if bound & known])
    single = {name for one in setup.body if _is_single(one) for name in _bind(one)}
    secret = {name for module in modules for name in _find_deciding(module, names, single)} & own - shared
    secret = _grow(secret, lambda known: [read & own - shared - single for bound, read in parts if bound & known])
    # What reads it cannot run without it.
    secret = _grow(secret, lambda known: [bound for bound, read in parts if (bound | read) & known])
    kept = [one for one, (bound, read) in zip(setup.body, parts, strict=True) if not (bound | read) & secret]
    return "\n".join(map(ast.unparse, kept))


def _bind(statement: ast.stmt) -> set[str]:
    """The names that a statement defines for those after it."""
    is_scope = isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    return {statement.name} if is_scope else _find_bound(ast.walk(statement))


def _is_single(statement: ast.stmt) -> bool:
    """Whether a statement gives a name to a number or a text."""
    literal = (ast.Constant, ast.UnaryOp, ast.BinOp, ast.operator, ast.unaryop)
    value = statement.value if isinstance(statement, ast.Assign | ast.AnnAssign) else None
    return value is not None and all(isinstance(node, literal) for node in ast.walk(value))


def _find_references(trees: Sequence[ast.AST], names: Sequence[str]) -> set[str]:
    """Find classes whose methods are called, on them or an instance, and that are never handed to the program."""
    found: set[str] = set()
    given: set[str] = set()
    for nodes in (list(ast.walk(tree)) for tree in trees):
        class_of = {
            ast.unparse(node.targets[0]): ast.unparse(node.value.func)
            for node in nodes
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)
        }
        here = _find_read(part for node in nodes if _is_call(node, names) for part in _walk_arguments(node))
        here |= {node.value.id for node in nodes if isinstance(node, ast.Return) and isinstance(node.value, ast.Name)}
        given |= here | {class_of[name] for name in here if name in class_of}
        for node in nodes:
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = node.func.value.func if isinstance(node.func.value, ast.Call) else node.func.value
                found |= {class_of.get(owner.id, owner.id)} if isinstance(owner, ast.Name) else set()
    return found - given


def _walk_arguments(call: ast.AST) -> list[ast.AST]:
    return [node for part in ast.iter_child_nodes(call) for node in ast.walk(part)]


def _find_deciding(test: ast.Module, names: Sequence[str], single: set[str]) -> set[str]:
    """Find what a test reads outside of the arguments of the program, and not only to calculate with it."""
    calls = [node for node in ast.walk(test) if _is_call(node, names)]
    given = {node for call in calls for node in _walk_arguments(call)}
    sums = [node for node in ast.walk(test) if isinstance(node, ast.BinOp) and not isinstance(node.op, ast.Sub)]
    terms = {term for one in sums if not set(calls) & set(ast.walk(one)) for term in (one.left, one.right)}
    return _find_read(
        node
        for node in ast.walk(test)
        if node not in given and not (node in terms and isinstance(node, ast.Name) and node.id in single)
    )


def _find_read(nodes: Iterable[ast.AST]) -> set[str]:
    return {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def _grow(names: set[str], find_more: Callable[[set[str]], list[set[str]]]) -> set[str]:
    """Add what follows from some names until nothing more does."""
    while not (more := set[str]().union(*find_more(names))) <= names:
        names = names | more
    return names
