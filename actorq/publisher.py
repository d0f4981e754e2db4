"""Publishing: the same client for a caller's own process, for a `Publisher` actor, and without any brokers.

    BrokeredPublisher   numbered requests to the writer, a window of them in flight, acknowledged after fdatasync
    DirectPublisher     no broker runs: takes the locks for one commit and writes it by itself
    Publisher           an actor around the first, in a process of its own

Both take chunks of encoded payloads and return the ranges of ids under which they are durable.
"""

from __future__ import annotations

import logging
import os
import time
import weakref
from collections import deque
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple, Protocol, override

from actorq import failpoints
from actorq.actors import Actor
from actorq.actors.linux import boot_id
from actorq.attachments import attachment_of
from actorq.brokers.backlog import Limits
from actorq.brokers.messages import EventOwner, Publish, Refused
from actorq.brokers.session import REPEAT_SECONDS, Brokers, Session
from actorq.errors import (
    ActorqError,
    ActorStoppedError,
    DiskFullError,
    FolderNotFoundError,
    MailboxFullError,
    PayloadError,
    PublishError,
    PublishRejectedError,
    PublishUnknownError,
    QueueFullError,
    QueueLockedError,
    SyncFailedError,
)
from actorq.store import records
from actorq.store.filesystem import REAL, Filesystem
from actorq.store.locks import HostLock, WriterLock
from actorq.store.log_writer import LogWriter
from actorq.tasks.ids import IdRange, new_session, task_id
from actorq.tasks.payload import encode_payload
from actorq.tasks.task import TaskIn
from actorq.view import View

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

logger = logging.getLogger("actorq")

CHUNK_BYTES = 40 << 10
"""Payloads in one request: what still travels as one packet."""

CHUNK_TASKS = 1000

CHUNK_SECONDS = 0.005
"""A slow iterable does not hold back for longer what it has given already."""

WINDOW = 16
"""Requests in flight before the publisher waits for an acknowledgement."""

DEFAULT_TIMEOUT = 30.0

FIRST_NAP_SECONDS = 0.0005
LONGEST_NAP_SECONDS = 0.005
"""Between two looks whether the writer's lock is free: the kernel has no flock with a deadline."""


class Chunk(NamedTuple):
    """Payloads that travel together, and the error that ended the stream behind them, if any."""

    payloads: list[bytes]
    error: PayloadError | None = None


class BadItemError(Exception):
    """An item of the stream is no payload; all before it are in. Never leaves this module."""

    def __init__(self, error: PayloadError) -> None:
        super().__init__(error)
        self.error = error

    def as_payload_error(self, ranges: Iterable[IdRange]) -> PayloadError:
        """Return what the caller gets to see."""
        return PayloadError(self.error.reason, self.error.where, self.error.index, tuple(ids_of(ranges)))


class PublishPort(Protocol):
    """What `Queue` needs of either publisher."""

    def publish(self, chunks: Iterable[Chunk], name: str, timeout: float) -> list[IdRange]:
        """Make all tasks durable and return their ids, in order."""

    def close(self) -> None:
        """Let go of channels and files."""


def chunked(values: Iterable[object]) -> Iterator[Chunk]:
    """Encode values and gather them into chunks; a bad one ends the stream, and all before it go out."""
    payloads: list[bytes] = []
    size = 0
    begun = time.monotonic()
    for index, value in enumerate(values):
        try:
            payload = encode_payload(value)
        except PayloadError as error:
            yield Chunk(payloads, PayloadError(error.reason, error.where, index))
            return
        if payloads and (
            size + len(payload) > CHUNK_BYTES
            or len(payloads) >= CHUNK_TASKS
            or time.monotonic() - begun > CHUNK_SECONDS
        ):
            yield Chunk(payloads)
            payloads, size = [], 0
            begun = time.monotonic()
        payloads.append(payload)
        size += len(payload) + 1
    if payloads:
        yield Chunk(payloads)


def ids_of(ranges: Iterable[IdRange]) -> list[str]:
    """Return the ids of ranges, one string each."""
    return [f"{span.session}-{number}" for span in ranges for number in range(span.first, span.last + 1)]


