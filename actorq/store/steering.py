"""What a wish to steer comes to: before, by what the log says so far; and afterwards, by what it says then.

The same three questions are asked wherever somebody steers: by the caller, before anything is done (`check`); by who
decides, the scheduler or whoever holds the locks while no brokers run (`decide`); and by the same one once that is in
the log (`fulfilled`). Each answer follows from the state alone. So a wish may be repeated, though nobody knows whether
it came true before: it changes nothing then, and is answered the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from actorq.errors import InvalidTransitionError, TaskNotFoundError
from actorq.tasks.ids import IdRange
from actorq.tasks.lifecycle import TaskState
from actorq.tasks.steering import RULES, STEERED, Verb, joined, portions, ranges_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from actorq.store.fold import QueueState

MOST_TASKS = 1000
"""How many tasks one wish may name: so many single ids fit into a packet, and into a line that a person can read."""


class Wish(NamedTuple):
    """What is asked for."""

    verb: Verb
    tasks: tuple[IdRange, ...] = ()
    name: str | None = None
    """What is to be paused or to go on; None is the whole queue."""
    died_by: str = ""
    """Of a retry: when the last of the tasks died. One that has died since was retried before, and is let lie."""


def wishes_for(state: QueueState, verb: Verb, task_ids: Sequence[str]) -> list[Wish]:
    """Return what is to be asked for. Raises TaskNotFoundError and InvalidTransitionError, before anything is done."""
    died_by = ""
    for task_id in task_ids:
        try:
            seq = state.seq_of(task_id)
        except ValueError:  # not even an id
            seq = None
        if seq is None:
            raise TaskNotFoundError(task_id)
        now = state.state_of(seq)
        if verb in RULES and now not in STEERED[verb]:
            raise InvalidTransitionError(now, verb, task_id, RULES[verb])
        if verb is Verb.RETRY:
            died_by = max(died_by, state.finished_at(seq) or "")
    return [Wish(verb, tuple(some), None, died_by) for some in portions(ranges_of(task_ids), MOST_TASKS)]


def wishes_for_all(state: QueueState, verb: Verb, states: Sequence[TaskState], name: str | None) -> list[Wish]:
    """Return what is to be asked for all tasks in these states, of this name or of any."""
    places = [seq for each in states for seq in state.places_in(each) if name is None or state.name_of(seq) == name]
    died_by = max((state.finished_at(seq) or "" for seq in places), default="") if verb is Verb.RETRY else ""
    ranges = joined(state.range_of(seq, seq + 1) for seq in places)
    return [Wish(verb, tuple(some), None, died_by) for some in portions(ranges, MOST_TASKS)]


def decide(state: QueueState, wish: Wish) -> list[IdRange]:
    """Return the tasks that are to be changed: all that stay as they are until that is in the log."""
    runs = [run for ids in wish.tasks for run in state.runs_of(STEERED[wish.verb], ids)]
    if wish.verb is Verb.RETRY:
        runs = [(seq, seq + 1) for lo, hi in runs for seq in range(lo, hi) if _has_died_by(state, seq, wish.died_by)]
    return joined(state.range_of(lo, hi) for lo, hi in runs)


def fulfilled(state: QueueState, wish: Wish) -> list[IdRange]:
    """Return those of the tasks that are as was wished, once what was decided is in the log."""
    return joined(part for ids in wish.tasks for part in _fulfilled(state, wish, ids))


def _fulfilled(state: QueueState, wish: Wish, ids: IdRange) -> Iterator[IdRange]:
    match wish.verb:
        case Verb.CANCEL:
            yield from (state.range_of(lo, hi) for lo, hi in state.runs_of((TaskState.CANCELLED,), ids))
        case Verb.RETRY:
            for lo, hi in state.present(ids):
                for seq in range(lo, hi):
                    if not (state.state_of(seq) is TaskState.DEAD and _has_died_by(state, seq, wish.died_by)):
                        yield state.range_of(seq, seq + 1)
        case Verb.PURGE:
            first = ids.first
            for lo, hi in state.present(ids):
                there = state.range_of(lo, hi)
                if first < there.first:
                    yield IdRange(ids.session, first, there.first - 1)
                first = there.last + 1
            if first <= ids.last:
                yield IdRange(ids.session, first, ids.last)


def _has_died_by(state: QueueState, seq: int, moment: str) -> bool:
    return (state.finished_at(seq) or "") <= moment
