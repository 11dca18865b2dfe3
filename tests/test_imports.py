"""Holds the import table of nvmeof/ARCHITECTURE.md and the size of modules and functions, by walking the sources."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parent.parent
MODULE_LINES_MAX = 600
FUNCTION_LINES_MAX = 75
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "base", "common", "misc"}

OF_ALL = {"errors", "limits"}
ALL = {f"{name}.*" for name in "protocol transport spec observe codec keys engine target initiator".split()}  # noqa: SIM905
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "limits": set(),
    "spec": set(),
    "observe": set(),
    "codec": set(),
    "keys": set(),
    "protocol": {"spec.*", "observe.*"},
    "transport": {"protocol.*", "observe.*"},
    "engine": {"observe.*", "codec.*", "keys.*"},
    "target": {"protocol.*", "transport.*", "spec.*", "observe.*", "engine.volume"},
    "initiator": {"protocol.*", "transport.*", "spec.*", "observe.*"},
    "checkpoint": {"", "initiator", "codec.*", "keys.*", "observe.*"},
    "testing": {"", "checkpoint.*", *ALL},
    "cli": {"", "checkpoint.*", *ALL},
    "": {"initiator"},
    "__main__": {"cli.*"},
}
"""What a package may import besides errors, limits and itself.

``spec.*`` is every module of it, ``initiator`` only its public face (its __init__), "" the package's (nvmeof/__init__).
"""

PURE_FORBIDDEN = {"asyncio", "os", "socket", "time", "random", "secrets", "threading", "ssl", "select"}


@dataclass(frozen=True)
class Import:
    name: str
    line: int
    at_import_time: bool


@dataclass(frozen=True)
class Module:
    path: Path

    @property
    def place(self) -> str:
        return str(self.path.relative_to(ROOT))

    @property
    def name(self) -> str:
        parts = self.path.relative_to(ROOT).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @property
    def package(self) -> str:
        """The row of the import table: the part behind nvmeof, "" for nvmeof/__init__.py."""
        return self.name.partition(".")[2].partition(".")[0]

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.path.read_text(), self.place)

    @property
    def imports(self) -> Iterator[Import]:
        yield from imports_of(self.tree, at_import_time=True)


def imports_of(node: ast.AST, *, at_import_time: bool) -> Iterator[Import]:
    """Every import below ``node``. One in a function or under TYPE_CHECKING does not run at import time."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, child.lineno, at_import_time)
        elif isinstance(child, ast.ImportFrom):
            assert not child.level, f"relative import in line {child.lineno}"
            for alias in child.names:
                yield Import(resolve(str(child.module), alias.name), child.lineno, at_import_time)
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or is_type_checking(child):
            yield from imports_of(child, at_import_time=False)
        else:
            yield from imports_of(child, at_import_time=at_import_time)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def resolve(module: str, name: str) -> str:
    """``from nvmeof.spec import status`` imports nvmeof.spec.status, ``from nvmeof.errors import X`` nvmeof.errors."""
    inside = f"{module}.{name}"
    return inside if module.partition(".")[0] == "nvmeof" and inside in PACKAGE_NAMES else module


def module_names(top: Path) -> set[str]:
    return {Module(path).name for path in top.rglob("*.py")}


PACKAGE_NAMES = module_names(ROOT / "nvmeof")
PACKAGE = [Module(path) for path in sorted((ROOT / "nvmeof").rglob("*.py"))]
EVERYTHING = [
    *PACKAGE,
    *(Module(path) for top in ("tests", "tools") for path in sorted((ROOT / top).rglob("*.py"))),
]


def permitted(package: str, target: str) -> bool:
    """Whether ``package`` may import ``target``, a module name behind nvmeof."""
    top = target.partition(".")[0]
    allowed = MAY_IMPORT[package] | OF_ALL | {f"{package}.*"}
    return target in allowed or f"{top}.*" in allowed


def test_table() -> None:
    assert {module.package for module in PACKAGE} <= set(MAY_IMPORT), "a package without a row"
    wrong = [
        f"{module.place}:{each.line} imports {each.name}"
        for module in PACKAGE
        for each in module.imports
        if each.name.partition(".")[0] == "nvmeof" and not permitted(module.package, each.name.partition(".")[2])
    ]
    assert not wrong


def test_standard_modules() -> None:
    wrong = [
        f"{module.place}:{each.line} imports {each.name}"
        for module in PACKAGE
        for each in module.imports
        if each.name.partition(".")[0] in forbidden_modules(module)
    ]
    assert not wrong


def forbidden_modules(module: Module) -> set[str]:
    """Time, randomness and I/O are arguments of the protocol core; only one module of the engine meets the system."""
    if module.package in ("protocol", "spec"):
        return PURE_FORBIDDEN
    if module.package == "engine" and module.path.name != "disk.py":
        return {"os"}
    return set()


def test_no_cycles_at_import_time() -> None:
    edges = {
        module.name: sorted({each.name for each in module.imports if each.at_import_time} & PACKAGE_NAMES)
        for module in PACKAGE
    }
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for target in edges[name]:
                visit(target, (*path, name))
            done.add(name)

    for name in edges:
        visit(name, ())


def test_names_of_modules() -> None:
    wrong = [module.place for module in EVERYTHING if FORBIDDEN_NAMES & set(module.path.with_suffix("").parts)]
    assert not wrong


def test_size_of_modules_and_functions() -> None:
    modules = [module for module in EVERYTHING if not module.place.startswith("tests/")]
    lines = {module.place: module.path.read_text().count("\n") for module in modules}
    functions = {
        f"{module.place}:{node.lineno} {node.name}": length(node)
        for module in modules
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert not {place: count for place, count in lines.items() if count > MODULE_LINES_MAX}
    assert not {place: count for place, count in functions.items() if count > FUNCTION_LINES_MAX}


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines, both ends counted."""
    return int(function.end_lineno or function.lineno) - function.lineno + 1


def test_the_table_covers_what_is_documented() -> None:
    text = (ROOT / "nvmeof" / "ARCHITECTURE.md").read_text()
    rows = [line.split("|")[1].split(",") for line in text.splitlines() if line.startswith("| ") and "---" not in line]
    named = {name.strip() for row in rows for name in row} - {"package"}
    assert named <= set(MAY_IMPORT), "a row of nvmeof/ARCHITECTURE.md is not held by this test"
