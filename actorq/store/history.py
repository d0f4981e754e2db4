"""What has happened in a queue, told from its log: one event for each change of some tasks, or of who is connected.

An event is what a record did, not what it says: records are folded as everywhere, and an outcome that came too late or
an assignment that was void shows as just that. A compacted file begins with how things stood, and the history before
is gone; the first event says so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Self, override

import orjson

from actorq.store.filesystem import REAL, Filesystem, StrPath
from actorq.store.fold import AFTER_CRASH, CRASH, STATES, QueueState
from actorq.store.follower import Follower
from actorq.tasks.ids import split_range
from actorq.tasks.lifecycle import TaskState
from actorq.tasks.steering import Verb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from actorq.store.fold import Step
    from actorq.store.log_reader import Batch

    type Rule = Callable[[QueueState, bytes, int], None]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened. What it does not concern is None."""

    at: str
    commit: int
    """In which commit; 0 in a snapshot."""
    event: str
    """published, assigned, done, failed, crashed, returned, released, cancelled, revived, purged, kept, void; without
    tasks compacted, writer, scheduler, joined, left, paused, resumed."""
    tasks: str | None = None
    """A range of ids."""
    count: int = 0
    """How many tasks these are."""
    name: str | None = None
    attempt: int | None = None
    """Which attempt was begun or has ended, if it is one task."""
    state: str | None = None
    """What the tasks are since then."""
    session: str | None = None
    """Who published, or whose consumer it is."""
    pid: int | None = None
    error: dict[str, str] | None = None
    """type, message and traceback of what a handler raised."""
    note: str | None = None


def _telling(rule: Rule) -> Rule:
    """Return a rule of `History` for one of the fold."""

    def follow(state: QueueState, line: bytes, offset: int) -> None:
        assert isinstance(state, History)
        state.follow(rule, line, offset)

    return follow


class History(QueueState):
    """A fold that tells what each batch has done."""

    def __init__(self, task_id: str | None = None) -> None:
        """`task_id`: tell only of this task."""
        super().__init__()
        self.is_silent = False
        """Whether batches are taken up without a word."""
        self._task_id = task_id
        self._events: list[Event] = []
        self._moves: list[tuple[Step, int, int]] = []
        self._purged: list[tuple[int, int]] = []
        self._batch: Batch
        self._epoch = 0
        self._has_begun = False

    @property
    def knows_task(self) -> bool:
        """Whether the task that is asked for was seen."""
        return self._seq() is not None

    def events_of(self, batch: Batch) -> list[Event]:
        """Take up one batch and return what it did."""
        self._batch = batch
        if batch.piece and not self._has_begun:
            self._tell_all("compacted", note="how tasks stood follows, what was before is gone")
        self._has_begun = True
        self.apply(batch)
        self._epoch = batch.commit.epoch
        events, self._events = self._events, []
        return events

    # -----------------------------------------------------------------------------------------------------------
    # What a record did

    @override
    def _move(self, step: Step, lo: int, hi: int) -> None:
        super()._move(step, lo, hi)
        self._moves.append((step, lo, hi))

    @override
    def _steered(self, verb: Verb, line: bytes) -> Iterator[tuple[int, int]]:
        for lo, hi in super()._steered(verb, line):
            if verb is Verb.PURGE:
                self._purged.append((lo, hi))
            yield lo, hi

    @override
    def _publish(self, lines: list[bytes], at: int, offset: int) -> tuple[int, int]:
        lo = len(self.index)
        line = lines[at]
        behind = super()._publish(lines, at, offset)
        if not self.is_silent:
            session, _, _ = split_range(orjson.loads(line[1:])["publish"])
            self._tell(offset, "published", lo, len(self.index), state=TaskState.READY, session=session)
        return behind

    def follow(self, rule: Rule, line: bytes, offset: int) -> None:
        """Obey a record, and tell what came of it."""
        if self.is_silent:
            rule(self, line, offset)
            self._moves.clear()
            return
        kind = line[3 : line.find(b'"', 3)].decode()
        if kind in _STEERED:
            self._follow_steering(rule, kind, line, offset)
            return
        match = _find_session(line)
        session = match[1].decode() if match else None
        pid = self._pid_of(session)  # asked before, because nobody knows the dead
        self._moves.clear()
        rule(self, line, offset)
        if kind == "kept":
            self._tell_kept(line, offset)
        elif kind in _UNHEARD:
            self._tell_unheard(kind, line, session, pid)
        for step, lo, hi in self._moves if kind != "kept" else ():
            self._tell_move(kind, step, line, offset, (lo, hi), session, pid)
        if kind in _VOID and not self._moves:
            place = self.index.locate(*split_range(_range_in(line)))
            if place is not None:
                self._tell(offset, "void", *place, session=session, pid=pid, note=_VOID[kind])

    def _follow_steering(self, rule: Rule, kind: str, line: bytes, offset: int) -> None:
        """Obey what somebody wished, and tell what came of it."""
        self._moves.clear()
        self._purged.clear()
        rule(self, line, offset)
        for step, lo, hi in self._moves:
            self._tell(offset, _STEERED[kind], lo, hi, state=STATES[step.after])
        for lo, hi in self._purged:
            self._tell(offset, _STEERED[kind], lo, hi)
        if kind in ("pause", "resume") and self._task_id is None and not self._batch.piece:
            name = orjson.loads(line[1:])[kind]
            self._tell_all(_STEERED[kind], note="the whole queue" if name is None else f"the name {name}")

    def _tell_move(
        self,
        kind: str,
        step: Step,
        line: bytes,
        offset: int,
        place: tuple[int, int],
        session: str | None,
        pid: int | None,
    ) -> None:
        before, after = STATES[step.before], STATES[step.after]
        event = _WORDS.get(kind)
        error = note = None
        if kind == "failed":
            error = _error_of(orjson.loads(line[1:])["error"])
        elif kind == "gone":
            cause = orjson.loads(line[1:]).get("cause", "its process has ended")
            if step in AFTER_CRASH.values():
                event, error = "crashed", {"type": CRASH, "message": cause, "traceback": ""}
            else:
                note = cause
        elif event is None:
            event = "due" if before is TaskState.SCHEDULED else kind
        self._tell(offset, event or kind, *place, state=after, session=session, pid=pid, error=error, note=note)

    def _tell_kept(self, line: bytes, offset: int) -> None:
        place = self.index.locate(*split_range(_range_in(line)))
        assert place is not None
        fields = orjson.loads(line[1:])
        wrong = [f"{fields[word]} {word}" for word in ("failures", "crashes") if word in fields]
        errors = fields.get("errors", [])
        at = fields.get("finished") or fields.get("started") or self._batch.commit.at
        note = ", ".join(wrong) or None
        error = _error_of(errors[-1]) if errors else None
        self._tell(offset, "kept", *place, at=at, state=fields["state"], error=error, note=note)

    def _tell_unheard(self, kind: str, line: bytes, session: str | None, pid: int | None) -> None:
        """Tell of records that concern no task."""
        if self._batch.piece or self._task_id is not None:
            return
        fields = orjson.loads(line[1:])
        if kind == "writer":
            if fields["writer"] != self._epoch:  # else he repeats himself, beside a checkpoint
                self._tell_all("writer", pid=fields["pid"], note=f"epoch {fields['writer']}")
        elif kind == "hello":
            self._tell_all("joined", session=session, pid=fields["pid"], note=fields["as"])
        elif kind == "barrier":
            self._tell_all("scheduler", session=session)
        elif kind == "gone":
            self._tell_all("left", session=session, pid=pid, note=fields.get("cause"))

    # -----------------------------------------------------------------------------------------------------------

    def _tell(self, offset: int, event: str, lo: int, hi: int, *, at: str | None = None, **more: Any) -> None:
        """Tell of the tasks lo..hi-1, or of the one among them that is asked for."""
        if self._task_id is not None:
            seq = self._seq()
            if seq is None or not lo <= seq < hi:
                return
            lo, hi = seq, seq + 1
        attempt = None
        if hi - lo == 1 and event in _ATTEMPTS:
            attempt = self.attempt_of(lo) + _ATTEMPTS[event]
        self._events.append(
            Event(
                at or self._times.at(offset),
                0 if self._batch.piece else self._batch.commit.number,
                event,
                str(self.range_of(lo, hi)) if self.index.is_range(lo, hi) else f"{self.id_of(lo)} ...",
                hi - lo,
                self.name_of(lo),
                attempt,
                **more,
            )
        )

    def _tell_all(self, event: str, **more: Any) -> None:
        if not self.is_silent:
            commit = self._batch.commit
            self._events.append(Event(commit.at, 0 if self._batch.piece else commit.number, event, **more))

    def _seq(self) -> int | None:
        return None if self._task_id is None else self.seq_of(self._task_id)

    def _pid_of(self, session: str | None) -> int | None:
        known = None if session is None else self.consumers.get(session) or self.publishers.get(session)
        return None if known is None else known.pid

    _RULES: ClassVar[dict[bytes, Rule]] = {kind: _telling(rule) for kind, rule in QueueState._RULES.items()}  # noqa: SLF001


