"""What holds for all tests."""

from __future__ import annotations

import compileall
from pathlib import Path

import filelock

import actorq


def pytest_sessionstart() -> None:
    """Compile once what the tests' hundreds of interpreters import, as an installation by pip would have done.

    Where PYTHONDONTWRITEBYTECODE is set, as it often is in containers, each of them would do so anew.
    """
    for package in (actorq, filelock):
        assert package.__file__ is not None
        compileall.compile_dir(Path(package.__file__).parent, quiet=2)
    compileall.compile_dir(Path(__file__).parent, quiet=2)
