"""Publishing: the same client for a caller's own process and for a `Publisher` actor.

    BrokeredPublisher   numbered requests to the writer, acknowledged after fdatasync; see brokered_publisher.py
    DirectPublisher     no broker runs: takes the locks for one commit and writes it by itself; see direct_publisher.py
    RovingPublisher     for a process that is no part of a tree: either of the two, whichever can be had

All three take chunks of encoded payloads and return the ranges of ids under which they are durable.
"""

from __future__ import annotations

import time
from itertools import chain, islice
from typing import TYPE_CHECKING, NamedTuple, Protocol

from actorq.errors import PayloadError, PublishError
from actorq.tasks.payload import encode_at_once, encode_payload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from actorq.brokers.session import Brokers
    from actorq.tasks.ids import IdRange

CHUNK_BYTES = 47 << 10
"""Payloads in one request: with what stands beside those of 100 bytes in the file, they fit into one packet."""

CHUNK_TASKS = 1000

CHUNK_SECONDS = 0.005
"""A slow iterable does not hold back for longer what it has given already."""

SLICE_TASKS = CHUNK_TASKS // 16
"""Items of a list that are encoded at once: each may be of 1 MiB, and those before a bad one are encoded twice."""

WINDOW = 16
"""Requests in flight before the publisher waits for an acknowledgement."""

DEFAULT_TIMEOUT = 30.0


class Chunk(NamedTuple):
    """Payloads that travel together, and the error that ended the stream behind them, if any."""

    payloads: list[bytes]
    error: PayloadError | None = None


class BadItemError(Exception):
    """An item of the stream is no payload; all before it are in. Never leaves the publishers."""

    def __init__(self, error: PayloadError) -> None:
        super().__init__(error)
        self.error = error

    def as_payload_error(self, ranges: Iterable[IdRange]) -> PayloadError:
        """Return what the caller gets to see."""
        return PayloadError(self.error.reason, self.error.where, self.error.index, tuple(ids_of(ranges)))


class SettledError(Exception):
    """The brokers are gone, and what they had not acknowledged is in the queue without them. Never leaves actorq.

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


class PublishPort(Protocol):
    """What `Queue` needs of either publisher."""

    def publish(self, chunks: Iterable[Chunk], name: str, timeout: float) -> list[IdRange]:
        """Make all tasks durable and return their ids, in order."""

    def close(self) -> None:
        """Let go of channels and files."""


def chunked(values: Iterable[object]) -> Iterator[Chunk]:
    """Encode values and gather them into chunks; a bad one ends the stream, and all before it go out."""
    payloads: list[bytes] = []
    size = taken = 0
    if type(values) is list or type(values) is tuple:
        # Nobody else's code runs between two of them, which might change what was not encoded yet: many at once.
        while encoded := encode_at_once(values[taken : taken + SLICE_TASKS]):
            more = sum(map(len, encoded)) + len(encoded)
            if more > CHUNK_BYTES:
                break
            if size + more > CHUNK_BYTES or len(payloads) + len(encoded) > CHUNK_TASKS:
                yield Chunk(payloads)
                payloads, size = [], 0
            taken += len(encoded)
            payloads += encoded
            size += more
        values = islice(values, taken, None) if taken < len(values) else ()
    sent = taken - len(payloads)
    clock = time.monotonic
    until = clock() + CHUNK_SECONDS
    for value in values:
        try:
            payload = encode_payload(value)
        except PayloadError as error:
            yield Chunk(payloads, PayloadError(error.reason, error.where, sent + len(payloads)))
            return
        size += len(payload) + 1
        # A look at the clock for each: the next one may be a long time coming.
        if size > CHUNK_BYTES or len(payloads) == CHUNK_TASKS or clock() > until:
            if payloads:
                yield Chunk(payloads)
            sent += len(payloads)
            payloads, size, until = [], len(payload) + 1, clock() + CHUNK_SECONDS
        payloads.append(payload)
    if payloads:
        yield Chunk(payloads)


def ids_of(ranges: Iterable[IdRange]) -> list[str]:
    """Return the ids of ranges, one string each."""
    return [f"{span.session}-{number}" for span in ranges for number in range(span.first, span.last + 1)]


class RovingPublisher:
    """Publishes through whatever there is: the brokers of another process, or the file itself while there are none."""

    def __init__(self, direct: PublishPort, join: Callable[[Brokers], PublishPort]) -> None:
        self._direct = direct
        self._join = join
        self._joined: PublishPort | None = None

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
                    self._joined = self._join(news.brokers)
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
