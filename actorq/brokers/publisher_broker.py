"""PublisherBroker: the one writer of Queue.json.

Publishes, registrations, assignments, outcomes and deaths arrive in its mailbox as numbered requests; whatever has
gathered there becomes one batch of the log. The next batch begins the moment the disk is free, so the slower the disk,
the larger the groups: nothing ever lingers on purpose.

    mailbox ──▶ Writing.accept, once per request ──▶ write ──▶ push assignments ──▶ fdatasync ──▶ acknowledge

`Writing` decides, without I/O, clock or randomness; `PublisherBroker` around it writes, syncs and sends. Nothing that
reaches the mailbox can forge a record: ids are parsed, names and texts are encoded here, and payload bytes are
spliced only after they were parsed as complete JSON values.
"""

from __future__ import annotations

import logging
import os
import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, override

from actorq.actors import Actor, Mailbox, Packet
from actorq.actors.linux import boot_id, process_start_time
from actorq.brokers.messages import (
    Acknowledged,
    Assign,
    Barrier,
    Committed,
    Event,
    EventOwner,
    Gap,
    Gone,
    Greeted,
    Hello,
    MalformedEventError,
    OutcomeKind,
    Publish,
    Push,
    Refused,
    RegistryStarted,
    Report,
    ToClient,
    WriterStarted,
)
from actorq.brokers.post import Post
from actorq.errors import CorruptQueueError, DiskFullError, PayloadError, SyncFailedError
from actorq.store import records
from actorq.store.locks import WriterLock
from actorq.store.log_reader import LogReader
from actorq.store.log_writer import LogWriter
from actorq.store.sessions import SessionTable
from actorq.tasks.ids import IdRange, check_session, parse_task_id
from actorq.tasks.payload import check_payloads
from actorq.tasks.task import check_name

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from actorq.store.log_reader import Batch

logger = logging.getLogger("actorq")

ME = EventOwner.PUBLISHER_BROKER

MAX_BATCH_BYTES = 1 << 20
"""A batch is closed at this size, so that its first requests do not wait for the last of a flood."""

CHECKPOINT_BYTES = 4 << 20
"""How much log may follow the last checkpoint of the sessions: what a restarted writer reads at most."""

LOCK_SECONDS = 60.0

SYNC_SECONDS = 0.05
"""With durability "process": what a power cut may take is at most so old."""

ROOM_SECONDS = 0.5
"""After a write for which there was no room: how long until what was not a publish is tried again."""


@dataclass(frozen=True, slots=True)
class SyncDue:
    """Something was acknowledged SYNC_SECONDS ago and is not on disk for certain."""


@dataclass(frozen=True, slots=True)
class RoomAgain:
    """There was no room ROOM_SECONDS ago; there may be now."""


@dataclass(slots=True)
class Group:
    """One group commit: what it writes, and what may be said once that is true."""

    lines: list[bytes] = field(default_factory=list)
    size: int = 0
    must_sync: bool = False
    """Something in it was promised to survive a power cut."""
    pushes: dict[str, tuple[list[list[object]], list[bytes]]] = field(default_factory=dict)
    """Per consumer: entries and task lines. They may go out as soon as the batch is written."""
    acknowledged: dict[str, int] = field(default_factory=dict)
    """Per session: the highest request. To be sent only once the batch is as durable as promised."""
    answers: list[tuple[str, ToClient]] = field(default_factory=list)
    """Gaps and refusals, which promise nothing."""
    greeted: list[list[object]] = field(default_factory=list)
    """New sessions, for the Registry: session, role, pid, start, boot."""

    def write(self, line: bytes) -> None:
        """Add a line (or several that belong together) to the batch."""
        self.lines.append(line)
        self.size += len(line)