class BrokeredPublisher:
    """Publishes through the brokers. One thread at a time; a new session after anything that did not succeed."""

    def __init__(self, brokers: Brokers) -> None:
        self._brokers = brokers
        self._session: Session | None = None

    def publish(self, chunks: Iterable[Chunk], name: str, timeout: float = DEFAULT_TIMEOUT) -> list[IdRange]:
        """Publish with a window of requests in flight. `timeout` is for each wait, in seconds."""
        ranges: list[IdRange] = []
        session = None
        try:
            session = self._connected(timeout)
            for chunk in chunks:
                if chunk.payloads:
                    self._send(session, chunk.payloads, name, timeout)
                    first = session.requests.number - len(chunk.payloads) + 1
                    ranges.append(IdRange(session.id, first, session.requests.number))
                if chunk.error is not None:
                    self._wait(session, 0, timeout)
                    raise BadItemError(chunk.error)
                if len(session.requests) >= WINDOW:
                    self._wait(session, WINDOW - 1, timeout)
            self._wait(session, 0, timeout)
            if failpoints.ARMED:
                failpoints.hit("publisher.acknowledged")
        except BadItemError as error:
            raise error.as_payload_error(ranges) from None
        except ActorStoppedError:
            self.close()
            if session is None:
                raise  # nothing was sent
            # The brokers have stopped for good; what was in flight may have been the last that they wrote.
            raise PublishUnknownError(task_id(session.id, max(1, session.requests.oldest)), timeout) from None
        except BaseException as error:
            # Whatever is in flight may still arrive; a new session keeps it apart from what comes next.
            self.close()
            if isinstance(error, PublishError) and session is not None:
                # Of a chunk that did not fit as a whole, the first tasks are in.
                done = session.requests.acknowledged
                cut = (IdRange(span.session, span.first, min(span.last, done)) for span in ranges if span.first <= done)
                error.published = ids_of(cut)
            raise
        return ranges

    def close(self) -> None:
        """Hang up."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def _connected(self, timeout: float) -> Session:
        if self._session is None:
            self._session = Session(self._brokers, EventOwner.PUBLISHER)
            try:
                self._session.connect(timeout)
            except MailboxFullError:
                raise PublishUnknownError(task_id(self._session.id, 1), timeout) from None
            self._wait(self._session, 0, timeout)
        return self._session

    def _send(self, session: Session, payloads: list[bytes], name: str, timeout: float) -> None:
        first = session.requests.number + 1
        publish = Publish(session.id, first, len(payloads), name, b"\n".join(payloads))
        request = session.requests.add(session.encode(publish), len(payloads))
        if failpoints.ARMED:
            failpoints.hit("publisher.publishing")
        try:
            session.send(request, timeout)
        except MailboxFullError:
            raise PublishUnknownError(task_id(session.id, first), timeout) from None

    def _wait(self, session: Session, in_flight: int, timeout: float) -> None:
        """Wait until at most so many requests are not acknowledged."""
        deadline = time.monotonic() + timeout
        while len(session.requests) > in_flight:
            before = len(session.requests)
            left = deadline - time.monotonic()
            if left <= 0:
                oldest = session.requests.since()[0]
                raise PublishUnknownError(task_id(session.id, max(1, oldest.first)), timeout)
            message = session.receive(min(left, REPEAT_SECONDS))
            # One that has been acknowledged since was refused to a stranger, who was let in at the second try: that
            # answer may come first.
            if isinstance(message, Refused) and message.number > session.requests.acknowledged:
                raise refusal(message)
            if message is None and left > REPEAT_SECONDS:
                session.send_again()
            if len(session.requests) < before:
                deadline = time.monotonic() + timeout


def refusal(message: Refused) -> PublishRejectedError:
    """Return the error that a refusal stands for."""
    if message.kind == "disk_full":
        return DiskFullError(message.where)
    if message.kind == "queue_full":
        return QueueFullError(message.where, message.reason)
    return PayloadError(message.reason, message.where, message.index)


class BothLocks:
    """What a direct publish needs: the writer's lock, and the host's, shared, so that nobody begins to host."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._locks = HostLock(path), WriterLock(path)

    @contextmanager
    def held(self, timeout: float) -> Iterator[None]:
        """Hold both; afterwards they are free, but their files stay open.

        Nobody waits for the writer's lock with the host's in hand: a few busy publishers would then keep a host out for
        ever. Raises HostedHereError when this process has become the host meanwhile.
        """
        deadline = time.monotonic() + timeout
        nap = FIRST_NAP_SECONDS
        try:
            while not self._take():
                if time.monotonic() >= deadline:
                    raise QueueLockedError(self._path, self._holder)
                if attachment_of(self._path) is not None:
                    raise HostedHereError
                time.sleep(nap)
                nap = min(nap * 1.5, LONGEST_NAP_SECONDS)
            yield
        finally:
            try:
                self._park()
            except BaseException:
                self._park()  # ^C came in between; a lock that stayed would keep everybody out until this process ends
                raise

    def _take(self) -> bool:
        host, writer = self._locks
        try:
            host.acquire(shared=True)
            writer.acquire()
        except QueueLockedError as error:
            self._holder = error.pid
            self._park()
            return False
        return True

    def _park(self) -> None:
        for lock in reversed(self._locks):
            lock.park()

    def forget(self) -> None:
        """Close their files."""
        for lock in self._locks:
            lock.forget()


