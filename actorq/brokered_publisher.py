"""Publishing through the brokers, wherever they run: numbered requests, a window of them in flight, acknowledgements.

`Publisher` is an actor that does nothing else, in a process of its own.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Protocol, override

from actorq import failpoints
from actorq.actors.actor import Actor
from actorq.brokers.messages import EventOwner, Publish, Refused
from actorq.brokers.session import REPEAT_SECONDS, Session
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
from actorq.publisher import DEFAULT_TIMEOUT, WINDOW, BadItemError, Chunk, SettledError, chunked, ids_of
from actorq.tasks.ids import IdRange, task_id
from actorq.tasks.payload import encode_payload
from actorq.tasks.task import TaskIn

if TYPE_CHECKING:
    from collections.abc import Iterable

    from actorq.brokers.session import Brokers


class Refuge(Protocol):
    """What a publisher does whose brokers may go for good."""

    def find(self) -> Brokers | None:
        """Return the brokers that run now."""

    def settle(self, session: Session, timeout: float) -> bool:
        """See to the requests that are not acknowledged, if there are no brokers; False if it cannot be done now."""

    def worry(self, seconds: float) -> None:
        """Hear that the brokers have not answered for so long."""


class BrokeredPublisher:
    """Publishes through the brokers. One thread at a time; a new session after anything that did not succeed."""

    def __init__(self, brokers: Brokers, refuge: Refuge | None = None) -> None:
        """Publish through these brokers; with a refuge also beyond their end."""
        self._brokers = brokers
        self._refuge = refuge
        self._session: Session | None = None
        self._is_publishing = False

    def publish(self, chunks: Iterable[Chunk], name: str, timeout: float = DEFAULT_TIMEOUT) -> list[IdRange]:
        """Publish with a window of requests in flight. `timeout` is for each wait, in seconds.

        Raises SettledError when the brokers are gone for good: what it names is in, of what it has taken from chunks.
        """
        if self._is_publishing:  # by a signal handler meanwhile, or by the generator that our items come from
            within = BrokeredPublisher(self._brokers, self._refuge)
            try:
                return within.publish(chunks, name, timeout)
            finally:
                within.close()
        self._is_publishing = True
        try:
            return self._publish(chunks, name, timeout)
        finally:
            self._is_publishing = False

    def _publish(self, chunks: Iterable[Chunk], name: str, timeout: float) -> list[IdRange]:
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
