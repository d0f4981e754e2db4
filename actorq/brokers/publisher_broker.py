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
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, override

from actorq import failpoints
from actorq.actors.actor import Actor
from actorq.actors.linux import (
    boot_id,
    keep_freed_memory,
    process_start_time,
    raise_fd_limit,
)
from actorq.brokers.backlog import Backlog, Limits
from actorq.brokers.channels import Channels
from actorq.brokers.messages import (
    Acknowledged,
    Assign,
    Attach,
    Barrier,
    Change,
    Committed,
    Compacted,
    Confirm,
    EventOwner,
    Forgotten,
    Gap,
    Gone,
    Greeted,
    Hello,
    Lend,
    MalformedEventError,
    OutcomeKind,
    Pending,
    Publish,
    Push,
    Refused,
    RegistryStarted,
    Report,
    Sated,
    Switched,
    ToClient,
    WriterStarted,
    encode,
)
from actorq.brokers.post import ENTRY_BYTES, KEPT_MEMORY_BYTES, MAX_FRAME_BYTES, Post, messages_in
from actorq.brokers.trees import end_other_trees, roll_of
from actorq.errors import (
    CompactionError,
    CorruptQueueError,
    DiskFullError,
    HostDeposedError,
    PayloadError,
    QueueLockedError,
    QueueReplacedError,
    SyncFailedError,
    UnsupportedFormatError,
)
from actorq.store import records
from actorq.store.failed_sync import read_mark, sign_mark
from actorq.store.filesystem import REAL
from actorq.store.locks import FileIdentity, LastingWriterLock, host_identity
from actorq.store.log_reader import Position, require_queue
from actorq.store.log_writer import LogWriter
from actorq.store.new_file import sweep
from actorq.store.sessions import REFUSED, SessionTable
from actorq.store.switch import Offer, switch
from actorq.tasks.ids import IdRange, check_session, parse_task_id
from actorq.tasks.payload import check_payloads
from actorq.tasks.steering import Verb
from actorq.tasks.task import check_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from actorq.actors.mailbox import Mailbox
    from actorq.actors.packets import Packet
    from actorq.store.log_reader import Batch

logger = logging.getLogger("actorq")

ME = EventOwner.PUBLISHER_BROKER

MAX_BATCH_BYTES = 1 << 20
"""A batch is closed at this size, so that its first requests do not wait for the last of a flood."""

CHECKPOINT_BYTES = 4 << 20
"""How much log may follow the last checkpoint of the sessions: what a restarted writer reads at most."""

NOTE_BYTES = 64 << 10
"""How much of what does not concern the scheduler may be written before it is told.

200 single publishes are a millisecond or two of work for it, which the next publish may have to wait for. Told of a
quarter of that, it takes longer for each and gets in the way more often.
"""

LOCK_SLICE_SECONDS = 0.5

LOCK_SLICES = 120
"""How often to try for the writer's lock so long: a minute."""

SYNC_SECONDS = 0.05
"""With durability "process": what a power cut may take is at most so old."""

ROOM_SECONDS = 0.5
"""After a write for which there was no room: how long until what was not a publish is tried again."""

BACK_TO_READY = frozenset({OutcomeKind.FAILED, OutcomeKind.RETURNED})
"""After these outcomes a task may be ready again."""

RESERVE_BYTES = 256 << 10
"""Room in the file that publishes leave free: on a full disk the outcomes of what runs still find it."""


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
    requests: list[Request] = field(default_factory=list)
    """What was taken into it, for another try without some of them."""
    keep: int = 0
    """How much of the reserve must be left behind it; see `keep_behind`."""
    is_news: bool = False
    """The scheduler has something to do because of it, as of all but tasks that are handed out or nobody can take.

    And but for assignments: those are acknowledged to it, and whatever it hears, it reads on first.
    """

    def take(self, request: Request) -> None:
        """Note that a request is part of it."""
        self.requests.append(request)
        self.keep = max(self.keep, keep_behind(request))
        if not isinstance(request, Publish | Assign):
            self.is_news = True

    def write(self, line: bytes) -> None:
        """Add a line (or several that belong together) to the batch."""
        self.lines.append(line)
        self.size += len(line)


