"""Publishing: the same client for a caller's own process, for a `Publisher` actor, and without any brokers.

    BrokeredPublisher   numbered requests to the writer, a window of them in flight, acknowledged after fdatasync
    DirectPublisher     no broker runs: takes the locks for one commit and writes it by itself
    Publisher           an actor around the first, in a process of its own

Both take chunks of encoded payloads and return the ranges of ids under which they are durable.
"""

from __future__ import annotations

import os
import time
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, Protocol, override

from actorq.actors import Actor
from actorq.actors.linux import boot_id
from actorq.attachments import attachment_of
from actorq.brokers.messages import EventOwner, Publish, Refused
from actorq.brokers.session import REPEAT_SECONDS, Brokers, Session
from actorq.errors import (
    ActorStoppedError,
    DiskFullError,
    MailboxFullError,
    PayloadError,
    PublishError,
    PublishRejectedError,
    PublishUnknownError,
    QueueLockedError,
    SyncFailedError,
)
from actorq.store import records
from actorq.store.locks import HostLock, WriterLock
from actorq.store.log_writer import LogWriter
from actorq.tasks.ids import IdRange, new_session, task_id
from actorq.tasks.payload import encode_payload
from actorq.tasks.task import TaskIn

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

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
        except BadItemError as error:
            raise error.as_payload_error(ranges) from None
        except ActorStoppedError:
            # The brokers have stopped for good; what was in flight may have been the last that they wrote.
            stopped = session or self._session
            self.close()
            if stopped is None:
                raise
            raise PublishUnknownError(task_id(stopped.id, max(1, stopped.requests.oldest)), timeout) from None
        except BaseException as error:
            # Whatever is in flight may still arrive; a new session keeps it apart from what comes next.
            self.close()
            if isinstance(error, PublishError) and session is not None:
                done = session.requests.acknowledged
                error.published = ids_of(span for span in ranges if span.last <= done)
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
            if isinstance(message, Refused):
                raise refusal(message)
            if message is None and left > REPEAT_SECONDS:
                session.send_again()
            if len(session.requests) < before:
                deadline = time.monotonic() + timeout


def refusal(message: Refused) -> PublishRejectedError:
    """Return the error that a refusal stands for."""
    if message.kind == "disk_full":
        return DiskFullError(message.reason)
    return PayloadError(message.reason, message.where, message.index)


@contextmanager
def both_locks(path: Path, timeout: float) -> Iterator[None]:
    """Hold what a direct publish needs: the writer's lock, and the host's, shared, so that nobody begins to host.

    Nobody waits for the writer's lock with the host's in hand: a few busy publishers would then keep a host out for
    ever. Raises HostedHereError when this process has become the host meanwhile.
    """
    deadline = time.monotonic() + timeout
    nap = FIRST_NAP_SECONDS
    while True:
        try:
            with HostLock(path).acquire(shared=True), WriterLock(path).acquire():
                yield
                return
        except QueueLockedError:
            if time.monotonic() >= deadline:
                raise
        if attachment_of(path) is not None:
            raise HostedHereError
        time.sleep(nap)
        nap = min(nap * 1.5, LONGEST_NAP_SECONDS)


class HostedHereError(Exception):
    """The locks will not become free: it is this very process that hosts the queue now."""


class DirectPublisher:
    """Publishes while no broker runs: one commit per chunk group, under both locks, durable when it returns."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._session = new_session()
        self._number = 0

    def publish(self, chunks: Iterable[Chunk], name: str, timeout: float = DEFAULT_TIMEOUT) -> list[IdRange]:
        """Publish groups of up to WINDOW chunks, each in one commit."""
        ranges: list[IdRange] = []
        group: list[Chunk] = []
        try:
            for chunk in chunks:
                group.append(chunk)
                if len(group) >= WINDOW or chunk.error is not None:
                    ranges += self._publish_group(group, name, timeout)
                    group = []
                if chunk.error is not None:
                    raise BadItemError(chunk.error).as_payload_error(ranges)
            if group:
                ranges += self._publish_group(group, name, timeout)
        except PublishError as error:
            if not isinstance(error, PayloadError):
                error.published = [*ids_of(ranges), *error.published]
            raise
        return ranges

    def close(self) -> None:
        """Nothing is kept open between commits."""

    def _publish_group(self, group: list[Chunk], name: str, timeout: float) -> list[IdRange]:
        try:
            return self._commit(group, name, timeout)
        except HostedHereError:
            attachment = attachment_of(self._path)
            if attachment is None:
                return self._publish_group(group, name, timeout)  # and it does not any more
            port = BrokeredPublisher(attachment.brokers)
            try:
                return port.publish([Chunk(chunk.payloads) for chunk in group], name, timeout)
            finally:
                port.close()

    def _commit(self, group: list[Chunk], name: str, timeout: float) -> list[IdRange]:
        ranges: list[IdRange] = []
        lines: list[bytes] = []
        number = self._number
        for chunk in group:
            if chunk.payloads:
                span = IdRange(self._session, number + 1, number + len(chunk.payloads))
                lines.append(records.publish_lines(span, name, chunk.payloads))
                ranges.append(span)
                number = span.last
        if not lines:
            return []
        with both_locks(self._path, timeout):
            log = LogWriter.open(self._path, boot_id=boot_id(), pid=os.getpid())
            # Before the write: whatever interrupts it (^C), these numbers may be in the log and must never come again.
            self._number = number
            try:
                log.write(lines)
                log.sync()
            except SyncFailedError:
                raise PublishUnknownError(task_id(ranges[0].session, ranges[0].first), timeout) from None
            finally:
                log.close()
            # From here a power loss keeps them.
        return ranges


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
