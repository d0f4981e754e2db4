"""Whether this process, a child, is just importing the main module of the program: then it must start nothing.

A script without `if __name__ == "__main__":` would start once more, in every child, what it starts in the program.
Apart from actors/program.py, because whoever publishes has to ask and needs nothing else of a child's.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from actorq.errors import MainGuardError

if TYPE_CHECKING:
    from collections.abc import Iterator


class _Importing:
    main: str | None = None
    """Where the main module is found that is being imported."""


_importing = _Importing()


@contextmanager
def importing_main(where: str) -> Iterator[None]:
    """Let nothing be started while the block imports the main module."""
    _importing.main = where
    try:
        yield
    finally:
        _importing.main = None


def check_main_is_not_being_imported() -> None:
    """Raise `MainGuardError` in a child whose main module starts a system while it is being imported."""
    if _importing.main is not None:
        raise MainGuardError(_importing.main)
