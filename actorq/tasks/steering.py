"""What a person may do to tasks and names, in the words of the API, the command line and the log.

    retry     dead                     -> ready        it begins anew, with all attempts; its errors stay
    cancel    ready, scheduled         -> cancelled
    purge     dead, done, cancelled    -> forgotten    the next compaction drops its bytes

Besides, a name, or the whole queue, may pause: none of its tasks is handed out then until it is to resume.
"""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING

from actorq.tasks.ids import IdRange, parse_task_id
from actorq.tasks.lifecycle import TRANSITIONS, TaskEvent, TaskState

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping


class Verb(StrEnum):
    """What can be asked for."""

    RETRY = "retry"
    CANCEL = "cancel"
    PURGE = "purge"
    PAUSE = "pause"
    RESUME = "resume"


def _states_before(event: TaskEvent) -> tuple[TaskState, ...]:
    return tuple(state for state, row in TRANSITIONS.items() if event in row)


STEERED: Mapping[Verb, tuple[TaskState, ...]] = MappingProxyType(
    {
        Verb.RETRY: _states_before(TaskEvent.REVIVE),
        Verb.CANCEL: _states_before(TaskEvent.CANCEL),
        Verb.PURGE: (TaskState.DONE, TaskState.DEAD, TaskState.CANCELLED),
    }
)
"""In which states a task must be to be changed so."""

RULES: Mapping[Verb, str] = MappingProxyType(
    {
        Verb.RETRY: "only dead tasks are retried",
        Verb.PURGE: "only tasks that are done, dead or cancelled are purged",
    }
)
"""What is said to whoever asks it of a task in another state. A cancel is not refused: it may just come too late."""


def ranges_of(task_ids: Iterable[str]) -> list[IdRange]:
    """Return the tasks as few ranges, each task once. Raises ValueError when a text is not an id."""
    return joined(IdRange(session, number, number) for session, number in sorted(set(map(parse_task_id, task_ids))))


def joined(ranges: Iterable[IdRange]) -> list[IdRange]:
    """Return the ranges with those made one that follow each other."""
    whole: list[IdRange] = []
    for ids in ranges:
        last = whole[-1] if whole else None
        if last is not None and (ids.session, ids.first) == (last.session, last.last + 1):
            whole[-1] = IdRange(ids.session, last.first, ids.last)
        else:
            whole.append(ids)
    return whole


def portions(ranges: Iterable[IdRange], limit: int) -> Iterator[list[IdRange]]:
    """Yield the ranges in portions of at most so many tasks."""
    portion: list[IdRange] = []
    room = limit
    for ids in ranges:
        first = ids.first
        while first <= ids.last:
            last = min(ids.last, first + room - 1)
            portion.append(IdRange(ids.session, first, last))
            room -= last - first + 1
            first = last + 1
            if not room:
                yield portion
                portion, room = [], limit
    if portion:
        yield portion