class Idle(NamedTuple):
    """An idle consumer that the scheduler has lent: the number of its next assignment, and which names it takes."""

    consumer: str
    no: int
    names: frozenset[str] | None


type Request = Publish | Report | Assign | Change | Hello | Gone | Barrier


def keep_behind(request: Request) -> int:
    """Return how much of the reserve a record of this request may not use.

    What is finished, or has died, must be recorded though the disk be full; what is new can wait.
    """
    match request:
        case Publish() | Hello(role=EventOwner.PUBLISHER):
            return RESERVE_BYTES
        case Assign() | Change():
            return RESERVE_BYTES // 2
        case _:
            return 0


class Writing:
    """What the writer knows, and what it makes of a request. Changes nothing but itself and the group at hand."""

    def __init__(
        self,
        sessions: SessionTable,
        position: Position = Position(1, 0),  # noqa: B008  # a tuple
        backlog: Backlog | None = None,
        path: str = "",
    ) -> None:
        self.sessions = sessions
        self.position = position
        """Where the log ends, without the group at hand."""
        self.group = Group()
        self.generations = range(position.generation, position.generation + 1)
        """Of the files that this writer has had open; they say the same, see `Assign`."""
        self._backlog = backlog
        self._path = path
        self._told_gap: set[str] = set()
        self._lent: list[Idle] = []
        """Idle consumers for whom nothing is ready as far as the log goes, the group at hand included."""
        self._is_sated = False
        """Nobody could be given one more task, as far as the log goes."""
        self._news = position
        """Where the last commit ended that was news for the scheduler."""
        self._held: list[Publish] = []
        """Publishes that came before it was known how many there may be."""

    def accept(self, message: object) -> None:
        """Take one request into the group, or answer it."""
        match message:
            case Publish():
                self._publish(message)
            case Report():
                self._report(message)
            case Assign():
                self._assign(message)
            case Change():
                self._change(message)
            case Lend():
                self._borrow(message)
            case Sated():
                self._note_sated(message)
            case Confirm():
                self._confirm(message)
            case Hello():
                self._hello(message)
            case Gone():
                self._gone(message)
            case Barrier():
                self._barrier(message)
            case Pending():
                self._pending(message)
            case _:
                raise MalformedEventError(f"not a request to the writer: {message!r}")

    def refuse(self, session: str, kind: str, reason: str, *, is_known: bool = True) -> None:
        """Refuse a publisher's next request for a reason that will pass, and end its session in the log.

        What is refused must never get in later, and a second copy of it may be on its way: sent before the answer, and
        read when there is room again, perhaps by a successor of ours.
        """
        self.group.answers.append((session, self._refusal(session, self.sessions.expected(session), kind, reason)))
        if is_known:
            self._end(Gone(session, f"{REFUSED}{kind}", ""), self.sessions.refuse(session, kind))
            self.group.must_sync = True  # or after a failed sync nobody would know of it, and the copy get in

    def _refusal(self, session: str, number: int, kind: str, reason: str = "it was full a moment ago") -> Refused:
        return Refused(session, number, kind, reason, 0, self._path)

    def take_group(self) -> Group:
        """Close the group and begin the next one."""
        group, self.group = self.group, Group()
        return group

    def reached(self, position: Position, *, is_news: bool) -> None:
        """Note where the log ends now, and whether the scheduler has something to do because of that."""
        self.position = position
        if is_news:
            self._news = position
            self._is_sated = False

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
        if self._backlog is not None and not self._backlog.is_known:
            self._held.append(request)
            return
        session, first, last = request.session, request.first, request.first + request.count - 1
        if session in self.sessions.refused:
            # It has not heard of it: a broker died with the answer in hand.
            self.group.answers.append((session, self._refusal(session, *self.sessions.refused[session])))
            return
        if not self._is_next(session, first, last):
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
        ids = IdRange(session, first, last)
        if self._backlog is None:
            self._write_tasks(request, ids, payloads)
        else:
            self._write_what_fits(self._backlog, request, ids, payloads)

    def _write_tasks(self, request: Publish, ids: IdRange, payloads: list[bytes]) -> None:
        lines = records.publish_lines(ids, request.name, payloads)
        self.group.take(request)
        self.group.write(lines)
        is_handed_out = bool(self._lent) and self._hand_out(ids, request.name, lines)
        if not (is_handed_out or self._is_sated):
            self.group.is_news = True
        self.group.must_sync = True
        self.sessions.advance(ids.session, ids.last)
        self._acknowledge(ids.session, ids.last)

    def _hand_out(self, ids: IdRange, name: str, lines: bytes) -> bool:
        """Assign new tasks to consumers that were lent, one each, in the commit that publishes them.

        If there is not one for each, return False: the scheduler sees to all that is ready.
        """
        takers = [idle for idle in self._lent if idle.names is None or name in idle.names][: ids.count]
        if len(takers) < ids.count:
            self._lent.clear()
            return False
        scheduler = self.sessions.scheduler
        assert scheduler is not None
        _, *tasks = lines.splitlines(keepends=True)  # by the line feeds alone, in bytes
        for number, (taker, line) in enumerate(zip(takers, tasks, strict=True), start=ids.first):
            task = IdRange(ids.session, number, number)
            request = self.sessions.scheduler_request
            self.group.write(records.assign_line(task, taker.consumer, taker.no, scheduler, request))
            entries, bodies = self.group.pushes.setdefault(taker.consumer, ([], []))
            entries.append([str(task), taker.no, 0, 0, len(line)])
            bodies.append(line)
            self._lent.remove(taker)
        return True

    def _borrow(self, request: Lend) -> None:
        is_up_to_date = (request.generation, request.offset) == self.position and not self.group.lines
        if request.session == self.sessions.scheduler and is_up_to_date:
            self._lent = [idle_consumer(entry) for entry in request.consumers]

    def _note_sated(self, request: Sated) -> None:
        has_read_all_news = (request.generation, request.offset) >= self._news and not self.group.is_news
        if request.session == self.sessions.scheduler and has_read_all_news:
            self._is_sated = True

    def _write_what_fits(self, backlog: Backlog, request: Publish, ids: IdRange, payloads: list[bytes]) -> None:
        """Write as many of the tasks as the limit leaves room for, and refuse the first that it does not."""
        lengths = records.task_lengths(ids, request.name, payloads)
        room = backlog.limits.room(backlog.tasks, backlog.bytes, lengths)
        if room:
            backlog.take(room, sum(lengths[:room]))
            self._write_tasks(request, IdRange(ids.session, ids.first, ids.first + room - 1), payloads[:room])
        if room < len(payloads):
            why = backlog.limits.why_full(backlog.tasks, backlog.bytes)
            self.refuse(ids.session, "queue_full", why)

    def _pending(self, news: Pending) -> None:
        if self._backlog is not None:
            self._backlog.tell(news.commit, news.tasks, news.bytes)
            if not self._backlog.is_known:
                return
            held, self._held = self._held, []
            for request in held:
                self._publish(request)

    def _report(self, request: Report) -> None:
        session, number = request.session, request.number
        if not self._is_next(session, number, number):
            return
        values = request.body.split(b"\n") if request.body else []
        check_payloads(values)
        lines = outcome_lines(request, values)
        if any(kind in BACK_TO_READY for kind, *_ in request.outcomes):
            self._lent.clear()
        self.group.take(request)
        self.group.write(lines)
        self.group.must_sync = True
        self.sessions.advance(session, number)
        self._acknowledge(session, number)

    def _confirm(self, request: Confirm) -> None:
        """Tell a consumer whether the log has what it was last told to have. Not by a gap: an old one may come late."""
        if request.number < self.sessions.expected(request.session):
            self._acknowledge(request.session, request.number)
        else:
            self.group.answers.append((request.session, Forgotten(request.session)))

    def _assign(self, request: Assign) -> None:
        scheduler, number = request.session, request.number
        if request.generation not in self.generations:
            return  # the tasks may not be ready in this file; see Assign
        if scheduler != self.sessions.scheduler or not self._is_next(scheduler, number, number):
            return  # an incarnation from before the barrier, or a repetition
        if not request.entries:
            raise MalformedEventError("an assignment of nothing")
        lines = b"".join(
            records.assign_line(IdRange.parse(tasks), check_session(consumer), ordinal(no), scheduler, number)
            for tasks, consumer, no, *_ in request.entries
        )
        self._lent.clear()
        self.group.take(request)
        self.group.write(lines)
        at = 0
        for tasks, consumer, no, failures, crashes, length in request.entries:
            entries, bodies = self.group.pushes.setdefault(consumer, ([], []))
            entries.append([tasks, no, failures, crashes, length])
            bodies.append(request.body[at : at + length])
            at += length
        self.sessions.advance(scheduler, number)
        self._acknowledge(scheduler, number)

    def _change(self, request: Change) -> None:
        scheduler, number = request.session, request.number
        if request.generation not in self.generations:
            return  # as in _assign
        if scheduler != self.sessions.scheduler or not self._is_next(scheduler, number, number):
            return
        tasks, name = map(IdRange.parse, request.tasks), check_name(request.name) if request.name else None
        line = records.steered_line(Verb(request.verb), tasks, name, scheduler=scheduler, request=number)
        # A pause holds from here on; and what is retried is ready, which the writer does not know of.
        self._lent.clear()
        self.group.take(request)
        self.group.write(line)
        self.group.must_sync = True
        self.sessions.advance(scheduler, number)
        self._acknowledge(scheduler, number)

    def _hello(self, request: Hello) -> None:
        if self.sessions.expected(request.session) == 0:
            line = self.sessions.greet(request)
            self.group.take(request)
            self.group.write(line)
            self.group.greeted.append([request.session, request.role, request.pid, request.start, request.boot])
            self._told_gap.discard(request.session)
        self._acknowledge(request.session, 0)

    def _barrier(self, request: Barrier) -> None:
        if request.generation not in self.generations:
            return  # from before a failed sync; whoever still lives begins anew with the new file
        if self.sessions.scheduler != request.session:
            line = records.barrier_line(check_session(request.session))
            self.group.take(request)
            self.group.write(line)
            self._lent.clear()
            self.sessions.set_scheduler(request.session)
        self._acknowledge(request.session, 0)

    def _gone(self, request: Gone) -> None:
        if self.sessions.expected(request.session) == 0:
            return  # told twice
        if request.task:
            parse_task_id(request.task)
        if request.cause.startswith(REFUSED):
            line = self.sessions.refuse(request.session, request.cause.removeprefix(REFUSED))
        else:
            line = records.gone_line(request.session, request.cause, request.task or None)
        self._end(request, line)

    def _end(self, request: Gone, line: bytes) -> None:
        if not self.sessions.is_publisher(request.session):
            self._lent.clear()
        self.group.take(request)
        self.group.write(line)
        self.sessions.forget(request.session)
        self._told_gap.discard(request.session)


