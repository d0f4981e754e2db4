"""Where ^C may come, and what it must not pass by.

CPython (3.12 and 3.13, to be seen in `dis`) leaves the jump back of a `while` with a condition out of the `try` or
`with` around it. Whoever presses ^C just then passes by its `finally`, its `except` and its `__exit__`. The jumps of
`while True` and of `for` are covered. So a loop with a condition that would stand where something has to be tidied up
goes into a function of its own.
"""

from __future__ import annotations

import ast
import dis
from pathlib import Path

import pytest

import actorq

ROOT = Path(actorq.__file__).parent


def must_be_left_properly(node: ast.AST, child: ast.AST) -> bool:
    """Whether something is done at the end of this statement when ^C comes in this part of it."""
    if isinstance(node, ast.With | ast.AsyncWith):
        managers = [ast.unparse(item.context_expr) for item in node.items]
        return any("suppress(" not in manager for manager in managers)
    if not isinstance(node, ast.Try):
        return False
    catches = any(
        handler.type is None or "BaseException" in ast.unparse(handler.type) or "Keyboard" in ast.unparse(handler.type)
        for handler in node.handlers
    )
    return (bool(node.finalbody) and child not in node.finalbody) or (catches and child in node.body)


def loops_that_open_a_gap(node: ast.AST, inside: bool = False) -> list[int]:
    """Return the lines of loops with a condition in a statement of the same function that must be left properly."""
    found = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            found += loops_that_open_a_gap(child)
            continue
        is_inside = inside or must_be_left_properly(node, child)
        if isinstance(child, ast.While) and is_inside and not isinstance(child.test, ast.Constant):
            found.append(child.lineno)
        found += loops_that_open_a_gap(child, is_inside)
    return found


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_loop_with_a_condition_stands_where_something_has_to_be_tidied_up(path):
    assert loops_that_open_a_gap(ast.parse(path.read_text())) == []


@pytest.mark.parametrize(
    "statement",
    [
        "try:\n  while c: pass\n finally: f()",
        "try:\n  while c: pass\n except BaseException: f()",
        "with f():\n  while c: pass",
        "with f():\n  try:\n   while c: pass\n  except OSError: pass",
        "try: pass\n except OSError:\n  while c: pass\n finally: f()",
    ],
)
def test_such_a_loop_would_be_found(statement):
    assert loops_that_open_a_gap(ast.parse(f"def g():\n {statement}")) != []


@pytest.mark.parametrize("head", ["while True:\n   if not c(): break", "for _ in c():"])
def test_the_loops_that_stand_there_are_covered_as_a_whole(head):
    """If this fails, there is a Python for which the rule above is not enough."""
    outer = compile(f"def g():\n try:\n  {head}\n   f()\n finally: h()", "example", "exec")
    code = next(constant for constant in outer.co_consts if hasattr(constant, "co_code"))
    covered = [range(entry.start, entry.end) for entry in dis._parse_exception_table(code)]  # type: ignore[attr-defined]
    jumps = [found.offset for found in dis.get_instructions(code) if found.opname.startswith("JUMP_BACKWARD")]
    assert jumps
    assert all(any(jump in part for part in covered) for jump in jumps)
