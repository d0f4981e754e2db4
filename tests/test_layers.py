"""Who may import whom. The table is also the shortest description of the architecture."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import actorq
import actorq.actors
from actorq import errors

ROOT = Path(actorq.__file__).parent

MAY_IMPORT = {
    "errors": set(),
    "clock": set(),
    "failpoints": set(),
    "lazy": set(),
    "stdio": set(),
    "tasks": {"errors"},
    "actors": {"errors", "clock", "failpoints", "lazy", "stdio"},
    "store": {"errors", "clock", "failpoints", "stdio", "tasks"},
    "brokers": {"errors", "clock", "failpoints", "tasks", "actors", "store"},
}


LAZY = {package.__name__: set(package.__all__) - set(vars(errors)) for package in (actorq, actorq.actors)}


@cache
def parsed(path):
    return ast.parse(path.read_text())


def modules_of(layer):
    package = ROOT / layer
    return sorted(package.rglob("*.py")) if package.is_dir() else [package.with_suffix(".py")]


@cache
def imported_layers(path):
    layers = set()
    for node in ast.walk(parsed(path)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import by full name"
            names = [
                str(node.module),
                *[f"{node.module}.{alias.name}" for alias in node.names if node.module == "actorq"],
            ]
        layers |= {name.split(".")[1] for name in names if name.startswith("actorq.")}
    return layers


def test_layers_import_downwards_only():
    for layer, allowed in MAY_IMPORT.items():
        assert modules_of(layer), layer
        for path in modules_of(layer):
            foreign = imported_layers(path) - {layer} - allowed
            assert not foreign, f"{path} imports {foreign}"


def test_no_body_of_a_module_asks_for_a_name_that_is_imported_lazily():
    """It would do so with the interpreter's lock of its module in hand, and wait for the one that `lazy` has."""
    for path in ROOT.rglob("*.py"):
        for node in parsed(path).body:
            if isinstance(node, ast.ImportFrom) and node.module in LAZY:
                lazy = {alias.name for alias in node.names} & set(LAZY[node.module])
                assert not lazy, f"{path} imports {lazy}"


def test_nothing_that_runs_imports_the_testing_module():
    for path in ROOT.rglob("*.py"):
        if path.parent.name != "testing":
            assert "testing" not in imported_layers(path), path


def test_runtime_packages_are_the_standard_library_orjson_and_filelock_only():
    import sys

    for path in ROOT.rglob("*.py"):
        for node in ast.walk(parsed(path)):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [str(node.module)]
            for name in names:
                top = name.split(".")[0]
                assert top in sys.stdlib_module_names or top in {"actorq", "orjson", "filelock"}, f"{path}: {name}"
