"""The parts of a queue that a plain publish does without. Each is imported when it is first asked for.

    from actorq import on_demand

    on_demand.hosting.Host(path)

Two thirds of what can be imported are for hosting a queue, running its tasks, or talking to those who do; whoever puts
a task into a file that nobody hosts has no need of it, and ends sooner.

To be asked for inside of functions only. No child is forked while another thread is importing a part: the interpreter's
lock of that module would stay taken in the child for ever.
"""

from __future__ import annotations

import logging  # noqa: F401  # before the fork hooks below: see there
import os
import threading
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from actorq import async_publisher, brokered_publisher, hosting, membership, refuge, steering, waiting
    from actorq.brokers import door, trees

__all__ = [
    "async_publisher",
    "brokered_publisher",
    "door",
    "hosting",
    "membership",
    "refuge",
    "steering",
    "trees",
    "waiting",
]

_IN_BROKERS = frozenset({"door", "trees"})
_importing = threading.RLock()


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with _importing:
        module = globals()[name] = import_module(home_of(name))
    return module


def home_of(name: str) -> str:
    """Return the full name of a part."""
    return f"actorq.brokers.{name}" if name in _IN_BROKERS else f"actorq.{name}"


# What is to be done before a fork is done in reverse order. Logging takes its lock then, which a module that is being
# imported wants for its logger: so ours comes behind it here, and before it there.
if hasattr(os, "register_at_fork"):  # where there is no fork, nothing is inherited
    os.register_at_fork(
        before=_importing.acquire, after_in_parent=_importing.release, after_in_child=_importing.release
    )
