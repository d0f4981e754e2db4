"""The life of a task.

    publish              assign                complete
    --------> [ready] ------------> [running] ----------> [done]

    ready     --assign-->    running     handed to a consumer
    running   --complete-->  done        recorded in the same commit as its result
    running   --retry-->     ready       the handler failed and attempts are left
    running   --release-->   ready       its consumer died or gave it back; it keeps its place
    running   --bury-->      dead        it failed, or killed its consumer, for the last time
    ready     --cancel-->    cancelled   a person asked before it was handed out
    scheduled --cancel-->    cancelled   likewise
    scheduled --due-->       ready       its time has come
    dead      --revive-->    ready       a person asked

Nothing outside this module decides what follows on what. Whether a failure is `retry` or `bury` is decided before, by
`policy`; the fold over the log applies the same table to whole ranges of tasks at once.
"""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING

from actorq.errors import InvalidTransitionError

if TYPE_CHECKING:
    from collections.abc import Mapping


class TaskState(StrEnum):
    """Where a task stands. Users see these words everywhere."""

    READY = "ready"
    SCHEDULED = "scheduled"
    RUNNING = "running"
    DONE = "done"
    DEAD = "dead"
    CANCELLED = "cancelled"


class TaskEvent(StrEnum):
    """What can happen to a task."""

    ASSIGN = "assign"
    COMPLETE = "complete"
    RETRY = "retry"
    RELEASE = "release"
    BURY = "bury"
    CANCEL = "cancel"
    DUE = "due"
    REVIVE = "revive"


# fmt: off
TRANSITIONS: Mapping[TaskState, Mapping[TaskEvent, TaskState]] = MappingProxyType({
    TaskState.READY:     {TaskEvent.ASSIGN: TaskState.RUNNING, TaskEvent.CANCEL: TaskState.CANCELLED},
    TaskState.SCHEDULED: {TaskEvent.DUE: TaskState.READY, TaskEvent.CANCEL: TaskState.CANCELLED},
    TaskState.RUNNING:   {TaskEvent.COMPLETE: TaskState.DONE, TaskEvent.RETRY: TaskState.READY,
                          TaskEvent.RELEASE: TaskState.READY, TaskEvent.BURY: TaskState.DEAD},
    TaskState.DONE:      {},
    TaskState.DEAD:      {TaskEvent.REVIVE: TaskState.READY},
    TaskState.CANCELLED: {},
})
# fmt: on


def advance(state: TaskState, event: TaskEvent) -> TaskState:
    """Return the state after the event, or raise InvalidTransitionError."""
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        raise InvalidTransitionError(state, event) from None
