"""How a broker sends: never waiting, and many small deliveries in one frame. And how it reads what it was sent."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from actorq.actors.packets import close_fds
from actorq.brokers.messages import (
    Attach,
    Channel,
    Connect,
    Deliver,
    EventOwner,
    MalformedEventError,
    Message,
    ToClient,
    encode,
    message_in,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from actorq.actors import Actor, Mailbox, Packet

logger = logging.getLogger("actorq")

MAX_FRAME_BYTES = 48 << 10
"""Deliveries are gathered up to this size: what still travels as one packet."""

ENTRY_BYTES = 100
"""What an assignment takes beside its lines, at most: the ids of its tasks, a consumer, and five numbers."""

KEPT_MEMORY_BYTES = 16 << 20
"""A broker handles messages up to a batch of a megabyte, and what it makes of them, several times over."""

WITH_DESCRIPTORS = frozenset({Connect, Attach, Channel})
"""What comes with descriptors: those of a client."""


class Post:
    """A broker's way to another one's mailbox. The brokers send in a circle, so nobody may wait for a full one."""

    def __init__(self, broker: Actor, mailbox: Mailbox, owner: EventOwner) -> None:
        self._outbox = broker.outbox(mailbox)
        self._owner = owner
        self._entries: list[list[object]] = []
        self._frames: list[bytes] = []
        self._size = 0

    @property
    def is_backed_up(self) -> bool:
        """Whether frames wait because the mailbox is full."""
        return self._outbox.pending > 0

    def send(self, message: Message) -> None:
        """Send one message now, or as soon as there is room; in order."""
        self._outbox.send(encode(self._owner, message))

    def send_frame(self, frame: bytes) -> None:
        """Send an event that was encoded before."""
        self._outbox.send(frame)

    def send_with(self, message: Message, fds: tuple[int, ...]) -> None:
        """Send one message with file descriptors."""
        self._outbox.send(encode(self._owner, message), fds=fds)

    def deliver(self, session: str, message: ToClient | bytes) -> None:
        """Gather a message for a client, or its frame; `flush` sends what was gathered."""
        frame = message if isinstance(message, bytes) else encode(self._owner, message)
        if self._frames and self._size + len(frame) > MAX_FRAME_BYTES:
            self.flush()
        self._entries.append([session, len(frame)])
        self._frames.append(frame)
        self._size += len(frame)

    def flush(self) -> None:
        """Send the gathered deliveries as one frame."""
        if self._frames:
            self.send(Deliver(self._entries, b"".join(self._frames)))
            self._entries, self._frames, self._size = [], [], 0


def messages_in(frames: Iterable[Packet]) -> Iterator[tuple[Message, tuple[int, ...]]]:
    """Yield each message with the descriptors that came with it, which are the caller's from then on.

    One bad frame must not stop the queue for everybody else: it is dropped, and its descriptors are closed.
    """
    for frame in frames:
        try:
            message = message_in(frame.data)
            _check_descriptors(message, len(frame.fds))
        except MalformedEventError:
            logger.exception("message dropped: it is malformed")
            close_fds(frame.fds)
            continue
        yield message, frame.fds


def _check_descriptors(message: Message, number: int) -> None:
    """A client comes with its channel and a pidfd, if it runs tasks also with its slot and a pidfd of its supervisor.

    Nothing else has descriptors.
    """
    if number not in ((2, 4) if type(message) in WITH_DESCRIPTORS else (0,)):
        raise MalformedEventError(f"a {type(message).__name__} came with {number} descriptors")
