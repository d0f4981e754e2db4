"""The state of the queue, as a fold over its log.

`QueueState` takes the batches of the file one by one and knows afterwards which tasks are ready, who has which, and who
is connected. Two processes that fold the same bytes know the same; nothing here looks at a clock, a file or a process.

Whole ranges are moved at once, by slices of columns. A million ready tasks cost 45 MB and less than a second; a range
of 200 tasks that is assigned and done costs as much Python as one task.

The rules, record by record, stand in the methods ``_publish`` to ``_counts`` at the end, in the order of a task's life.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_right
from datetime import datetime
from itertools import accumulate, count
from operator import add
from typing import TYPE_CHECKING, Any, ClassVar, override

import orjson

from actorq.errors import FoldError
from actorq.store import records
from actorq.store.clients import Assignment, ConsumerState, Session
from actorq.store.ready_lanes import ReadyLanes
from actorq.store.snapshot import snapshot_pieces
from actorq.store.task_index import TaskIndex
from actorq.tasks.ids import IdRange, split_range
from actorq.tasks.lifecycle import TaskEvent, TaskState, advance
from actorq.tasks.policy import after_crash
from actorq.tasks.steering import STEERED, Verb
from actorq.tasks.task import Failure, Task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from actorq.store.log_reader import Batch

    type Read = Callable[[int, int], bytes]
    """Bytes of the file: offset, length. Fewer come back only at the end of the file."""

__all__ = ["CRASH", "STATES", "Assignment", "ConsumerState", "QueueState", "Session"]

STATES = tuple(TaskState)
CRASH = "ConsumerDied"
"""The type of the Failure that a crash leaves."""
_SATURATED = 255


class QueueState:
    """What the log says so far. Feed it with `apply`; everything else only looks.

    `reserve` is the exception: it is the scheduler's own note and no part of the state.
    """

    def __init__(self, *, weighs: bool = False) -> None:
        """`weighs`: also add up how many bytes the lines of unfinished tasks take."""
        self._weighs = weighs
        self.pending_bytes = 0
        """Bytes of the lines of all tasks that are ready, scheduled or running; 0 unless it weighs."""
        self.position = 0
        """Where the last batch ended."""
        self._task_bytes = 0
        """Bytes of the lines of all tasks."""
        self._beside_tasks = 0
        """Bytes of everything else in the snapshot that the file begins with: results, errors, sessions."""
        self.commit = 0
        """Number of the last commit."""
        self.consumers: dict[str, ConsumerState] = {}
        """In order of registration."""
        self.publishers: dict[str, Session] = {}
        self.scheduler: str | None = None
        """The last barrier."""
        self.scheduler_request = 0
        self.removed: dict[str, int] = {}
        """Tasks done or cancelled that left with compaction, or were purged, by state. They are counted on."""
        self.paused: frozenset[str | None] = frozenset()
        """Names of which no task may be handed out; None stands for all."""
        self.purged = 0
        """How many tasks are here only because the file still has their lines."""
        self.index = TaskIndex()
        self._ready = ReadyLanes()
        # By task, with room for more at the end.
        self._state = bytearray()
        self._failures = bytearray()
        self._crashes = bytearray()
        self._assigned = array("Q")  # offset of the record that handed it out
        self._outcome = array("Q")  # offset of the record that finished it
        self._counts = [0] * len(STATES)
        self._troubles: dict[int, list[int]] = {}  # by task: offsets of the records of its failures and crashes
        self._times = _Times()
        self._is_piece = False

    def __len__(self) -> int:
        return len(self.index)

    @override
    def __repr__(self) -> str:
        states = ", ".join(f"{number} {state}" for state, number in self.counts().items() if number)
        return f"<QueueState at {self.position}: {states or 'empty'}; {len(self.consumers)} consumers>"

    # -----------------------------------------------------------------------------------------------------------
    # Following the log

    def apply(self, batch: Batch) -> None:
        """Take up one batch. Raises FoldError at a record that cannot be followed; the state is then of no use."""
        offset = batch.start
        lines = batch.lines.split(b"\n")
        end = len(lines) - 1
        self._is_piece = batch.piece
        self._times.note(offset, batch.commit.at)
        at = 0
        try:
            while at < end:
                line = lines[at]
                if line.startswith(_PUBLISH_LINE):
                    at, offset = self._publish(lines, at, offset)
                else:
                    self._RULES[line[3 : line.find(b'"', 3)]](self, line, offset)
                    at += 1
                    offset += len(line) + 1
            if lines[end]:
                raise ValueError("the line has no end")
        except KeyError as error:
            raise FoldError(offset, f"no rule or no member {error}") from error
        except (ValueError, TypeError, IndexError, OverflowError) as error:
            raise FoldError(offset, str(error)) from error
        self.position = batch.end
        if batch.piece:
            self._beside_tasks = batch.end - self._task_bytes
        else:
            self.commit = batch.commit.number

    # -----------------------------------------------------------------------------------------------------------
    # Looking

    def counts(self) -> dict[str, int]:
        """Return how many tasks are in each of the six states.

        Those done and cancelled count on when they have left; a dead one that is purged needs nobody's attention more.
        """
        return {str(state): number for state, number in zip(STATES, self._counts, strict=True)}

    @property
    def ready_count(self) -> int:
        """How many tasks are ready."""
        return self._counts[_READY]

    @property
    def pending_count(self) -> int:
        """How many tasks are not finished: ready, scheduled or running."""
        counts = self._counts
        return sum(counts) - sum(counts[code] for code in _FINISHED)

    def needed_bytes(self, keep_done: int | None) -> int:
        """Return about how long a compacted file would be, if it kept so many finished tasks.

        Exact as to the lines of those that are not finished, where these are weighed; of the others an average. Beside
        them there was something when the file was compacted last, and that is taken to be there still: so a file that
        was just compacted needs all of its length, whatever is in it.
        """
        finished = len(self) - self.pending_count
        dead = self._counts[CODES[TaskState.DEAD]] - self.removed.get(TaskState.DEAD, 0)
        kept = finished - self.purged
        if keep_done is not None:
            kept = min(kept, dead + keep_done)
        pending = self.pending_bytes if self._weighs else self._task_bytes * self.pending_count // max(1, len(self))
        return self._beside_tasks + pending + (self._task_bytes - pending) * kept // max(1, finished)

    @property
    def running_count(self) -> int:
        """How many tasks are handed to consumers."""
        return self._counts[_RUNNING]

    def waiting_names(self) -> dict[str, int]:
        """Return how many ready tasks each name has, without those that have none."""
        return {name: number for name, number in zip(self._ready.names, self._ready.waiting, strict=True) if number}

    def is_paused(self, name: str) -> bool:
        """Tell whether no task of this name may be handed out."""
        return None in self.paused or name in self.paused

    def pauses(self) -> list[str | None]:
        """Return what is paused: None first if it is the whole queue, then names in order."""
        names: list[str | None] = [*sorted(name for name in self.paused if name is not None)]
        return [None, *names] if None in self.paused else names

    @property
    def open_count(self) -> int:
        """How many ready tasks are of a name that is not paused."""
        return self._counts[_READY] - (self._ready.paused_count() if self.paused else 0)

    @property
    def is_held_back(self) -> bool:
        """Whether there is nothing left but tasks that are paused."""
        ready = self._counts[_READY]
        return 0 < ready == self.pending_count and not self.open_count

    def paused_names(self) -> list[str]:
        """Return the names of which tasks wait only because they are paused."""
        return self._ready.paused_names() if self.paused else []

    def last_request(self, session: str) -> int | None:
        """Return the highest request number of a publisher, consumer or scheduler, or None when it is not known."""
        known = self.publishers.get(session) or self.consumers.get(session)
        if known is not None:
            return known.last_request
        return self.scheduler_request if session == self.scheduler else None

    def next_ready_run(self, names: frozenset[str] | None, start: int = 0, *, limit: int) -> tuple[int, int] | None:
        """Return the first run ``lo, hi`` of at most ``limit`` ready tasks that a consumer of these names may have.

        They are side by side in the file too (see `span_of`), of one name and one publish. ``names`` None takes every
        name; what is paused, nobody may have. No search is done twice: each set of names has a cursor, which moves back
        when a task comes back.
        """
        return self._ready.next_run(names, start, limit, self.index.bounds, self.index.names)

    def reserve(self, lo: int, hi: int) -> None:
        """Pass over lo..hi-1 in `next_ready_run`: their assignment is under way. Undone when the log shows it void."""
        self._ready.hide(lo, hi)

    def unreserve(self, lo: int, hi: int) -> None:
        """Take back a `reserve`, for whatever is still ready."""
        index = self.index
        for group, begin, end in index.groups_in(lo, hi):
            name = index.names[group]
            for seq in range(begin, end):
                if self._state[seq] == _READY:
                    self._ready.show(name, seq, seq + 1)

    def name_of(self, seq: int) -> str:
        """Return the name of a task."""
        return self._ready.names[self.index.names[self.index.group_of(seq)]]

    def state_of(self, seq: int) -> TaskState:
        """Return the state of one task."""
        return STATES[self._state[seq]]

    def attempt_of(self, seq: int) -> int:
        """Return the number of the attempt under way, or of the next one."""
        return self._failures[seq] + self._crashes[seq] + 1

    def failures_of(self, seq: int) -> int:
        """Return how often the handler raised."""
        return self._failures[seq]

    def crashes_of(self, seq: int) -> int:
        """Return how often the handler took its process with it."""
        return self._crashes[seq]

    def attempts_in(self, lo: int, hi: int) -> list[int] | None:
        """Return the attempt numbers of lo..hi-1, or None when it is the first attempt of them all."""
        failures, crashes = self._failures[lo:hi], self._crashes[lo:hi]
        if not (failures.strip(b"\0") or crashes.strip(b"\0")):
            return None
        return [1 + failed + crashed for failed, crashed in zip(failures, crashes, strict=True)]

    def places_in(self, state: TaskState) -> Iterator[int]:
        """Yield the place of each task in this state, in publish order."""
        code, end = CODES[state], len(self.index)
        seq = self._state.find(code, 0, end)
        while seq >= 0:
            yield seq
            seq = self._state.find(code, seq + 1, end)

    def places(self, states: Iterable[TaskState], name: str | None = None) -> Iterator[int]:
        """Yield the place of each task in one of these states, of this name if one is given, in publish order."""
        wanted = bytearray(256)
        for state in states:
            wanted[CODES[state]] = 1
        for group, lo, hi in self.index.groups_in(0, len(self.index)):
            if name is None or self._ready.names[self.index.names[group]] == name:
                found = self._state[lo:hi].translate(wanted)
                at = found.find(1)
                while at >= 0:
                    yield lo + at
                    at = found.find(1, at + 1)

    def id_of(self, seq: int) -> str:
        """Return the id of a task."""
        return self.index.id_of(seq)

    def range_of(self, lo: int, hi: int) -> IdRange:
        """Return the ids of lo..hi-1, a run or an assignment."""
        return self.index.range_of(lo, hi)

    def seq_of(self, task_id: str) -> int | None:
        """Return the place of a task, or None when it is not here. Raises ValueError when the text is no id."""
        seq = self.index.seq_of(task_id)
        return None if seq is None or self._state[seq] == _PURGED else seq

    def is_purged(self, seq: int) -> bool:
        """Tell whether this place is that of a task which nobody is to see again."""
        return self._state[seq] == _PURGED

    def runs_of(self, states: Iterable[TaskState], ids: IdRange) -> list[tuple[int, int]]:
        """Return the places ``lo, hi`` of those of the tasks that are in one of these states, each run of one state."""
        patterns = [_RUNS[CODES[state]] for state in states]
        return [
            match.span()
            for lo, hi in self.index.parts_of(ids)
            for pattern in patterns
            for match in pattern.finditer(self._state, lo, hi)
        ]

    def present(self, ids: IdRange) -> list[tuple[int, int]]:
        """Return the places ``lo, hi`` of those of the tasks that are here, in the order of their numbers."""
        return [
            match.span() for lo, hi in self.index.parts_of(ids) for match in _NOT_PURGED.finditer(self._state, lo, hi)
        ]

    def span_of(self, lo: int, hi: int) -> tuple[int, int]:
        """Return offset and length in the file of the lines of lo..hi-1.

        A run is one piece of task lines. An assignment may, after a compaction, have other lines in between.
        """
        return self.index.span_of(lo, hi)

    def task(self, seq: int, read: Read) -> Task:
        """Return all that the queue knows of a task, reading its lines."""
        state = STATES[self._state[seq]]
        offset = self.index.offsets[seq]
        line = _record_at(read, offset, (_TASK_LINE,))
        is_begun = state in (TaskState.RUNNING, TaskState.DONE)
        result = self.result_of(seq, read) if state is TaskState.DONE else None
        return Task(
            id=line["id"],
            name=line["name"],
            data=line["data"],
            state=state,
            attempts=self._failures[seq] + self._crashes[seq] + is_begun,
            errors=self.errors_of(seq, read),
            result=None if result is None else orjson.loads(result),
            published_at=_moment(self._times.at(offset)),
            started_at=_moment(self.started_at(seq)),
            finished_at=_moment(self.finished_at(seq)),
        )

    def result_of(self, seq: int, read: Read) -> bytes | None:
        """Return the result of a task that is done, as JSON, or None when it was recorded without one."""
        return records.spliced_part(_line_at(read, self._outcome[seq], _RESULT_LINES), b"result")

    def errors_of(self, seq: int, read: Read) -> tuple[Failure, ...]:
        """Return the failures and crashes of a task, oldest first."""
        return tuple(
            Failure(each["type"], each["message"], each["traceback"], datetime.fromisoformat(each["at"]))
            for each in self.troubles_of(seq, read)
        )

    def troubles_of(self, seq: int, read: Read) -> list[dict[str, str]]:
        """Return the failures and crashes of a task as the file tells them: type, message, traceback, at."""
        troubles: list[dict[str, str]] = []
        for offset in self._troubles.get(seq, ()):
            fields = _record_at(read, offset, _TROUBLE_LINES)
            at = self._times.at(offset)
            if "gone" in fields:
                troubles.append(_trouble({"type": CRASH, "message": fields.get("cause", "")}, at))
            elif "failed" in fields:
                troubles.append(_trouble(fields["error"], at))
            else:
                troubles += fields["errors"]
        return troubles

    def troubled(self) -> Iterable[int]:
        """Return the places of the tasks that failed or crashed at least once."""
        return self._troubles.keys()

    def published_at(self, seq: int) -> str:
        """Return when a task was published."""
        return self._times.at(self.index.offsets[seq])

    def started_at(self, seq: int) -> str | None:
        """Return when a task was last handed to a consumer, or None while it waits."""
        has_started = self._state[seq] not in _WAITING and self._assigned[seq]
        return self._times.at(self._assigned[seq]) if has_started else None

    def finished_at(self, seq: int) -> str | None:
        """Return when a task was finished: done, dead or cancelled."""
        is_finished = self._state[seq] in _FINISHED and self._outcome[seq]
        return self._times.at(self._outcome[seq]) if is_finished else None

    def outcome_offset(self, seq: int) -> int:
        """Return where the record that finished the task begins: finished tasks sort by it."""
        return self._outcome[seq]

    def snapshot_pieces(self, read: Read, keep_done: int | None) -> Iterator[bytes]:
        """Yield the lines of a new generation, piece by piece; see `snapshot`."""
        return snapshot_pieces(self, read, keep_done)

    # -----------------------------------------------------------------------------------------------------------
    # The rules

    def _publish(self, lines: list[bytes], at: int, offset: int) -> tuple[int, int]:
        """Tasks become ready. Returns which line comes behind them, and its offset."""
        line = lines[at]
        head = orjson.loads(line[1:])
        session, first, last = split_range(head["publish"])
        number = last - first + 1
        at += 1
        end = at + number
        if not (end < len(lines) and lines[at].startswith(_TASK_LINE) and lines[end - 1].startswith(_TASK_LINE)):
            raise ValueError(f"{number} task lines should follow")
        if "at" in head:
            self._times.note(offset, head["at"])
        name = self._ready.number_of(head["name"])
        offset += len(line) + 1
        if number == 1:
            offsets = [offset]
            offset += len(lines[at]) + 1
        else:  # where each line begins, and where the last one ends: the lengths so far, and one line feed each
            offsets = list(map(add, accumulate(map(len, lines[at:end]), initial=offset), count()))
            offset = offsets.pop()
        self.index.add(session, first, offsets, offset, name)
        self._task_bytes += offset - offsets[0]
        if self._weighs:
            self.pending_bytes += offset - offsets[0]
        self._ready.add(name, number)
        if len(self.index.offsets) > len(self._state):
            self._grow()
        self._counts[_READY] += number
        if not self._is_piece:
            known = self.publishers.get(session) or self.consumers.get(session)
            if known is not None:
                known.last_request = last
        return end, offset

    def _grow(self) -> None:
        """Make room in the columns for more tasks than there are: ready, never failed, never handed out are all 0."""
        needed = len(self.index)
        room = needed - len(self._state) + needed // 8 + _ROOM
        fresh = bytes(room)
        self._state += fresh
        self._failures += fresh
        self._crashes += fresh
        zeros = bytes(8 * room)
        self._assigned.frombytes(zeros)
        self._outcome.frombytes(zeros)

    def _hello(self, line: bytes, _offset: int) -> None:
        """A session is known from here. One that is known already stays as it is."""
        fields = orjson.loads(line[1:])
        hello = records.hello_of(fields, fields["hello"])
        request = fields.get("n", 0)
        if hello.role == records.PUBLISHER:
            session = Session(hello.session, hello.pid, hello.start, hello.boot, request)
            self.publishers.setdefault(hello.session, session)
        else:
            consumer = ConsumerState(
                hello.session,
                hello.pid,
                hello.start,
                hello.boot,
                None if hello.names is None else frozenset(hello.names),
                hello.max_attempts,
                hello.max_crashes,
                request,
                fields.get("no", 0),
            )
            self.consumers.setdefault(hello.session, consumer)

    def _barrier(self, line: bytes, _offset: int) -> None:
        """A scheduler begins."""
        self.scheduler = orjson.loads(line[1:])["barrier"]
        self.scheduler_request = 0

    def _assign(self, line: bytes, offset: int) -> None:
        """Ready tasks are handed to a consumer, or the record is void: then it only counts."""
        fields = orjson.loads(line[1:])
        if not self._is_piece:
            self._note_request(fields)
        place = self.index.locate(*split_range(fields["assign"]))
        consumer = self.consumers.get(fields["to"])
        no = fields["no"]
        is_next = consumer is not None and (no == consumer.last_no + 1 or self._is_piece)
        if consumer is None or not is_next or place is None or not self._are(_READY, *place):
            if consumer is not None and is_next:
                consumer.last_no = no
            if place is not None:
                self.unreserve(*place)
            return
        lo, hi = place
        known = consumer.assignments.get(no)
        if known is None:
            consumer.assignments[no] = Assignment(lo, hi)
        else:  # a snapshot writes one line for each part that is left
            known.lo, known.hi = min(known.lo, lo), max(known.hi, hi)
            known.held.append((lo, hi))
            known.left += hi - lo
        if self._is_piece:
            self._times.note(offset, fields["at"])
        else:
            consumer.last_no = no
        consumer.outstanding += hi - lo
        self._move(_ASSIGN, lo, hi)
        _fill(self._assigned, lo, hi, offset)

    def _done(self, line: bytes, offset: int) -> None:
        """A consumer finished tasks. Ignored unless it still has them."""
        fields = records.head_of(line, b"result")
        place = self._take_from(fields, fields["done"])
        if place is not None:
            self._move(_COMPLETE, *place)
            _fill(self._outcome, *place, offset)

    def _failed(self, line: bytes, offset: int) -> None:
        """A handler raised. Ignored unless the consumer still has the task."""
        fields = records.head_of(line, b"error")
        place = self._take_from(fields, fields["failed"])
        if place is None:
            return
        seq, end = place
        if end - seq != 1:
            raise ValueError("tasks fail one by one")
        self._move(FAIL[fields["then"]], seq, end)
        self._failures[seq] = min(self._failures[seq] + 1, _SATURATED)
        self._troubles.setdefault(seq, []).append(offset)
        self._outcome[seq] = offset

    def _returned(self, line: bytes, _offset: int) -> None:
        """A consumer hands tasks back that it has not begun."""
        fields = orjson.loads(line[1:])
        place = self._take_from(fields, fields["returned"])
        if place is not None:
            self._move(_RELEASE, *place)

    def _gone(self, line: bytes, offset: int) -> None:
        """A process is dead: its session is forgotten, its tasks are ready again, and one may be charged."""
        fields = orjson.loads(line[1:])
        self.publishers.pop(fields["gone"], None)
        consumer = self.consumers.pop(fields["gone"], None)
        if consumer is None:
            return
        charged = self.index.seq_of(fields["task"]) if "task" in fields else None
        for assignment in consumer.assignments.values():
            if charged is not None and assignment.release(charged, charged + 1):
                self._crash(charged, offset, consumer.max_crashes)
            for lo, hi in assignment.held:
                self._move(_RELEASE, lo, hi)

    def _crash(self, seq: int, offset: int, max_crashes: int) -> None:
        crashes = self._crashes[seq] = min(self._crashes[seq] + 1, _SATURATED)
        self._troubles.setdefault(seq, []).append(offset)
        self._outcome[seq] = offset
        self._move(AFTER_CRASH[after_crash(crashes, max_crashes)], seq, seq + 1)

    def _retry(self, line: bytes, _offset: int) -> None:
        """Those of the tasks that are dead are ready, as if they had never been tried."""
        for lo, hi in self._steered(Verb.RETRY, line):
            self._move(_REVIVE, lo, hi)
            self._failures[lo:hi] = self._crashes[lo:hi] = bytes(hi - lo)

    def _cancel(self, line: bytes, offset: int) -> None:
        """Those of the tasks that wait will never run."""
        for lo, hi in self._steered(Verb.CANCEL, line):
            self._move(_CANCEL[self._state[lo]], lo, hi)
            _fill(self._assigned, lo, hi, 0)
            _fill(self._outcome, lo, hi, offset)

    def _purge(self, line: bytes, _offset: int) -> None:
        """Those of the tasks that are finished are forgotten."""
        for lo, hi in self._steered(Verb.PURGE, line):
            state, number = STATES[self._state[lo]], hi - lo
            if state is TaskState.DEAD:
                self._counts[CODES[state]] -= number
            else:
                self.removed[str(state)] = self.removed.get(state, 0) + number
            self._state[lo:hi] = bytes([_PURGED]) * number
            self.purged += number
            for seq in range(lo, hi) if self._troubles else ():
                self._troubles.pop(seq, None)

    def _steered(self, verb: Verb, line: bytes) -> Iterator[tuple[int, int]]:
        """Yield the places of those of the tasks that such a record changes; named twice, a task changes once."""
        fields = orjson.loads(line[1:])
        self._note_request(fields)
        for ids in fields[verb]:
            yield from self.runs_of(STEERED[verb], IdRange(*split_range(ids)))

    def _pause(self, line: bytes, _offset: int) -> None:
        """No task of this name is handed out from here on."""
        fields = orjson.loads(line[1:])
        self._note_request(fields)
        self._set_paused(self.paused | {fields["pause"]})

    def _resume(self, line: bytes, _offset: int) -> None:
        """The pause of this name, or that of the whole queue, is over."""
        fields = orjson.loads(line[1:])
        self._note_request(fields)
        self._set_paused(self.paused - {fields["resume"]})

    def _set_paused(self, names: frozenset[str | None]) -> None:
        self.paused = names
        self._ready.pause(names)

    def _note_request(self, fields: dict[str, Any]) -> None:
        if self.scheduler is not None and fields.get("by") == self.scheduler:
            self.scheduler_request = max(self.scheduler_request, fields["req"])

    def _sessions(self, line: bytes, _offset: int) -> None:
        """The writer's own table. In a snapshot it stands for the barrier, elsewhere it says nothing new."""
        if self._is_piece:
            fields = orjson.loads(line[1:])
            self.scheduler, self.scheduler_request = fields["barrier"], fields["barrier_req"]

    def _kept(self, line: bytes, offset: int) -> None:
        """In a snapshot: tasks are something else than plain ready."""
        fields = records.head_of(line, b"result")
        place = self.index.locate(*split_range(fields["kept"]))
        if place is None or not self._are(_READY, *place):
            raise ValueError("tasks are kept once, behind their lines")
        lo, hi = place
        state = TaskState(fields["state"])
        if state is not TaskState.READY:
            self._move(Step(_READY, CODES[state]), lo, hi)
        if "finished" in fields:
            self._times.note(offset, fields["finished"])
            _fill(self._outcome, lo, hi, offset)
        if "started" in fields:
            # One byte further stands for a second time in the same line.
            self._times.note(offset + 1, fields["started"])
            _fill(self._assigned, lo, hi, offset + 1)
        self._failures[lo:hi] = bytes([fields.get("failures", 0)]) * (hi - lo)
        self._crashes[lo:hi] = bytes([fields.get("crashes", 0)]) * (hi - lo)
        if "errors" in fields:
            for seq in range(lo, hi):
                self._troubles[seq] = [offset]

    def _removed(self, line: bytes, _offset: int) -> None:
        """In a snapshot: how many finished tasks are not in it."""
        for state, number in orjson.loads(line[1:])["counts"].items():
            self.removed[state] = self.removed.get(state, 0) + number
            self._counts[CODES[TaskState(state)]] += number

    def _writer(self, line: bytes, _offset: int) -> None:
        """Somebody took the writer's lock: says nothing about tasks."""

    def _take_from(self, fields: dict[str, Any], ids: str) -> tuple[int, int] | None:
        """Take tasks off the consumer that reports on them; None when it has them no more, and its word is void."""
        consumer = self.consumers.get(fields["by"])
        if consumer is None:
            return None
        consumer.last_request = max(consumer.last_request, fields["req"])
        no = fields["no"]
        assignment = consumer.assignments.get(no)
        place = self.index.locate(*split_range(ids))
        if assignment is None or place is None or not assignment.release(*place):
            return None
        lo, hi = place
        consumer.outstanding -= hi - lo
        if not assignment.left:
            del consumer.assignments[no]
        return place

    def _are(self, state: int, lo: int, hi: int) -> bool:
        return self._state[lo:hi] == _FILLS[state] * (hi - lo)

    def _move(self, step: Step, lo: int, hi: int) -> None:
        """Move tasks that are all in the state before the step; the one place where states change."""
        number = hi - lo
        self._state[lo:hi] = step.fill * number
        self._counts[step.before] -= number
        self._counts[step.after] += number
        if self._weighs and step.ends_or_revives:
            size = self.index.bytes_of(lo, hi)
            self.pending_bytes += size if step.before in _FINISHED else -size
        if step.before == _READY:
            change = self._ready.take
        elif step.after == _READY:
            change = self._ready.give_back
        else:
            return
        bounds, names = self.index.bounds, self.index.names
        group = bisect_right(bounds, lo) - 1
        while hi > (end := bounds[group + 1]):
            change(names[group], lo, end)
            lo = end
            group += 1
        change(names[group], lo, hi)

    _RULES: ClassVar[dict[bytes, Callable[[QueueState, bytes, int], None]]] = {
        b"hello": _hello,
        b"barrier": _barrier,
        b"assign": _assign,
        b"done": _done,
        b"failed": _failed,
        b"returned": _returned,
        b"gone": _gone,
        b"writer": _writer,
        b"retry": _retry,
        b"cancel": _cancel,
        b"purge": _purge,
        b"pause": _pause,
        b"resume": _resume,
        b"sessions": _sessions,
        b"kept": _kept,
        b"counts": _removed,
    }
    """By the record's first member; `publish` is apart, it has more than one line."""