class HostedHereError(Exception):
    """The locks will not become free: it is this very process that hosts the queue now."""


class Desk:
    """What a direct publisher keeps from one commit to the next: the open files of both locks, and where the log ends.

    To open and read all of it anew takes longer than the commit. Nothing is locked meanwhile, and others may do what
    they like; see `LogWriter.resume`.
    """

    def __init__(self, path: Path, filesystem: Filesystem, boot: str) -> None:
        self._path = path
        self._filesystem = filesystem
        self._boot = boot
        self._locks = BothLocks(path)
        self._log: LogWriter | None = None
        self._pid = os.getpid()
        self._user: Callable[[], _Token | None] = _nobody
        _desks.add(self)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep out whoever comes in between: a signal handler that publishes, the end of the interpreter.

        Not by a lock, which would stay taken if ^C came between taking it and the `try`. The token dies in one step.
        """
        me = _Token()
        try:
            if self._user() is not None:
                raise QueueLockedError(self._path, self._pid)
            self._user = weakref.ref(me)
            yield
        finally:
            del me

    @contextmanager
    def opened(self, timeout: float) -> Iterator[LogWriter]:
        """Hold the locks, and the log to write to."""
        with self._alone(), self._locks.held(timeout):
            if failpoints.ARMED:
                failpoints.hit("direct.locked")
            log = self._log
            if log is not None and not log.resume():
                log.forget()
                log = self._log = None
            if log is None:
                try:
                    log = self._log = LogWriter.open(
                        self._path, boot_id=self._boot, pid=os.getpid(), filesystem=self._filesystem, settle=False
                    )
                except SyncFailedError as error:
                    raise PublishRejectedError(f"nothing was written: {error}") from error
            if failpoints.ARMED:
                failpoints.hit("direct.opened")
            try:
                yield log
            except BaseException:
                self._log = None
                self._close(log)
                raise
            log.pause()
            if failpoints.ARMED:
                failpoints.hit("direct.closed")
            # From here a power loss keeps what was written.

    def _close(self, log: LogWriter) -> None:
        try:
            log.close()
        except SyncFailedError as error:
            # Of the filler alone: what became of the tasks is known, and is said. The next to come mends it.
            logger.error("queue not closed cleanly: %s", error)  # noqa: TRY400  # one line says all of it

    def close(self) -> None:
        """Leave the file as it should be at rest: unless it is gone, or somebody else has it, who will do that.

        Also called when a thread ends, at the end of the interpreter, and in a forked child, where those of all other
        threads are thrown away.
        """
        if os.getpid() != self._pid:
            self.forget()
            return
        # Where a thread is in the middle of a commit, the process is about to end, and the kernel will close all.
        with suppress(QueueLockedError), self._alone():
            try:
                self._tidy_up()
            finally:
                self.forget()

    def _tidy_up(self) -> None:
        if self._log is None:
            return
        try:
            if self._log.is_in_place():  # or its locks may be gone as well, and must not come again
                with self._locks.held(0):
                    if self._log.resume():
                        self._close(self._log)
        except (QueueLockedError, HostedHereError, FolderNotFoundError):
            pass
        except (ActorqError, OSError) as error:
            logger.error("queue not closed cleanly: %s", error)  # noqa: TRY400  # one line says all of it

    def forget(self) -> None:
        """Close the descriptors and do nothing else. In a forked child the locks are still the parent's as well."""
        self._locks.forget()
        if self._log is not None:
            self._log.forget()
            self._log = None


class _Token:
    """Whoever is at a desk."""

    __slots__ = ("__weakref__",)


def _nobody() -> None:
    """Return who is at a new desk."""


_desks: weakref.WeakSet[Desk] = weakref.WeakSet()


def _forget_desks() -> None:
    for desk in _desks:
        desk.forget()


if hasattr(os, "register_at_fork"):  # where there is no fork, nothing is inherited
    os.register_at_fork(after_in_child=_forget_desks)


