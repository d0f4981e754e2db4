"""Sends that never wait: what finds no room is kept, in order, and sent when there is some."""

from __future__ import annotations

import os
from collections import deque
from typing import TYPE_CHECKING, override

from actorq.actors.mailbox import FRAME, Mailbox
from actorq.actors.packets import Parcel
from actorq.errors import MailboxFullError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from actorq.actors.packets import PacketSocket, Part


class Outbox:
    """The way to one receiver, for an actor that must not wait for it. The actor's loop empties it."""

    def __init__(
        self,
        socket: PacketSocket,
        kind: bytes = b"",
        name: str = "",
        limit_bytes: int | None = None,
        on_broken: Callable[[], None] | None = None,
    ) -> None:
        """Send to a socket; `kind` goes in front of every packet. Use `Actor.outbox`, which also has it flushed."""
        self.pending = 0
        """Bytes that are kept."""
        self.is_broken = False
        """Whether the other end is gone. From then on everything is dropped."""
        self._socket = socket
        self._kind = kind
        self._name = name
        self._limit = limit_bytes
        self._on_broken = on_broken
        self._is_retired = False
        self.on_kept: Callable[[], object] | None = None
        """Called when something is kept and nothing was before."""
        self._kept: deque[_Kept] = deque()

    @classmethod
    def to(
        cls,
        target: Mailbox | PacketSocket,
        limit_bytes: int | None = None,
        on_broken: Callable[[], None] | None = None,
    ) -> Outbox:
        """Return an outbox of frames to a mailbox, or of packets to a socket."""
        if not isinstance(target, Mailbox):
            return cls(target, b"", repr(target), limit_bytes, on_broken)
        if target.writer is None:
            raise ValueError(f"{target!r} has no writing end here")
        return cls(target.writer, FRAME, target.name, limit_bytes, on_broken)

    def send(self, *parts: Part, fds: Sequence[int] = ()) -> bool:
        """Send one packet now, or keep a copy of it behind those that wait. False when the other end is gone.

        The fds stay the caller's: a kept packet has duplicates. `MailboxFullError` when more than `limit_bytes` would
        be kept; the packet is not.
        """
        if self.is_broken:
            return False
        if not self._kept:
            try:
                if self._socket.try_send(*((self._kind, *parts) if self._kind else parts), fds=fds):
                    return True
            except BrokenPipeError:
                self._break()
                return False
        kept = _Kept(b"".join((self._kind, *parts)), [])
        if self._limit is not None and self.pending + kept.size > self._limit:
            raise MailboxFullError(self._name, 0.0)
        try:
            for fd in fds:
                kept.fds.append(os.dup(fd))
        except BaseException:  # no descriptor left
            kept.close()
            raise
        self._kept.append(kept)
        self.pending += kept.size
        if len(self._kept) == 1 and self.on_kept is not None:
            self.on_kept()
        return True

    def flush(self) -> bool:
        """Send what is kept, as far as there is room; True when anything went."""
        moved = False
        try:
            while self._kept:
                kept = self._kept[0]
                if not self._socket.offer(kept.parcel()):
                    break
                self._kept.popleft()
                kept.close()
                self.pending -= kept.size
                moved = True
        except BrokenPipeError:
            self._break()
        if self._is_retired and not self._kept:
            self.close()
        return moved

    def retire(self) -> None:
        """Close as soon as nothing is kept any more."""
        self._is_retired = True
        if not self._kept:
            self.close()

    def close(self) -> None:
        """Drop what is kept and send nothing more. The target stays open: it is the caller's."""
        self.is_broken = True
        for kept in self._kept:
            kept.close()
        self._kept.clear()
        self.pending = 0

    def _break(self) -> None:
        self.close()
        if self._on_broken is not None:
            self._on_broken()

    @override
    def __repr__(self) -> str:
        state = "broken" if self.is_broken else f"{len(self._kept)} packets, {self.pending} bytes kept"
        return f"<Outbox to {self._name} {state}>"


class _Kept:
    """A packet that waits, with fds of its own."""

    __slots__ = ("_data", "_parcel", "fds", "size")

    def __init__(self, data: bytes, fds: list[int]) -> None:
        self._data = data
        self._parcel: Parcel | None = None
        self.fds = fds
        self.size = len(data)

    def parcel(self) -> Parcel:
        """Return it ready to be offered; made once, since a large one becomes a memfd."""
        if self._parcel is None:
            self._parcel = Parcel((self._data,), self.fds)
        return self._parcel

    def close(self) -> None:
        if self._parcel is not None:
            self._parcel.close()
        for fd in self.fds:
            os.close(fd)
        self.fds = []