class _Times:
    """When the bytes of the file were written: ascending offsets, each with the time that holds from there on."""

    def __init__(self) -> None:
        self._offsets = array("Q")
        self._texts = bytearray()
        self._last = ""

    def note(self, offset: int, at: str) -> None:
        if at != self._last:
            text = at.encode()
            if len(text) != _TIME_WIDTH:
                raise ValueError(f"{at!r} is not a time")
            self._offsets.append(offset)
            self._texts += text
            self._last = at

    def at(self, offset: int) -> str:
        row = (bisect_right(self._offsets, offset) - 1) * _TIME_WIDTH
        return self._texts[row : row + _TIME_WIDTH].decode()


_TIME_WIDTH = len("2026-11-23T18:05:01.123Z")
_TASK_LINE = records.TASK_LINE
_PUBLISH_LINE = b',{"publish":'
_RESULT_LINES = (b',{"done":', b',{"kept":')
_TROUBLE_LINES = (b',{"failed":', b',{"gone":', b',{"kept":')
_ROOM = 1024


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _trouble(error: dict[str, Any], at: str) -> dict[str, str]:
    # The error came from a consumer: only the members that we know, only as text.
    return {key: str(error.get(key, "")) for key in ("type", "message", "traceback")} | {"at": at}


def _record_at(read: Read, offset: int, beginnings: tuple[bytes, ...]) -> dict[str, Any]:
    """Return the record whose line begins there; see `_line_at`."""
    try:
        record: dict[str, Any] = orjson.loads(_line_at(read, offset, beginnings)[1:])
    except orjson.JSONDecodeError as error:
        raise FoldError(offset, f"{_NOT_AS_FOLDED}: {error}") from error
    return record