class DirectPublisher:
    """Publishes while no broker runs: one commit per chunk group, under both locks, durable when it returns."""

    def __init__(
        self,
        path: Path,
        limits: Limits = Limits(),  # noqa: B008  # a tuple
        filesystem: Filesystem = REAL,
        boot: str | None = None,
    ) -> None:
        self._path = path
        self._filesystem = filesystem
        self._desk = Desk(path, filesystem, boot or boot_id())
        self._leave = weakref.finalize(self, self._desk.close)
        self._session = new_session()
        self._number = 0
        self._limits = limits
        self._view = View(path, filesystem, weighs=True)

    def publish(self, chunks: Iterable[Chunk], name: str, timeout: float = DEFAULT_TIMEOUT) -> list[IdRange]:
        """Publish groups of up to WINDOW chunks, each in one commit."""
        ranges: list[IdRange] = []
        group: list[Chunk] = []
        for chunk in chunks:
            group.append(chunk)
            if len(group) >= WINDOW or chunk.error is not None:
                self._publish_group(group, name, timeout, ranges)
                group = []
            if chunk.error is not None:
                raise BadItemError(chunk.error).as_payload_error(ranges)
        if group:
            self._publish_group(group, name, timeout, ranges)
        return ranges

    def close(self) -> None:
        """Close what was kept open between commits, and leave the file as it should be at rest."""
        self._view.close()
        self._leave()

    def _publish_group(self, group: list[Chunk], name: str, timeout: float, done: list[IdRange]) -> None:
        """Publish one group and add its ids to what is done, which an error reports."""
        try:
            done += self._commit(group, name, timeout)
        except HostedHereError:
            attachment = attachment_of(self._path)
            if attachment is None:
                self._publish_group(group, name, timeout, done)  # and it does not any more
                return
            port = BrokeredPublisher(attachment.brokers)
            try:
                done += port.publish([Chunk(chunk.payloads) for chunk in group], name, timeout)
            except PublishError as error:
                error.published = ids_of(done) + error.published
                raise
            finally:
                port.close()
        except PublishError as error:
            error.published = ids_of(done) + error.published
            raise

    def _commit(self, group: list[Chunk], name: str, timeout: float) -> list[IdRange]:
        payloads = [chunk.payloads for chunk in group if chunk.payloads]
        if not payloads:
            return []
        with self._desk.opened(timeout) as log:
            full = self._cut_to_room(payloads, name) if self._limits else None
            ranges = self._write(log, payloads, name, timeout) if payloads else []
        if full is not None:
            full.published = ids_of(ranges)
            raise full
        return ranges

    def _write(self, log: LogWriter, payloads: list[list[bytes]], name: str, timeout: float) -> list[IdRange]:
        ranges: list[IdRange] = []
        lines: list[bytes] = []
        number = self._number
        for some in payloads:
            span = IdRange(self._session, number + 1, number + len(some))
            lines.append(records.publish_lines(span, name, some))
            ranges.append(span)
            number = span.last
        # Before the write: whatever interrupts it (^C), these numbers may be in the log and must never come again.
        self._number = number
        try:
            log.write(lines)
            log.sync()
            if failpoints.ARMED:
                failpoints.hit("direct.synced")
        except SyncFailedError:
            raise PublishUnknownError(task_id(ranges[0].session, ranges[0].first), timeout) from None
        return ranges

    def _cut_to_room(self, payloads: list[list[bytes]], name: str) -> QueueFullError | None:
        """Take off what the limits leave no room for, and return the error that says so. Both locks are held."""
        state = self._view.refresh()
        tasks, size = state.pending_count, state.pending_bytes
        number = self._number
        for at, some in enumerate(payloads):
            lengths = records.task_lengths(IdRange(self._session, number + 1, number + len(some)), name, some)
            room = self._limits.room(tasks, size, lengths)
            tasks += room
            size += sum(lengths[:room])
            number += room
            if room < len(some):
                payloads[at:] = [some[:room]] if room else []
                return QueueFullError(self._path, self._limits.why_full(tasks, size))
        return None


class Publisher(Actor):
    """An actor that publishes what it is told: a `TaskIn` (answers its id) or a list of them (answers the ids)."""

    def __init__(self, brokers: Brokers, timeout: float = DEFAULT_TIMEOUT) -> None:
        self._port = BrokeredPublisher(brokers)
        self._timeout = timeout

    @override
    def receive(self, message: object) -> str | list[str]:
        match message:
            case TaskIn(data, name):
                return ids_of(self._port.publish(chunked([data]), name, self._timeout))[0]
            case list():
                return self._publish_all(deque(message))
            case _:
                return super().receive(message)  # type: ignore[return-value]  # raises: unhandled

    @override
    def on_stop(self) -> None:
        self._port.close()

    def _publish_all(self, tasks: deque[TaskIn]) -> list[str]:
        """Publish in order; tasks of one name in a row travel together."""
        ids: list[str] = []
        while tasks:
            name = tasks[0].name
            data = []
            while tasks and tasks[0].name == name:
                data.append(tasks.popleft().data)
            ids += ids_of(self._port.publish(chunked(data), name, self._timeout))
        return ids
