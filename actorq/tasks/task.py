"""The two ends of a task: what a publisher sends, and what the queue keeps.

Inside the brokers a task is a number in a few columns; objects of these classes exist only at the edges.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING, Any

from actorq.tasks.lifecycle import TaskState

if TYPE_CHECKING:
    from datetime import datetime

DEFAULT_NAME = "default"
MAX_NAME_LENGTH = 128


def check_name(name: str) -> str:
    """Return the name of a task if it may be one. Raises ValueError: 1 to 128 printable characters."""
    if type(name) is str and 0 < len(name) <= MAX_NAME_LENGTH and name.isprintable():
        return name
    raise ValueError(f"{name!r:.200} cannot name a task: 1 to {MAX_NAME_LENGTH} printable characters are needed")


@dataclass(frozen=True, slots=True)
class TaskIn:
    """What a publisher sends: the payload, and the name by which a handler is found."""

    data: Any
    name: str = DEFAULT_NAME


@dataclass(frozen=True, slots=True)
class Failure:
    """One attempt that went wrong: the handler raised, or its process died (``type`` is then ``ConsumerDied``)."""

    type: str
    message: str
    traceback: str = ""
    at: datetime | None = None


@dataclass(frozen=True)
class Task:
    """What the queue keeps of a task.

    A handler gets one with ``id``, ``name``, ``data`` and ``attempt``; ``Queue.get`` fills in the rest.
    """

    id: str
    """Session of the publisher and number in it."""
    name: str
    """Decides which handler runs it."""
    data: Any
    """The payload, as JSON brought it over."""
    state: TaskState = TaskState.READY
    """ready, scheduled, running, done, dead or cancelled."""
    attempts: int = 0
    """How often it was begun, since it was last retried; while it runs, this one counts."""
    errors: tuple[Failure, ...] = ()
    """One for each attempt that failed, oldest first; those before a retry stay."""
    result: Any = None
    """What the handler returned."""
    published_at: datetime | None = None
    started_at: datetime | None = None
    """When it was last handed to a consumer."""
    finished_at: datetime | None = None
    """When it was done, or given up."""

    @property
    def attempt(self) -> int:
        """The number of the attempt under way, from 1; above 1, or retried, it may have been run in part before."""
        return self.attempts


_set_fields = Task.__dict__["__dict__"].__set__


def tasks_in_hand(lines: list[dict[str, Any]], attempt: int) -> list[Task]:
    """Return the Tasks that a handler gets, made of what was parsed of their lines: id, name and data.

    Each dict becomes the fields of its Task, and the defaults of the class are the others: 0.08 us, where the __init__
    of so wide a frozen dataclass takes 1.0.
    """
    for line in lines:
        line["state"] = TaskState.RUNNING
        line["attempts"] = attempt
    tasks: list[Task] = list(map(object.__new__, repeat(Task, len(lines))))
    deque(map(_set_fields, tasks, lines), 0)
    return tasks