def _line_at(read: Read, offset: int, beginnings: tuple[bytes, ...]) -> bytes:
    """Return the line that begins there, without its end.

    Raises FoldError unless it has one of these beginnings still. After a failed sync the file may not say any more what
    was folded of it: the bytes have left the cache, and never reached the disk.
    """
    length = 512
    while True:
        chunk = read(offset, length)
        end = chunk.find(b"\n")
        if end >= 0:
            break
        if len(chunk) < length:
            raise FoldError(offset, f"{_NOT_AS_FOLDED}: the line has no end")
        length *= 8
    line = chunk[:end]
    if not (line.startswith(beginnings) and line.endswith(b"}")):
        raise FoldError(offset, _NOT_AS_FOLDED)
    return line


_NOT_AS_FOLDED = "it is not there any more, or not as it was"


def _fill(column: array[int], lo: int, hi: int, value: int) -> None:
    if hi - lo == 1:
        column[lo] = value
    else:
        column[lo:hi] = array("Q", [value]) * (hi - lo)


# ---------------------------------------------------------------------------------------------------------------
# The table of the life cycle, as bytes


class Step:
    """A change of state for many at once."""

    __slots__ = ("after", "before", "ends_or_revives", "fill")

    def __init__(self, before: int, after: int) -> None:
        self.before = before
        self.after = after
        self.fill = _FILLS[after]
        self.ends_or_revives = (before in _FINISHED) is not (after in _FINISHED)


