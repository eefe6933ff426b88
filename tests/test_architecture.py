"""The rules that hold the layers apart, read off the source: `stores <- hypervisors <- agent`, and nobody asks what class a
store or a handler is."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "stores": {"stores"},
    "hypervisors": {"stores", "hypervisors"},
    "agent": {"stores", "hypervisors", "agent"},
}
OURS = {*MAY_IMPORT, "tests", "benchmarks"}
MAY_NAME_CLASSES = {"stores/resolver.py", "hypervisors/registry.py", "agent/wiring.py"}
CONTRACTS = {"DataStore", "HypervisorHandler"}


@dataclass(frozen=True)
class Module:
    """A source file by its path in the project."""

    path: str
    tree: ast.Module

    @property
    def package(self) -> str:
        return self.path.split("/")[0]

    @property
    def is_implementation(self) -> bool:
        """Whether concrete stores or handlers live here: `stores/backends/...`, `hypervisors/<one of them>/...`."""
        return self.path.startswith("stores/backends/") or (self.package == "hypervisors" and self.path.count("/") > 1)


def module(path: str, source: str) -> Module:
    return Module(path, ast.parse(textwrap.dedent(source), path))


@cache
def production() -> tuple[Module, ...]:
    paths = [path for package in MAY_IMPORT for path in sorted((ROOT / package).rglob("*.py"))]
    return tuple(module(str(path.relative_to(ROOT)), path.read_text()) for path in paths)


def imported(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and full name of every import, those inside functions and for type checking included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "." * node.level + (node.module or "")


def wrong_imports(modules: Sequence[Module]) -> list[str]:
    wrong = []
    for one in modules:
        for line, name in imported(one.tree):
            top = name.split(".")[0]
            if name.startswith("."):
                wrong.append(f"{one.path}:{line} imports relatively")
            elif top in OURS and top not in MAY_IMPORT[one.package]:
                wrong.append(f"{one.path}:{line} imports {name}")
    return wrong


def bases(node: ast.ClassDef) -> set[str]:
    return {name for base in node.bases for name in names(base)}


def names(node: ast.AST) -> Iterator[str]:
    """Identifiers in an expression."""
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            yield part.id
        elif isinstance(part, ast.Attribute):
            yield part.attr


def implementations(modules: Sequence[Module]) -> dict[str, Module]:
    """Every class that is, over any number of bases, a store or a handler, and where it is."""
    classes = [
        (node.name, bases(node), one)
        for one in modules
        for node in ast.walk(one.tree)
        if isinstance(node, ast.ClassDef)
    ]
    found: dict[str, Module] = {}
    while True:
        known = CONTRACTS | set(found)
        more = {name: one for name, above, one in classes if name not in found and above & known}
        if not more:
            return found
        found |= more


def named_elsewhere(modules: Sequence[Module]) -> list[str]:
    concrete = {name: one for name, one in implementations(modules).items() if one.is_implementation}
    wrong = []
    for one in modules:
        if one.path in MAY_NAME_CLASSES:
            continue
        wrong += [
            f"{one.path}:{line} names {name}"
            for line, name in _mentioned(one.tree)
            if name in concrete and concrete[name].path != one.path
        ]
    return wrong


def _mentioned(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute):
            yield node.lineno, node.attr
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield node.lineno, alias.name


def class_tests(modules: Sequence[Module]) -> list[str]:
    """Where the class of a store or handler is asked for: isinstance, issubclass, class patterns, `type(x) is`."""
    known = CONTRACTS | set(implementations(modules))
    wrong = []
    for one in modules:
        for line, asked in _asked(one.tree):
            wrong += [f"{one.path}:{line} asks whether something is a {name}" for name in sorted(asked & known)]
    return wrong


def _asked(tree: ast.Module) -> Iterator[tuple[int, set[str]]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in ("isinstance", "issubclass") and len(node.args) == 2:
                yield node.lineno, set(names(node.args[1]))
        elif isinstance(node, ast.MatchClass):
            yield node.lineno, set(names(node.cls))
        elif isinstance(node, ast.Compare) and any(_is_type_call(part) for part in (node.left, *node.comparators)):
            yield node.lineno, set(names(node))


def _is_type_call(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "type"


# ------------------------------------------------------------------------------------------------------ the rules


def test_imports_point_one_way() -> None:
    assert wrong_imports(production()) == []


def test_concrete_classes_are_named_in_three_places() -> None:
    assert named_elsewhere(production()) == []


def test_nobody_asks_what_class_a_store_or_handler_is() -> None:
    assert class_tests(production()) == []


def test_rules_see_the_classes_that_exist() -> None:
    found = implementations(production())
    assert {"MemoryStore", "FilesystemStore", "S3Store", "HttpStore", "RetryingStore", "KvmHandler"} <= set(found)
    assert found["MemoryStore"].is_implementation
    assert not found["RetryingStore"].is_implementation


# ------------------------------------------------------------------------------------- the rules catch what they must


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("stores/x.py", "import hypervisors.contract"),
        ("stores/x.py", "def f():\n    from agent import wiring"),
        ("stores/x.py", "if TYPE_CHECKING:\n    from hypervisors.contract import Source"),
        ("stores/x.py", "from . import contract"),
        ("hypervisors/x.py", "from agent.config import Config"),
        ("agent/x.py", "from tests import servers"),
        ("hypervisors/x.py", "import benchmarks"),
    ],
)
def test_wrong_import_is_found(path: str, source: str) -> None:
    assert len(wrong_imports([module(path, source)])) == 1


STORE = module("stores/backends/tape.py", "class Base(contract.DataStore): ...\nclass TapeStore(Base): ...")


@pytest.mark.parametrize(
    "source",
    [
        "from stores.backends.tape import TapeStore",
        "def f():\n    from stores.backends.tape import TapeStore as Harmless",
        "import stores.backends.tape\nmake = stores.backends.tape.TapeStore",
    ],
)
def test_named_class_is_found(source: str) -> None:
    assert named_elsewhere([STORE, module("agent/x.py", source)])
    assert named_elsewhere([STORE, module("stores/backends/other.py", source)])
    assert not named_elsewhere([STORE, module("stores/resolver.py", source)])


@pytest.mark.parametrize(
    "source",
    [
        "isinstance(store, TapeStore)",
        "isinstance(store, (int, DataStore))",
        "issubclass(kind, contract.HypervisorHandler)",
        "isinstance(store, TapeStore | int)",
        "type(store) is TapeStore",
        "match store:\n    case tape.TapeStore():\n        pass",
    ],
)
def test_question_for_the_class_is_found(source: str) -> None:
    assert len(class_tests([STORE, module("agent/x.py", source)])) == 1
    assert class_tests([STORE, module("agent/x.py", "isinstance(presentation, RangeReader)")]) == []
