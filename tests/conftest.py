"""What holds for all tests."""

from __future__ import annotations

import compileall
import os
import signal
import sys
from pathlib import Path

import filelock
import hypothesis

import actorq

# How long an example takes says nothing where other programs run as well.
hypothesis.settings.register_profile("actorq", deadline=None)
hypothesis.settings.load_profile("actorq")


def pytest_sessionstart() -> None:
    """Prepare what the programs that the tests start get from here."""
    # In the background of a script ^C is ignored, and all programs started from there would ignore it too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Where PYTHONDONTWRITEBYTECODE is set, as it often is in containers, each of some hundred interpreters would
    # compile all of this anew, and each worker pytest and all the tests. An installation by pip has done it once.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    for package in (actorq, filelock):
        assert package.__file__ is not None
        compileall.compile_dir(Path(package.__file__).parent, quiet=2)
    compileall.compile_dir(Path(__file__).parent, quiet=2)
