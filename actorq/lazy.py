"""Names of a module that are imported when somebody asks for them.

    __getattr__, __dir__ = lazily(globals(), {"Queue": "actorq.queue:Queue", "door": "actorq.brokers.door"})

What nobody asks for costs a program nothing: neither time as it starts nor memory.

No child is forked while another thread imports such a name: the interpreter's lock of that module would stay taken in
the child for ever. So the body of a module must not ask for one. It may be run by a thread that holds the interpreter's
lock of its own module and would wait for ours, while another has ours and waits for that module.
"""

from __future__ import annotations

import logging  # noqa: F401  # before the fork hooks below: see there
import os
import threading
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_importing = threading.RLock()


def lazily(module: dict[str, Any], places: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` of the module whose globals these are.

    ``places``: by name, the full name of the module that it stands for, or of the one that has it: ``module:name``.
    """

    def find(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {module['__name__']!r} has no attribute {name!r}")
        home, _, attribute = places[name].partition(":")
        with _importing:
            found = import_module(home)
            module[name] = getattr(found, attribute) if attribute else found
        return module[name]

    def names() -> list[str]:
        return sorted({*module, *places})

    return find, names


def in_modules(homes: Mapping[str, str]) -> dict[str, str]:
    """Return the places of names that are listed by module, with spaces between them."""
    return {name: f"{home}:{name}" for home, names in homes.items() for name in names.split()}


# What is to be done before a fork is done in reverse order. Logging takes its lock then, which a module that is being
# imported wants for its logger: so ours comes behind it here, and before it there.
if hasattr(os, "register_at_fork"):  # where there is no fork, nothing is inherited
    os.register_at_fork(
        before=_importing.acquire, after_in_parent=_importing.release, after_in_child=_importing.release
    )