_WORDS = {"assign": "assigned", "done": "done", "failed": "failed", "returned": "returned", "gone": "released"}
_VOID = {
    "assign": "not assigned: its consumer has gone, or not all of them were ready",
    **dict.fromkeys(("done", "failed", "returned"), "refused: not a task of this consumer any more"),
}
_UNHEARD = frozenset({"writer", "hello", "barrier", "gone"})
_STEERED = {
    "retry": "revived",
    "cancel": "cancelled",
    "purge": "purged",
    "pause": "paused",
    "resume": "resumed",
}
_ATTEMPTS = {"assigned": 0, "done": 0, "returned": 0, "released": 0, "failed": -1, "crashed": -1}
"""What to add to the number of the attempt under way, or of the next one, once the record was obeyed."""
_find_session = re.compile(rb'"(?:to|by|gone|hello|barrier)":"([a-z0-9]{12})"').search


def _error_of(fields: dict[str, Any]) -> dict[str, str]:
    return {key: str(fields.get(key, "")) for key in ("type", "message", "traceback")}


def _range_in(line: bytes) -> str:
    """Return the value of a record's first member."""
    return line.split(b'"', 4)[3].decode()


# ---------------------------------------------------------------------------------------------------------------


class HistoryReader:
    """Reads the events of a file, and then what is added to them, also when the file is compacted meanwhile."""

    def __init__(self, path: StrPath, task_id: str | None = None, *, filesystem: Filesystem = REAL) -> None:
        self._follower = Follower(path, partial(History, task_id), filesystem=filesystem)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self._follower.__exit__(*details)

    @property
    def knows_task(self) -> bool:
        """Whether the task that is asked for was seen."""
        return self._follower.state.knows_task

    def events(self) -> Iterator[Event]:
        """Yield what has happened since the last time, the oldest first. Raises QueueReplacedError."""
        for batch, is_news in self._follower.batches():
            history = self._follower.state
            history.is_silent = not is_news
            yield from history.events_of(batch)