class Writing:
    """What the writer knows, and what it makes of a request. Changes nothing but itself and the group at hand."""

    def __init__(self, sessions: SessionTable) -> None:
        self.sessions = sessions
        self.group = Group()
        self._told_gap: set[str] = set()

    def accept(self, message: object) -> None:
        """Take one request into the group, or answer it."""
        match message:
            case Publish():
                self._publish(message)
            case Report():
                self._report(message)
            case Assign():
                self._assign(message)
            case Hello():
                self._hello(message)
            case Gone():
                self._gone(message)
            case Barrier():
                self._barrier(message)
            case _:
                raise MalformedEventError(f"not a request to the writer: {message!r}")

    def take_group(self) -> Group:
        """Close the group and begin the next one."""
        group, self.group = self.group, Group()
        return group

    def _is_next(self, session: str, first: int, last: int) -> bool:
        """Go-back-N: take the next request only, answer an older one as done, report a gap (once)."""
        expected = self.sessions.expected(session)
        # 0 is for the hello alone, which is handled elsewhere: nobody else may speak before he is known.
        if first == expected != 0:
            self._told_gap.discard(session)
            return True
        if last < expected:
            self._acknowledge(session, last)
        elif session not in self._told_gap:
            # Told once: everything behind the gap is a gap as well, and the sender repeats all of it.
            self._told_gap.add(session)
            self.group.answers.append((session, Gap(session, expected)))
        return False

    def _acknowledge(self, session: str, number: int) -> None:
        if number > self.group.acknowledged.get(session, -1):
            self.group.acknowledged[session] = number

    def _publish(self, request: Publish) -> None:
        session, last = request.session, request.first + request.count - 1
        if not self._is_next(session, request.first, last):
            return
        payloads = request.body.split(b"\n")
        try:
            if len(payloads) != request.count:
                raise PayloadError(f"{request.count} payloads announced, {len(payloads)} sent")
            check_payloads(payloads)
            check_name(request.name)
        except PayloadError as error:
            refused = Refused(session, request.first, "payload", error.reason, error.index or 0, error.where)
            self.group.answers.append((session, refused))
            return
        self.group.write(records.publish_lines(IdRange(session, request.first, last), request.name, payloads))
        self.group.must_sync = True
        self.sessions.advance(session, last)
        self._acknowledge(session, last)

    def _report(self, request: Report) -> None:
        session, number = request.session, request.number
        if not self._is_next(session, number, number):
            return
        values = request.body.split(b"\n") if request.body else []
        check_payloads(values)
        self.group.write(outcome_lines(request, values))
        self.group.must_sync = True
        self.sessions.advance(session, number)
        self._acknowledge(session, number)

    def _assign(self, request: Assign) -> None:
        scheduler, number = request.session, request.number
        if scheduler != self.sessions.scheduler or not self._is_next(scheduler, number, number):
            return  # an incarnation from before the barrier, or a repetition
        if not request.entries:
            raise MalformedEventError("an assignment of nothing")
        self.group.write(
            b"".join(
                records.assign_line(IdRange.parse(tasks), check_session(consumer), ordinal(no), scheduler, number)
                for tasks, consumer, no, *_ in request.entries
            )
        )
        at = 0
        for tasks, consumer, no, failures, crashes, length in request.entries:
            entries, bodies = self.group.pushes.setdefault(consumer, ([], []))
            entries.append([tasks, no, failures, crashes, length])
            bodies.append(request.body[at : at + length])
            at += length
        self.sessions.advance(scheduler, number)
        self._acknowledge(scheduler, number)

    def _hello(self, request: Hello) -> None:
        if self.sessions.expected(request.session) == 0:
            self.group.write(self.sessions.greet(request))
            self.group.greeted.append([request.session, request.role, request.pid, request.start, request.boot])
            self._told_gap.discard(request.session)
        self._acknowledge(request.session, 0)

    def _barrier(self, request: Barrier) -> None:
        if self.sessions.scheduler != request.session:
            self.group.write(records.barrier_line(check_session(request.session)))
            self.sessions.set_scheduler(request.session)
        self._acknowledge(request.session, 0)

    def _gone(self, request: Gone) -> None:
        if self.sessions.expected(request.session) == 0:
            return  # told twice
        if request.task:
            parse_task_id(request.task)
        self.group.write(records.gone_line(request.session, request.cause, request.task or None))
        self.sessions.forget(request.session)
        self._told_gap.discard(request.session)


