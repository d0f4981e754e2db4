"""What follows on a failure: another attempt, or the end.

Two limits, because two kinds of failure differ in who pays: a handler that raises costs one attempt, a handler that
kills its process costs everything the consumer had in hand.
"""

from __future__ import annotations

from dataclasses import dataclass

from actorq.tasks.lifecycle import TaskEvent

MAX_ATTEMPTS = 3
MAX_CRASHES = 3


@dataclass(frozen=True, slots=True)
class Policy:
    """How often a task may fail: ``max_attempts`` by raising, ``max_crashes`` by killing its consumer."""

    max_attempts: int = MAX_ATTEMPTS
    max_crashes: int = MAX_CRASHES

    def __post_init__(self) -> None:
        """Refuse limits that no task could keep."""
        for name in ("max_attempts", "max_crashes"):
            limit = getattr(self, name)
            if type(limit) is not int or limit < 1:
                raise ValueError(f"{name} is a number from 1 on, not {limit!r}")


def after_failure(failures: int, max_attempts: int = MAX_ATTEMPTS) -> TaskEvent:
    """Return what happens to a task whose handler raised, now for the ``failures``-th time."""
    return TaskEvent.BURY if failures >= max_attempts else TaskEvent.RETRY


def after_crash(crashes: int, max_crashes: int = MAX_CRASHES) -> TaskEvent:
    """Return what happens to a task whose handler took the process with it, now for the ``crashes``-th time."""
    return TaskEvent.BURY if crashes >= max_crashes else TaskEvent.RELEASE