def _step(before: TaskState, event: TaskEvent) -> Step:
    return Step(CODES[before], CODES[advance(before, event)])


CODES = {state: code for code, state in enumerate(STATES)}
_FILLS = [bytes([code]) for code in range(len(STATES))]
_READY = CODES[TaskState.READY]
_RUNNING = CODES[TaskState.RUNNING]
_FINISHED = frozenset(CODES[state] for state in (TaskState.DONE, TaskState.DEAD, TaskState.CANCELLED))
_WAITING = frozenset(CODES[state] for state in (TaskState.READY, TaskState.SCHEDULED))
_ASSIGN = _step(TaskState.READY, TaskEvent.ASSIGN)
_COMPLETE = _step(TaskState.RUNNING, TaskEvent.COMPLETE)
_RELEASE = _step(TaskState.RUNNING, TaskEvent.RELEASE)
_REVIVE = _step(TaskState.DEAD, TaskEvent.REVIVE)
_CANCEL = {CODES[state]: _step(state, TaskEvent.CANCEL) for state in STEERED[Verb.CANCEL]}
_PURGED = len(STATES)
"""In the column of states: a task that is not in the queue any more, and whose place in the file is."""
_RUNS = [re.compile(b"[\\x%02x]+" % code) for code in range(len(STATES))]
_NOT_PURGED = re.compile(b"[^\\x%02x]+" % _PURGED)
FAIL = {
    "ready": _step(TaskState.RUNNING, TaskEvent.RETRY),
    "dead": _step(TaskState.RUNNING, TaskEvent.BURY),
}
AFTER_CRASH = {event: _step(TaskState.RUNNING, event) for event in (TaskEvent.RELEASE, TaskEvent.BURY)}