class PublisherBroker(Actor):
    """The actor around `Writing`: lock, log, sync, and the answers in the order that keeps the promise."""

    frames = True

    def __init__(self, path: Path, scheduler: Mailbox, router: Mailbox, registry: Mailbox, durability: str) -> None:
        self._path = path
        self._sync_each = durability == "power"
        self._scheduler = Post(self, scheduler, ME)
        self._router = Post(self, router, ME)
        self._registry = Post(self, registry, ME)
        self._note_is_due = False
        self._sync_is_due = False

    @override
    def on_start(self) -> None:
        self._lock = WriterLock(self._path)
        self._lock.acquire(timeout=LOCK_SECONDS)
        try:
            self._log = LogWriter.open(self._path, boot_id=boot_id(), pid=os.getpid())
        except SyncFailedError:
            if has_live_consumers(self._path):
                self._start_all_anew()
            raise
        if self._log.recovered is not None:
            logger.warning("queue recovered path=%s %s", self._path, self._log.recovered)
        self._writing = Writing(fold_sessions(self._log.tail()))
        self._announce()

    @override
    def receive_frames(self, frames: list[Packet]) -> None:
        for frame in frames:
            try:
                message = Event.decode(frame.data).message
                if isinstance(message, RegistryStarted):
                    self._tell_registry()
                else:
                    self._writing.accept(message)
            except (MalformedEventError, PayloadError, ValueError):
                # One bad frame must not stop the queue for everybody else; whoever sent it is never acknowledged.
                logger.exception("request dropped: it is malformed")
            if self._writing.group.size >= MAX_BATCH_BYTES:
                self._commit(self._writing.take_group())
        self._commit(self._writing.take_group())

    @override
    def before_wait(self) -> None:
        if self._note_is_due and not self._scheduler.is_backed_up:
            self._note_is_due = False
            position = self._log.position
            self._scheduler.send(Committed(position.generation, position.offset))

    @override
    def on_stop(self) -> None:
        self._log.close()
        self._lock.release()

    def _commit(self, group: Group) -> None:
        if group.lines:
            if self._log.bytes_since_checkpoint >= CHECKPOINT_BYTES:
                group.lines.insert(0, self._writing.sessions.checkpoint_line())
            try:
                self._log.write(group.lines)
            except DiskFullError:
                self._refuse(group)
                return
            except SyncFailedError:
                self._start_all_anew()
                raise
            # The log shows the assignments, so the consumers may begin: a power cut now would end them too.
            for consumer, (entries, bodies) in group.pushes.items():
                self._router.deliver(consumer, Push(entries, b"".join(bodies)))
            self._router.flush()
            if group.must_sync:
                self._sync()
            # From here a power loss keeps them (with durability "process": will keep them, in SYNC_SECONDS); only now
            # may anybody hear yes.
        for session, number in group.acknowledged.items():
            self._answer(session, Acknowledged(session, number))
        for session, answer in group.answers:
            self._answer(session, answer)
        self._router.flush()
        if group.greeted:
            self._registry.send(Greeted(group.greeted))
        if group.lines:
            self._note_is_due = True

    def _sync(self) -> None:
        if self._sync_each:
            self._sync_now()
        elif not self._sync_is_due:
            self._sync_is_due = True
            self.after(SYNC_SECONDS, SyncDue())

    def _sync_now(self) -> None:
        try:
            self._log.sync()
        except SyncFailedError:
            self._start_all_anew()
            raise

    def _start_all_anew(self) -> None:
        """End all processes of the queue: they die with the supervisor, this one too, and start again with it.

        What was not synced may be cut from the log: consumers that have registered, and assignments; but those have
        been pushed, and their tasks may run. So all consumers must end before a writer serves again.
        """
        logger.critical("the disk does not keep what was written: all processes of the queue start anew")
        os.kill(os.getppid(), signal.SIGKILL)

    @override
    def on_timer(self, message: object) -> None:
        match message:
            case SyncDue():
                self._sync_is_due = False
                self._sync_now()
            case RoomAgain():
                self._announce()

    def _announce(self) -> None:
        """Have everybody repeat what is not acknowledged, and the Registry each death that the log does not show."""
        self._tell_registry()
        self._router.send(WriterStarted(self._log.epoch, []))
        self._scheduler.send(WriterStarted(self._log.epoch, []))

    def _answer(self, session: str, answer: ToClient) -> None:
        if session == self._writing.sessions.scheduler:
            self._scheduler.send(answer)
        else:
            self._router.deliver(session, answer)

    def _refuse(self, group: Group) -> None:
        """The disk is full: nothing of the group is in the log. Publishers hear it, the others repeat later."""
        logger.error("disk full path=%s: %d bytes not written", self._path, group.size)
        self._writing = Writing(fold_sessions(self._log.tail()))
        sessions = self._writing.sessions
        for session, last in group.acknowledged.items():
            expected = sessions.expected(session)
            if sessions.is_publisher(session) and expected <= last:
                self._answer(session, Refused(session, expected, "disk_full", str(self._path), 0, "$"))
        self._router.flush()
        self.after(ROOM_SECONDS, RoomAgain())

    def _tell_registry(self) -> None:
        self._registry.send(WriterStarted(self._log.epoch, self._writing.sessions.roll()))


