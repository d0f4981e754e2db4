"""What Queue.json says happened, task by task: a third reading of the log, which remembers what a fold forgets.

The fold of the queue keeps where each task stands. This one keeps how it got there: to whom it was handed, as which
attempt, and how each of those ended. It is written down apart from the queue's own code, from FORMAT.md, in
dictionaries, so that a mistake there is not repeated here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from zlib import crc32

import orjson

from tests.faults.history import Process

if TYPE_CHECKING:
    from actorq.store.log_reader import Batch

READY, RUNNING, DONE, DEAD = "ready", "running", "done", "dead"
FINISHED = (DONE, DEAD)


@dataclass(slots=True)
class Session:
    """A publisher or a consumer, from its hello to its end."""

    id: str
    role: str
    process: Process
    max_attempts: int = 0
    max_crashes: int = 0
    last_no: int = 0
    held: set[str] = field(default_factory=set)
    gone: str = ""
    """When, in the log's words, its death was recorded."""
    cause: str = ""


@dataclass(slots=True)
class HandOut:
    """A task was given to a consumer. `ended`: done, failed, returned or gone; empty while it runs."""

    session: Session
    no: int
    attempt: int
    ended: str = ""


@dataclass(slots=True)
class Row:
    """A task."""

    place: int
    key: str
    crc: int
    name: str
    state: str = READY
    failures: int = 0
    crashes: int = 0
    hand_outs: list[HandOut] = field(default_factory=list)


class Ledger:
    """Feed it every batch of the log, in order, through all the files that had its name."""

    def __init__(self) -> None:
        self.tasks: dict[str, Row] = {}
        self.sessions: dict[str, Session] = {}
        self.commit = 0
        self.contradictions: list[str] = []
        """What the log must never say."""
        self.open = 0
        """How many tasks are neither done nor dead."""
        self._scheduler = ""
        self._last_mentioned = -1
        self._at = ""

    def apply(self, batch: Batch) -> None:
        """Take one batch. What was there before, in an earlier file, is passed over."""
        if batch.piece or batch.commit.number <= self.commit:
            return
        if batch.commit.number != self.commit + 1:
            self.contradictions.append(f"hole: commit {batch.commit.number} follows commit {self.commit}")
        self.commit = batch.commit.number
        self._at = batch.commit.at
        for line in batch.lines.splitlines():
            if line.startswith(b',{"id":"'):
                self._task(line)
                continue
            fields: dict[str, Any] = orjson.loads(line[1:])
            kind = next(iter(fields))
            if kind in _STEPS:
                _STEPS[kind](self, fields)

    # -- records

    def _task(self, line: bytes) -> None:
        head, _, data = line.partition(b',"data":')
        fields = orjson.loads(head[1:] + b"}")
        payload = data[:-1]
        value = orjson.loads(payload)
        key = value.get("key", "") if isinstance(value, dict) else ""
        if fields["id"] in self.tasks:
            self.contradictions.append(f"published twice: {fields['id']}")
        self.open += 1
        self.tasks[fields["id"]] = Row(len(self.tasks), str(key), crc32(payload), fields["name"])

    def _hello(self, fields: dict[str, Any]) -> None:
        session = fields["hello"]
        process = Process(fields["pid"], fields["start"])
        self.sessions[session] = Session(
            session, fields["as"], process, fields.get("max_attempts", 0), fields.get("max_crashes", 0)
        )

    def _barrier(self, fields: dict[str, Any]) -> None:
        self._scheduler = fields["barrier"]

    def _assign(self, fields: dict[str, Any]) -> None:
        if fields["by"] != self._scheduler:
            self.contradictions.append(f"assigned behind a barrier: {fields}")
            return
        ids = ids_in(fields["assign"])
        for task in ids:
            self._mentioned(task)
        session = self.sessions.get(fields["to"])
        if session is None or session.gone or fields["no"] != session.last_no + 1:
            return  # void: its consumer is gone, or it was promised something else under this number
        session.last_no += 1
        rows = [self.tasks.get(task) for task in ids]
        for task, row in zip(ids, rows, strict=True):
            if row is None or row.state in FINISHED:
                state = "unknown" if row is None else row.state
                self.contradictions.append(f"assigned although it is {state}: {task} in commit {self.commit}")
        if any(row is None or row.state != READY for row in rows):
            return
        for task, row in zip(ids, rows, strict=True):
            assert row is not None
            row.state = RUNNING
            row.hand_outs.append(HandOut(session, fields["no"], row.failures + row.crashes + 1))
            session.held.add(task)

    def _mentioned(self, task: str) -> None:
        """Hold the first assignments of tasks against the order in which they were published."""
        row = self.tasks.get(task)
        if row is None or row.hand_outs or row.place <= self._last_mentioned:
            # Only what was never mentioned counts; everything up to the last mentioned must have been.
            return
        if row.place != self._last_mentioned + 1:
            missed = row.place - self._last_mentioned - 1
            self.contradictions.append(f"out of order: {task} was assigned before {missed} that were published earlier")
        self._last_mentioned = row.place

    def _done(self, fields: dict[str, Any]) -> None:
        for task, row in self._reported(fields, "done"):
            row.state = DONE
            self._end(task, row, "done")

    def _failed(self, fields: dict[str, Any]) -> None:
        for task, row in self._reported(fields, "failed"):
            row.failures += 1
            row.state = fields["then"]
            self._end(task, row, "failed")

    def _returned(self, fields: dict[str, Any]) -> None:
        for task, row in self._reported(fields, "returned"):
            row.state = READY
            self._end(task, row, "returned")

    def _reported(self, fields: dict[str, Any], kind: str) -> list[tuple[str, Row]]:
        """Return the tasks that the outcome is about, if its sender holds them under that number."""
        ids = ids_in(fields[kind])
        rows = [(task, self.tasks[task]) for task in ids if task in self.tasks]
        if len(rows) != len(ids):
            self.contradictions.append(f"reported and never published: {fields[kind]} in commit {self.commit}")
        for _, row in rows:
            last = row.hand_outs[-1] if row.hand_outs else None
            if row.state != RUNNING or last is None or (last.session.id, last.no) != (fields["by"], fields["no"]):
                return []
        return rows

    def _gone(self, fields: dict[str, Any]) -> None:
        session = self.sessions.get(fields["gone"])
        if session is None or session.gone:
            self.contradictions.append(f"gone twice, or never here: {fields}")
            return
        session.gone, session.cause = self._at, fields.get("cause", "")
        charged = fields.get("task")
        for task in list(session.held):
            row = self.tasks[task]
            row.state = READY
            if task == charged:
                row.crashes += 1
                row.state = DEAD if row.crashes >= session.max_crashes else READY
            self._end(task, row, "gone")

    def _end(self, task: str, row: Row, how: str) -> None:
        last = row.hand_outs[-1]
        last.ended = how
        self.open -= row.state in FINISHED
        last.session.held.discard(task)


_STEPS = {
    "hello": Ledger._hello,
    "barrier": Ledger._barrier,
    "assign": Ledger._assign,
    "done": Ledger._done,
    "failed": Ledger._failed,
    "returned": Ledger._returned,
    "gone": Ledger._gone,
}


def ids_in(text: str) -> list[str]:
    """Return the ids that a range names."""
    session, _, numbers = text.partition("-")
    first, _, last = numbers.partition("..")
    return [f"{session}-{number}" for number in range(int(first), int(last or first) + 1)]