class PublisherBroker(Actor):
    """The actor around `Writing`: lock, log, sync, and the answers in the order that keeps the promise."""

    frames = True
    hopeless = (CorruptQueueError, HostDeposedError, QueueReplacedError, UnsupportedFormatError)

    def __init__(
        self,
        path: Path,
        scheduler: Mailbox,
        router: Mailbox,
        registry: Mailbox,
        durability: str,
        *,
        queue_id: str | None = None,
        limits: Limits = Limits(),  # noqa: B008  # a tuple
        host: FileIdentity | None = None,
    ) -> None:
        """Write for this host.

        `queue_id`: of the queue that is hosted; a file that holds another one is never written to. `host`: which file
        the host has locked; if it has another one in its place now, so does somebody else.
        """
        self._path = path
        self._queue_id = queue_id
        self._host = host
        self._backlog = Backlog(limits) if limits else None
        self._sync_each = durability == "power"
        self._scheduler = Post(self, scheduler, ME)
        self._router = Post(self, router, ME)
        self._registry = Post(self, registry, ME)
        self._channels = Channels()
        self._note_is_due = False
        self._noted = 0
        self._sync_is_due = False
        self._room_is_due = False
        self._is_short_of_room = False
        """The last publish found no room; what is not needed at once, such as a checkpoint, waits."""

    @override
    def on_start(self) -> None:
        raise_fd_limit()  # three for each client, as in the Registry
        keep_freed_memory(KEPT_MEMORY_BYTES)
        self._lock = LastingWriterLock(self._path)
        self._acquire_lock()
        if failpoints.ARMED:
            failpoints.hit("writer.locked")
        self._check_host()
        self._leave_a_tree_that_has_read_too_much()
        self._log = self._open_log()
        # What a compaction left that was killed: it may be as large as the queue. Not before the file is open: a second
        # name of its own says that its first one may not be on disk yet.
        sweep(self._path, REAL)
        if self._log.recovered is not None:
            logger.warning("queue recovered path=%r %s", str(self._path), self._log.recovered)
        if self._backlog is not None:
            self._backlog.start = self._log.commit
        self._first_generation = self._log.header.generation
        self._writing = self._begin_writing()
        if failpoints.ARMED:
            failpoints.hit("writer.opened")
        self._announce()
        if failpoints.ARMED:
            failpoints.hit("writer.announced")

    def _acquire_lock(self) -> None:
        """Wait for the writer before us to let go; for that of whoever has deposed our host we wait in vain."""
        for _ in range(LOCK_SLICES):
            with suppress(QueueLockedError):
                self._lock.acquire(LOCK_SLICE_SECONDS)
                return
            self._check_host()
        self._lock.acquire()

    def _check_host(self) -> None:
        if self._host is not None and host_identity(self._path) != self._host:
            raise HostDeposedError(self._path)

    def _begin_writing(self) -> Writing:
        writing = Writing(fold_sessions(self._log.tail()), self._log.position, self._backlog, str(self._path))
        writing.generations = range(self._first_generation, self._log.header.generation + 1)
        return writing

    def _open_log(self) -> LogWriter:
        require_queue(self._path, self._queue_id)
        create = self._queue_id is None
        return LogWriter.open(
            self._path,
            boot_id=boot_id(),
            pid=os.getpid(),
            create=create,
            reserve=RESERVE_BYTES,
            tree=tree_of_this_process(),
        )

    def _leave_a_tree_that_has_read_too_much(self) -> None:
        """End all processes if a sync has failed in this very tree, whose consumers may run what the log will not show.

        As a rule the writer that saw it fail has done that. This is for one that was killed before it could.
        """
        mark = read_mark(REAL, self._path)
        if mark is None:
            return
        roll = roll_of(self._path)
        if mark.tree not in {None, tree_of_this_process()}:
            end_other_trees(roll)
            return
        if mark.tree is None:  # it was killed while it left the mark: once is enough, so the next tree must know
            sign_mark(REAL, self._path, tree_of_this_process())
        self._start_all_anew(roll)
        raise SyncFailedError(self._path, "the writer was killed before all processes could start anew")

    @override
    def receive_frames(self, frames: Iterator[Packet]) -> None:
        if failpoints.ARMED:
            failpoints.hit("writer.received")
        for message, fds in messages_in(frames):
            try:
                match message:
                    case Gone():
                        self._writing.accept(message)
                        self._channels.detach(message.session)
                    case RegistryStarted():
                        self._tell_registry()
                        if failpoints.ARMED:
                            failpoints.hit("writer.handing_over")
                        self._channels.hand_over(self._registry, is_routed=False)
                    case Attach():
                        self._channels.attach(message, fds)
                        if failpoints.ARMED:
                            failpoints.hit("writer.attached")
                    case Compacted():
                        self._commit(self._writing.take_group())
                        self._switch(message)
                    case _:
                        self._writing.accept(message)
            except (MalformedEventError, PayloadError, ValueError):
                # One bad frame must not stop the queue for everybody else; whoever sent it is never acknowledged.
                logger.exception("request dropped: it is malformed")
            if self._writing.group.size >= MAX_BATCH_BYTES:
                self._commit(self._writing.take_group())
        self._commit(self._writing.take_group())

    @override
    def before_wait(self) -> bool:
        self._tell_scheduler()
        return False

    def _tell_scheduler(self) -> None:
        """Tell it that there is something to read, if there is; what it has not taken yet tells as much."""
        if self._note_is_due and not self._scheduler.is_backed_up:
            self._note_is_due = False
            position = self._log.position
            self._noted = position.offset
            self._scheduler.send(Committed(position.generation, position.offset))

    @override
    def on_stop(self) -> None:
        if failpoints.ARMED:
            failpoints.hit("writer.stopping")
        self._log.close()
        self._lock.release()

    def _commit(self, group: Group) -> None:
        if group.lines and not self._write(group):
            return
        answers = self._answers_to(group)  # made while the disk works, and while what they tell of is at hand
        if group.must_sync:
            self._tell_scheduler()  # it, too, begins while the disk works, and not in our place
            self._sync()
            if failpoints.ARMED:
                failpoints.hit("writer.synced")
        # From here a power loss keeps what was written (with durability "process": will keep it, in SYNC_SECONDS); only
        # now may anybody hear yes.
        for session, frame in answers:
            if failpoints.ARMED:
                failpoints.hit("writer.acknowledging")
            self._send(session, frame)
        self._router.flush()
        if failpoints.ARMED:
            failpoints.hit("writer.acknowledged")
        if group.greeted:
            self._registry.send(Greeted(group.greeted))
            if failpoints.ARMED:
                failpoints.hit("writer.greeted")

    def _write(self, group: Group) -> bool:
        """Write the group and push what it hands out; False if there was no room, and others were answered instead."""
        if self._log.bytes_since_checkpoint >= CHECKPOINT_BYTES and not self._is_short_of_room:
            group.lines.insert(0, self._writing.sessions.checkpoint_line())
        will_sync = group.must_sync and self._sync_each and not group.pushes  # a push does not wait for the disk
        try:
            position = self._log.write(group.lines, keep=group.keep, will_sync=will_sync)
        except DiskFullError:
            self._refuse(group)
            return False
        except SyncFailedError:
            self._start_all_anew(self._writing.sessions.roll())
            raise
        self._writing.reached(position, is_news=group.is_news)
        if group.is_news or position.offset - self._noted >= NOTE_BYTES:
            self._note_is_due = True
        if group.keep == RESERVE_BYTES:
            self._is_short_of_room = False
        if self._backlog is not None:
            self._backlog.written(self._log.commit)
        if failpoints.ARMED:
            failpoints.hit("writer.written")
        # The log shows the assignments, so the consumers may begin: a power cut now would end them too.
        for consumer, (entries, bodies) in group.pushes.items():
            for push in pushes_of(entries, bodies):
                self._send(consumer, encode(ME, push))
        self._router.flush()
        if failpoints.ARMED:
            failpoints.hit("writer.pushed")
        return True

    def _switch(self, offered: Compacted) -> None:
        """Go over to a compacted file, between two commits. If it will not do, the old one goes on."""
        if failpoints.ARMED:
            failpoints.hit("writer.offered")
        before = self._log.position
        offer = Offer(offered.generation, offered.name, offered.commit, offered.end, offered.size)
        try:
            self._log = switch(self._log, offer)
        except SyncFailedError:
            self._start_all_anew(self._writing.sessions.roll())
            raise
        except (CompactionError, OSError) as error:
            logger.error("file not compacted path=%r reason=%s", str(self._path), error)  # noqa: TRY400 -- one line
            return
        if failpoints.ARMED:
            failpoints.hit("writer.switched")
        after = self._log.position
        self._writing.generations = range(self._first_generation, after.generation + 1)
        self._writing.reached(after, is_news=True)
        self._noted = after.offset
        self._scheduler.send(Switched(after.generation, before.offset, after.offset))
        logger.info("file compacted path=%r bytes=%d before=%d", str(self._path), after.offset, before.offset)

    def _answers_to(self, group: Group) -> list[tuple[str, bytes]]:
        """Return the frames that tell each session how far its requests were taken, and what was refused."""
        answers: list[tuple[str, ToClient]] = [
            (session, Acknowledged(session, number)) for session, number in group.acknowledged.items()
        ]
        return [(session, encode(ME, answer)) for session, answer in answers + group.answers]

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
            self._start_all_anew(self._writing.sessions.roll())
            raise

    def _start_all_anew(self, roll: list[list[Any]]) -> None:
        """End all processes of the queue: they die with the supervisor, this one too, and start again with it.

        Before that, the consumers of this roll that have joined from other trees.

        What was not synced may be cut from the log: consumers that have registered, and assignments; but those have
        been pushed, and their tasks may run. So all consumers must end before a writer serves again.
        """
        logger.critical("the disk does not keep what was written: all processes of the queue start anew")
        end_other_trees(roll, os.getppid())
        os.kill(os.getppid(), signal.SIGKILL)

    @override
    def on_timer(self, message: object) -> None:
        match message:
            case SyncDue():
                self._sync_is_due = False
                self._sync_now()
            case RoomAgain():
                self._room_is_due = False
                self._announce()

    def _announce(self) -> None:
        """Have everybody repeat what is not acknowledged, and the Registry each death that the log does not show."""
        self._tell_registry()
        self._router.send(WriterStarted(self._log.epoch, []))
        self._scheduler.send(WriterStarted(self._log.epoch, []))

    def _send(self, session: str, frame: bytes) -> None:
        """Send at once; a client who has no room for it, or whom we do not know, is the Router's affair."""
        if session == self._writing.sessions.scheduler:
            self._scheduler.send_frame(frame)
        elif not self._channels.try_send(session, frame):
            self._router.deliver(session, frame)

    def _refuse(self, group: Group) -> None:
        """The disk is full, and nothing of the group is in the log. What may use more of the reserve is tried again.

        Publishers hear that they are refused, once that is recorded; whoever else is left out repeats, and is asked to
        in a while.
        """
        if self._backlog is not None:
            self._backlog.refused()
        self._writing = self._begin_writing()
        if failpoints.ARMED:
            failpoints.hit("writer.refused")
        left = [request for request in group.requests if keep_behind(request) < group.keep]
        if not self._is_short_of_room:
            logger.error("disk full path=%r: publishes are refused, and the rest waits for room", str(self._path))
        self._is_short_of_room = True
        self._refuse_publishers(group)
        for request in left:
            self._writing.accept(request)
        if group.keep:
            self._commit(self._writing.take_group())
        # Otherwise not even what may use all of the reserve has found room. What cannot be recorded is not said either:
        # a publisher who heard no, and whose request got in after our death, would have been told a lie.
        if group.keep < RESERVE_BYTES and not self._room_is_due:
            self._room_is_due = True
            self.after(ROOM_SECONDS, RoomAgain())

    def _refuse_publishers(self, group: Group) -> None:
        sessions = self._writing.sessions
        strangers = {
            request.session
            for request in group.requests
            if isinstance(request, Hello) and request.role == EventOwner.PUBLISHER
        }
        for session, last in group.acknowledged.items():
            expected = sessions.expected(session)
            if expected <= last and (sessions.is_publisher(session) or session in strangers):
                self._writing.refuse(session, "disk_full", "", is_known=sessions.is_publisher(session))

    def _tell_registry(self) -> None:
        self._registry.send(WriterStarted(self._log.epoch, self._writing.sessions.roll()))