def outcome_lines(report: Report, values: list[bytes]) -> bytes:
    """Return the records of a report. Raises ValueError when anything in it is not what it should be."""
    carrying = sum(kind in (OutcomeKind.RESULT, OutcomeKind.FAILED) for kind, *_ in report.outcomes)
    if not report.outcomes or len(values) != carrying:
        raise MalformedEventError(f"{len(values)} values for {carrying} of {len(report.outcomes)} outcomes")
    spliced = iter(values)
    session, number = report.session, report.number
    lines = []
    for kind, tasks, no, then in report.outcomes:
        ordinal(no)
        match OutcomeKind(kind):
            case OutcomeKind.DONE:
                lines.append(records.done_line(IdRange.parse(tasks), no, session, number))
            case OutcomeKind.RESULT:
                parse_task_id(tasks)
                lines.append(records.done_result_lines([(tasks, next(spliced))], no, session, number))
            case OutcomeKind.FAILED:
                parse_task_id(tasks)
                if then not in ("ready", "dead"):
                    raise MalformedEventError(f"a failed task becomes ready or dead, not {then!r:.100}")
                lines.append(records.failed_line(tasks, no, session, number, then, next(spliced)))
            case OutcomeKind.RETURNED:
                lines.append(records.returned_line(IdRange.parse(tasks), no, session, number))
    return b"".join(lines)


def ordinal(value: object) -> int:
    """Return the value if it is a number from 1 on; anything else would not be a number in the log either."""
    if type(value) is int and value > 0:
        return value
    raise MalformedEventError(f"not an ordinal number: {value!r:.100}")


def has_live_consumers(path: Path) -> bool:
    """Tell whether a consumer that the log shows is alive; while the log still shows what the disk may not hold."""
    reader = LogReader(path)
    try:
        sessions = fold_sessions(reader.batches()).roll()
    except CorruptQueueError:
        return True  # who knows
    finally:
        reader.close()
    here = boot_id()
    return any(
        role == EventOwner.CONSUMER and boot == here and process_start_time(pid) == start
        for _, role, pid, start, boot in sessions
    )


def fold_sessions(batches: Iterable[Batch]) -> SessionTable:
    """Return the writer's table after the tail of the log."""
    table = SessionTable()
    for batch in batches:
        table.apply(batch.lines)
    return table
