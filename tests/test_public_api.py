"""What users import: documented, typed, and errors that survive a trip between processes."""

from __future__ import annotations

import ast
import inspect
import pickle
from pathlib import Path

import pytest

import actorq
from actorq import errors

ROOT = Path(actorq.__file__).parent

ARGUMENTS = {
    "str": "text",
    "int": 7,
    "float": 1.5,
    "int | None": 7,
    "str | os.PathLike[str]": "Queue.json",
    "tuple[str, ...]": ("a", "b"),
}


def example(cls):
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    return cls(*[ARGUMENTS[p.annotation] for p in parameters if p.kind is not p.VAR_POSITIONAL and p.name != "kwargs"])


def error_classes():
    return [
        cls
        for cls in vars(errors).values()
        if isinstance(cls, type) and issubclass(cls, errors.ActorqError) and cls.__module__ == errors.__name__
    ]


@pytest.mark.parametrize("cls", error_classes(), ids=lambda cls: cls.__name__)
def test_an_error_arrives_in_another_process_as_it_left(cls):
    error = example(cls)

    copy = pickle.loads(pickle.dumps(error))

    assert type(copy) is cls
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


@pytest.mark.parametrize("cls", error_classes(), ids=lambda cls: cls.__name__)
def test_an_error_is_named_and_documented_and_public_when_users_meet_it(cls):
    assert cls.__name__.endswith("Error")
    assert cls.__doc__


def test_all_public_names_exist_once_and_are_documented():
    assert len(set(actorq.__all__)) == len(actorq.__all__)
    for name in actorq.__all__:
        assert inspect.getdoc(getattr(actorq, name)), name


def public_functions():
    for path in sorted(ROOT.rglob("*.py")):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Module) or (isinstance(node, ast.ClassDef) and not node.name.startswith("_")):
                for child in node.body:
                    if isinstance(child, ast.FunctionDef) and not child.name.startswith("_"):
                        yield f"{path.relative_to(ROOT)}:{child.name}", child


def test_every_public_function_is_typed_and_documented():
    inherited = {"override", "overload"}
    for where, function in public_functions():
        decorators = {ast.unparse(decorator).split("(")[0] for decorator in function.decorator_list}
        arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        assert function.returns is not None, where
        assert all(argument.annotation for argument in arguments if argument.arg not in ("self", "cls")), where
        is_stub = isinstance(function.body[-1], ast.Expr) and ast.unparse(function.body[-1]) == "..."
        assert decorators & inherited or is_stub or ast.get_docstring(function), f"{where} has no docstring"


def test_every_module_says_what_it_is():
    for path in ROOT.rglob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), path