def pushes_of(entries: list[list[object]], bodies: list[bytes]) -> Iterator[Push]:
    """Yield the assignments of one consumer in pushes that travel as one packet each, but for one that is too large."""
    begin = size = 0
    for at, body in enumerate(bodies):
        length = len(body) + ENTRY_BYTES
        if size + length > MAX_FRAME_BYTES and at > begin:
            yield Push(entries[begin:at], b"".join(bodies[begin:at]))
            begin, size = at, 0
        size += length
    yield Push(entries[begin:], b"".join(bodies[begin:]))


def idle_consumer(entry: list[object]) -> Idle:
    """Return an entry of a Lend, checked. Raises ValueError or MalformedEventError."""
    match entry:
        case [str(consumer), no, None]:
            return Idle(check_session(consumer), ordinal(no), None)
        case [str(consumer), no, list(names)] if all(isinstance(name, str) for name in names):
            return Idle(check_session(consumer), ordinal(no), frozenset(names))
    raise MalformedEventError(f"not a consumer to give tasks to: {entry!r:.100}")


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


def tree_of_this_process() -> str:
    """Return what tells this supervisor's processes from those of every other one, before and after it."""
    parent = os.getppid()
    return f"{boot_id()} {parent} {process_start_time(parent)}"


def fold_sessions(batches: Iterable[Batch]) -> SessionTable:
    """Return the writer's table after the tail of the log."""
    table = SessionTable()
    for batch in batches:
        table.apply(batch.lines)
    return table
