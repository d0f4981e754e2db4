"""Publishing: the same client for a caller's own process and for a `Publisher` actor.

    BrokeredPublisher   numbered requests to the writer, a window of them in flight, acknowledged after fdatasync
    DirectPublisher     no broker runs: takes the locks for one commit and writes it by itself; see direct_publisher.py
    RovingPublisher     for a process that is no part of a tree: either of the two, whichever can be had
    Publisher           an actor around the first, in a process of its own

The first three take chunks of encoded payloads and return the ranges of ids under which they are durable.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple, Protocol, override

from actorq import failpoints
from actorq.actors import Actor
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
    QueueFullError,
)
from actorq.tasks.ids import IdRange, task_id
from actorq.tasks.payload import encode_payload
from actorq.tasks.task import TaskIn

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

logger = logging.getLogger("actorq")

CHUNK_BYTES = 40 << 10
"""Payloads in one request: what still travels as one packet."""

CHUNK_TASKS = 1000

CHUNK_SECONDS = 0.005
"""A slow iterable does not hold back for longer what it has given already."""

WINDOW = 16
"""Requests in flight before the publisher waits for an acknowledgement."""

DEFAULT_TIMEOUT = 30.0


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


class SettledError(Exception):
    """The brokers are gone, and what they had not acknowledged is in the queue without them. Never leaves this module.

    `ranges` is all that was taken from the chunks until then.
    """

    def __init__(self, ranges: list[IdRange]) -> None:
        super().__init__(ranges)
        self.ranges = ranges


class HostedError(Exception):
    """Somebody hosts the queue, so that it cannot be written directly; `brokers` are his. Never leaves actorq.

    `ranges` is in already; `group` was taken from the chunks and is not.
    """

    def __init__(self, brokers: Brokers) -> None:
        super().__init__()
        self.brokers = brokers
        self.ranges: list[IdRange] = []
        self.group: list[Chunk] = []


class Refuge(Protocol):
    """What a publisher does whose brokers may go for good."""

    def find(self) -> Brokers | None:
        """Return the brokers that run now."""

    def settle(self, session: Session, timeout: float) -> bool:
        """See to the requests that are not acknowledged, if there are no brokers; False if it cannot be done now."""

    def worry(self, seconds: float) -> None:
        """Hear that the brokers have not answered for so long."""


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

    def __init__(self, brokers: Brokers, refuge: Refuge | None = None) -> None:
        """Publish through these brokers; with a refuge also beyond their end."""
        self._brokers = brokers
        self._refuge = refuge
        self._session: Session | None = None

    def publish(self, chunks: Iterable[Chunk], name: str, timeout: float = DEFAULT_TIMEOUT) -> list[IdRange]:
        """Publish with a window of requests in flight. `timeout` is for each wait, in seconds.

        Raises SettledError when the brokers are gone for good: what it names is in, of what it has taken from chunks.
        """
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
                if len(session.requests) >= WINDOW or session.is_lost:
                    self._wait(session, 0 if session.is_lost else WINDOW - 1, timeout)
                if self._session is None:
                    raise SettledError(ranges)
            self._wait(session, 0, timeout)
            if failpoints.ARMED:
                failpoints.hit("publisher.acknowledged")
            if self._session is None:
                raise SettledError(ranges)
        except SettledError:
            raise
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
            find = None if self._refuge is None else self._refuge.find
            self._session = Session(self._brokers, EventOwner.PUBLISHER, find=find)
            try:
                self._session.connect(timeout)
            except MailboxFullError:
                raise PublishUnknownError(task_id(self._session.id, 1), timeout) from None
            session = self._session
            self._wait(session, 0, timeout)
            if self._session is None:
                raise SettledError([])
        return self._session

    def _send(self, session: Session, payloads: list[bytes], name: str, timeout: float) -> None:
        first = session.requests.number + 1
        publish = Publish(session.id, first, len(payloads), name, b"\n".join(payloads))
        request = session.requests.add(session.encode(publish), len(payloads))
        if failpoints.ARMED:
            failpoints.hit("publisher.publishing")
        try:
            session.send(request, timeout if self._refuge is None else min(timeout, REPEAT_SECONDS))
        except MailboxFullError:
            if self._refuge is not None:
                return  # it is sent again like what is lost, and `_wait` finds out why nobody reads
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
            asked = time.monotonic()
            message = session.receive(min(left, REPEAT_SECONDS))
            # One that has been acknowledged since was refused to a stranger, who was let in at the second try: that
            # answer may come first.
            if isinstance(message, Refused) and message.number > session.requests.acknowledged:
                raise refusal(message)
            if session.is_lost and self._refuge is not None and self._refuge.settle(session, timeout):
                self.close()
                return
            is_silent = message is None and time.monotonic() - asked >= REPEAT_SECONDS
            if is_silent and not session.is_lost:
                silences = session.repeat_after_silence()
                if self._refuge is not None:
                    self._refuge.worry(silences * REPEAT_SECONDS)
            if len(session.requests) < before:
                deadline = time.monotonic() + timeout


class RovingPublisher:
    """Publishes through whatever there is: the brokers of another process, or the file itself while there are none."""

    def __init__(self, direct: PublishPort, refuge: Refuge) -> None:
        self._direct = direct
        self._refuge = refuge
        self._joined: BrokeredPublisher | None = None

    def publish(self, chunks: Iterable[Chunk], name: str, timeout: float = DEFAULT_TIMEOUT) -> list[IdRange]:
        """Publish; hosts may come and go meanwhile. `timeout` is for each wait, in seconds."""
        ranges: list[IdRange] = []
        rest = iter(chunks)
        try:
            while True:
                port = self._direct if self._joined is None else self._joined
                try:
                    ranges += port.publish(rest, name, timeout)
                except HostedError as news:
                    ranges += news.ranges
                    rest = chain(news.group, rest)
                    self._joined = BrokeredPublisher(news.brokers, self._refuge)
                except SettledError as news:
                    ranges += news.ranges
                    self._leave()
                else:
                    return ranges
        except PublishError as error:
            error.published = ids_of(ranges) + error.published
            raise

    def close(self) -> None:
        """Let go of both ways."""
        self._leave()
        self._direct.close()

    def _leave(self) -> None:
        if self._joined is not None:
            self._joined.close()
            self._joined = None


def refusal(message: Refused) -> PublishRejectedError:
    """Return the error that a refusal stands for."""
    if message.kind == "disk_full":
        return DiskFullError(message.where)
    if message.kind == "queue_full":
        return QueueFullError(message.where, message.reason)
    return PayloadError(message.reason, message.where, message.index)


class Publisher(Actor):
    """An actor that publishes what it is told: a `TaskIn` (answers its id) or a list of them (answers the ids)."""

    def __init__(self, brokers: Brokers, timeout: float = DEFAULT_TIMEOUT) -> None:
        self._port = BrokeredPublisher(brokers)
        self._timeout = timeout

    @override
    def receive(self, message: object) -> str | list[str]:
        match message:
            case TaskIn(data, name):
                return ids_of(self._port.publish([Chunk([encode_payload(data)])], name, self._timeout))[0]
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
