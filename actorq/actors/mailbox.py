"""A `multiprocessing` Queue that survives SIGKILL of any reader or writer at any instant.

A stock Queue keeps a lock while it waits in `get`, writes a message in pieces, and hands `put` to a thread; whoever is
killed in one of these moments leaves a queue that hangs, tears or forgets. What is replaced here is all of that: the
transport (a `PacketSocket` pair), the locks (none), the thread (none). What is kept is the interface.

* `put` pickles in the caller and returns once the kernel has the message. Every put has a deadline.
* A message is there whole or not at all. Messages of one writer stay in order.
* The bound is in bytes, kept by the kernel; nothing about it can be left wrong by a process that dies.
* One process reads at a time. The backlog lives as long as any process holds the reading end.

The first byte of what travels on a mailbox is its kind. `put` and `get` use TELL; the rest is the runtime's.
"""

from __future__ import annotations

import multiprocessing.queues
import queue
from typing import TYPE_CHECKING, Any, override

from actorq import linux
from actorq.actors.packets import Packet, PacketSocket, Part, close_fds, wait_readable
from actorq.actors.program import unpack_message
from actorq.actors.wire import pack
from actorq.errors import MailboxFullError

if TYPE_CHECKING:
    from collections.abc import Sequence

TELL = b"\x01"  # a pickled message
ASK = b"\x02"  # a pickled message whose first fd is the Pipe for the answer
FRAME = b"\x03"  # bytes, for actors that never unpickle
STOP = b"\x04"  # the end: everything before it is still handled
DOWN = b"\x05"  # a Down as JSON

DEFAULT_CAPACITY_BYTES = 4 << 20
DEFAULT_PUT_SECONDS = 30.0


class Mailbox(multiprocessing.queues.Queue[Any]):
    """A bounded queue of messages between processes. Hand it to a child as an argument, or send it in a message."""

    reader: PacketSocket | None
    writer: PacketSocket | None

    # The base would make a pipe, three semaphores and, later, a thread: nothing of it is wanted.
    def __init__(self, capacity_bytes: int = DEFAULT_CAPACITY_BYTES, name: str = "") -> None:
        """Ask the kernel for that much room. It counts some 700 bytes on top of each message, and has a limit."""
        self.name = name
        self.reader, self.writer = PacketSocket.pair(capacity_bytes)

    @classmethod
    def of_ends(cls, name: str, reader: PacketSocket | None, writer: PacketSocket | None) -> Mailbox:
        """Return a mailbox made of ends that exist already; either may be missing."""
        mailbox = cls.__new__(cls)
        mailbox.name = name
        mailbox.reader = reader
        mailbox.writer = writer
        return mailbox

    # -- the Queue interface

    @override
    def put(self, obj: object, block: bool = True, timeout: float | None = None) -> None:
        """Send an object. `MailboxFullError` (a `queue.Full`) when there is no room in time; None means 30 s."""
        data, fds = pack(obj)
        self._send(TELL, data, fds=fds, timeout=_seconds(block, timeout))

    @override
    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Take the next object. `queue.Empty` on time-out; `EOFError` when no writer is left anywhere."""
        taken = self._take(timeout if block else 0.0)
        if taken is None:
            raise queue.Empty
        raw, fds = taken
        if raw[1:2] != TELL:
            close_fds(fds)
            raise ValueError(f"a packet of kind {raw[1]} in a mailbox read by get(); an actor reads those")
        return unpack_message(raw[2:], fds)

    @override
    def put_nowait(self, obj: object) -> None:
        self.put(obj, block=False)

    @override
    def get_nowait(self) -> Any:
        return self.get(block=False)

    @override
    def empty(self) -> bool:
        return not wait_readable(self._reading_end().fileno(), 0)

    @override
    def full(self) -> bool:
        end = self._writing_end()
        return linux.unread_bytes(end.fileno()) >= end.buffer_bytes()

    @override
    def qsize(self) -> int:
        """Not known: the kernel counts bytes."""
        raise NotImplementedError("the kernel counts the bytes of a mailbox, not its messages; see unread_bytes()")

    def unread_bytes(self) -> int:
        """Return what the waiting messages occupy, by the kernel's count."""
        return linux.unread_bytes(self._writing_end().fileno())

    @override
    def close(self) -> None:
        """Close both ends in this process; the others keep theirs."""
        for end in (self.reader, self.writer):
            if end is not None:
                end.close()

    @override
    def join_thread(self) -> None:
        """Nothing to join: what was put is with the kernel."""

    @override
    def cancel_join_thread(self) -> None:
        """Nothing to cancel."""

    # -- frames: bytes that are never unpickled

    def send(self, *parts: Part, fds: Sequence[int] = (), timeout: float = DEFAULT_PUT_SECONDS) -> None:
        """Send the parts as one frame. `MailboxFullError` when there is no room in time."""
        self._send(FRAME, *parts, fds=fds, timeout=timeout)

    def try_send(self, *parts: Part, fds: Sequence[int] = ()) -> bool:
        """Send the parts as one frame if there is room now."""
        return self._writing_end().try_send(FRAME, *parts, fds=fds)

    def receive(self, timeout: float | None) -> Packet | None:
        """Take one frame; None on time-out. `EOFError` when no writer is left anywhere."""
        taken = self._take(timeout)
        if taken is None:
            return None
        raw, fds = taken
        if raw[1:2] != FRAME:
            close_fds(fds)
            raise ValueError(f"a packet of kind {raw[1]} in a mailbox of frames")
        return Packet(raw[2:], fds)

    # -- inside

    def _send(self, kind: bytes, *parts: Part, fds: Sequence[int], timeout: float) -> None:
        end = self._writing_end()
        try:
            end.send(kind, *parts, fds=fds, timeout=timeout)
        except queue.Full:
            raise MailboxFullError(self.name, timeout) from None

    def _take(self, timeout: float | None) -> tuple[bytes, tuple[int, ...]] | None:
        return self._reading_end().wait_and_take(timeout)

    def _reading_end(self) -> PacketSocket:
        if self.reader is None:
            raise ValueError(f"{self!r} has no reading end here")
        return self.reader

    def _writing_end(self) -> PacketSocket:
        if self.writer is None:
            raise ValueError(f"{self!r} has no writing end here")
        return self.writer

    @override
    def __repr__(self) -> str:
        ends = [name for name, end in (("reader", self.reader), ("writer", self.writer)) if end is not None]
        return f"<Mailbox {self.name!r} {'+'.join(ends) or 'closed'}>"

    @override
    def __reduce__(self) -> tuple[Any, ...]:
        # The ends travel: by `multiprocessing` to a child, by `wire` in a message.
        return _rebuild, (type(self), self.name, self.reader, self.writer)


def _rebuild(
    cls: type[Mailbox], name: str, reader: PacketSocket | None, writer: PacketSocket | None
) -> Mailbox:  # a class method does not pickle by reference under every start method
    return cls.of_ends(name, reader, writer)


def _seconds(block: bool, timeout: float | None) -> float:
    if not block:
        return 0.0
    return DEFAULT_PUT_SECONDS if timeout is None else timeout
