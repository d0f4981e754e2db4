"""One end of a channel that carries whole packets, and fds with them.

An AF_UNIX socket pair of type SEQPACKET: one send is one packet, queued by the kernel whole or not at all, and one
receive takes one whole packet. There is no lock and no state in user space, so a process that is killed in the middle
of either leaves nothing half done behind. The queue lives as long as *any* process holds the receiving end.

Three facts about that socket shape the code:

* `O_NONBLOCK` and time-outs belong to the open file, which all holders share. So neither is ever set: each call says
  `MSG_DONTWAIT`, and whoever must wait polls.
* A full socket reports POLLOUT only once it is three quarters empty, long after there is room for a packet. So a
  sender that waits looks again in short slices.
* A packet is kept in 17 pages and a piece of up to 15 KiB in front of them; above that, some 83 KiB, the piece grows,
  and may not be found. So a large packet travels as a small one with its content in a sealed memfd attached. The first
  byte of every packet says which of the two it is.
"""

from __future__ import annotations

import errno
import os
import queue
import select
import socket
import time
from array import array
from multiprocessing import context, reduction
from typing import TYPE_CHECKING, Any, NamedTuple, override

from actorq.actors import linux

if TYPE_CHECKING:
    from collections.abc import Sequence

type Part = bytes | bytearray | memoryview

DEFAULT_BUFFER_BYTES = 1 << 20
MAX_FDS = 253
"""What the kernel attaches to one packet at most (SCM_MAX_FD)."""
MAX_PACKET_BYTES = 1 << 30
INLINE_BYTES = 78 << 10

_INLINE = b"\x00"
_SPILLED = b"\x01"
_RECEIVE_BYTES = 80 << 10
# Not from `socket`, which lacks some of these names elsewhere.
_MSG_CTRUNC = 0x8
_MSG_TRUNC = 0x20
_MSG_DONTWAIT = 0x40
_MSG_NOSIGNAL = 0x4000
_MSG_CMSG_CLOEXEC = 0x40000000
_SEND_FLAGS = _MSG_DONTWAIT | _MSG_NOSIGNAL
_RECEIVE_FLAGS = _MSG_DONTWAIT | _MSG_CMSG_CLOEXEC
_ANCILLARY_BYTES = 16 + MAX_FDS * 4 + 4
_FULL = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS})
"""Errors of a send that pass: no room, no kernel memory, too many fds under way."""
_SHORTEST_SLICE = 0.0005
_LONGEST_SLICE = 0.008


class Packet(NamedTuple):
    """What one send carried. The fds belong to whoever received it: use them or close them."""

    data: bytes
    fds: tuple[int, ...] = ()


class Parcel:
    """A packet made ready to be offered again and again until there is room; `close` it afterwards."""

    __slots__ = ("_memfd", "buffers", "fds")

    def __init__(self, parts: Sequence[Part], fds: Sequence[int] = ()) -> None:
        if len(fds) > MAX_FDS:
            raise ValueError(f"{len(fds)} fds in one packet; the kernel takes {MAX_FDS}")
        self._memfd = -1
        self.buffers: tuple[Part, ...] = (_INLINE, *parts)
        self.fds = fds
        size = sum(map(len, parts))
        if size > MAX_PACKET_BYTES:
            raise OSError(errno.EMSGSIZE, f"{size} bytes in one packet; nobody takes more than {MAX_PACKET_BYTES}")
        if size >= INLINE_BYTES:
            self.spill()

    def spill(self) -> None:
        """Move the content into a memfd, so that any buffer has room for the rest."""
        if self._memfd >= 0 or len(self.fds) >= MAX_FDS:
            raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
        size = sum(map(len, self.buffers))
        self._memfd = linux.sealed_memfd(self.buffers)
        self.buffers = (_SPILLED, bytes(min(size, INLINE_BYTES)))  # or any number of them would find room
        self.fds = (self._memfd, *self.fds)

    def rights(self) -> list[tuple[int, int, bytes]]:
        """Return the ancillary data that attaches the fds."""
        return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", self.fds).tobytes())] if self.fds else []

    def close(self) -> None:
        """Give the memfd back; the kernel keeps its own hold on it while the packet is under way."""
        if self._memfd >= 0:
            os.close(self._memfd)
            self._memfd = -1


class PacketSocket:
    """One end of a pair; both ends send and receive. Any number of threads and processes may share an end."""

    __slots__ = ("__weakref__", "_recvmsg", "_sendmsg", "_socket", "max_bytes")

    def __init__(self, fd: int) -> None:
        """Take ownership of the fd."""
        linux.require_linux()
        self._socket = _Socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fd)
        if self._socket.gettimeout() is not None:  # the program called socket.setdefaulttimeout
            self._socket.settimeout(None)
        self._recvmsg = self._socket.recvmsg
        self._sendmsg = self._socket.sendmsg
        self.max_bytes = MAX_PACKET_BYTES
        """The largest packet that `receive` accepts; `OSError` (EMSGSIZE) beyond."""

    @classmethod
    def pair(cls, buffer_bytes: int | None = DEFAULT_BUFFER_BYTES) -> tuple[PacketSocket, PacketSocket]:
        """Return two connected ends. The kernel doubles the size of the buffers, and bounds it; None: its default."""
        one, other = linux.seqpacket_pair(buffer_bytes)
        return cls(one), cls(other)

    def fileno(self) -> int:
        """Return the fd, -1 once closed."""
        return self._socket.fileno()

    def buffer_bytes(self) -> int:
        """Return how much the kernel queues for the other end."""
        return self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)

    # -- sending

    def send(self, *parts: Part, fds: Sequence[int] = (), timeout: float | None = None) -> None:
        """Send one packet. `queue.Full` at the deadline; `BrokenPipeError` when nobody holds the other end."""
        if self.try_send(*parts, fds=fds):
            return
        parcel = Parcel(parts, fds)
        try:
            self._offer_until(parcel, None if timeout is None else time.monotonic() + timeout)
        finally:
            parcel.close()

    def try_send(self, *parts: Part, fds: Sequence[int] = ()) -> bool:
        """Send one packet if there is room for it now. `BrokenPipeError` when nobody holds the other end."""
        if not fds and sum(map(len, parts)) < INLINE_BYTES:
            try:
                self._sendmsg((_INLINE, *parts), (), _SEND_FLAGS)
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno != errno.EMSGSIZE:
                    return _send_again_later(error)
            else:
                return True
        parcel = Parcel(parts, fds)
        try:
            return self.offer(parcel)
        finally:
            parcel.close()

    def offer(self, parcel: Parcel) -> bool:
        """Send a parcel if there is room for it now."""
        while True:
            try:
                self._sendmsg(parcel.buffers, parcel.rights(), _SEND_FLAGS)
            except OSError as error:
                if error.errno == errno.EMSGSIZE and parcel.buffers[0] is _INLINE:
                    parcel.spill()
                    continue
                if error.errno in (errno.EMSGSIZE, errno.ENOBUFS) and len(parcel.buffers) > 1:
                    parcel.buffers = (_SPILLED,)  # a small buffer
                    continue
                return _send_again_later(error)
            return True

    def _offer_until(self, parcel: Parcel, deadline: float | None) -> None:
        nap = _SHORTEST_SLICE
        while not self.offer(parcel):
            if deadline is not None:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise queue.Full
                nap = min(nap, left)
            wait_writable(self.fileno(), nap)
            nap = min(nap * 2, _LONGEST_SLICE)

    # -- receiving

    def receive(self, timeout: float | None) -> Packet | None:
        """Take one packet, waiting for it; None on time-out. `EOFError` when nobody holds the other end any more."""
        taken = self.wait_and_take(timeout)
        return None if taken is None else Packet(taken[0][1:], taken[1])

    def try_receive(self) -> Packet | None:
        """Take one packet if there is one now."""
        taken = self.take()
        return None if taken is None else Packet(taken[0][1:], taken[1])

    def wait_and_take(self, timeout: float | None) -> tuple[bytes, tuple[int, ...]] | None:
        """Do as `take`, but wait for a packet."""
        if timeout is not None and timeout <= 0:
            return self.take()
        deadline = None if timeout is None else time.monotonic() + timeout
        left = timeout
        # Whoever waits has just asked, as a rule: to look before that would find nothing.
        while wait_readable(self.fileno(), left):
            taken = self.take()
            if taken is not None:
                return taken
            left = None if deadline is None else deadline - time.monotonic()  # another reader was faster
        return None

    def take(self) -> tuple[bytes, tuple[int, ...]] | None:
        """Take one packet as it came, its first byte being ours: the hot path of mailboxes saves a copy."""
        is_at_end = False
        while True:
            try:
                raw, ancillary, flags, _ = self._recvmsg(_RECEIVE_BYTES, _ANCILLARY_BYTES, _RECEIVE_FLAGS)
            except BlockingIOError:
                return None
            except ConnectionResetError:
                # The other end went with packets of ours unread. What it had sent before is still there: read on.
                continue
            if not ancillary and raw[:1] == _INLINE and not flags & (_MSG_TRUNC | _MSG_CTRUNC):
                return raw, ()
            if not raw and not is_at_end:
                # The kernel looks for a packet first and for the end second. If the last packet and the end come in
                # between, it says that this is the end, though the packet is there. So it is asked once more.
                is_at_end = True
                continue
            return self._unwrap(raw, ancillary, flags)

    def _unwrap(self, raw: bytes, ancillary: list[tuple[int, int, bytes]], flags: int) -> tuple[bytes, tuple[int, ...]]:
        fds = _fds_in(ancillary)
        if not raw:
            raise EOFError
        try:
            if flags & _MSG_TRUNC:
                raise OSError(errno.EMSGSIZE, "a packet larger than any that is sent here")
            if flags & _MSG_CTRUNC:
                raise OSError(errno.EMFILE, "no free fd for those that came with a packet; the packet is lost")
            if raw[:1] == _INLINE:
                return raw, fds
            if raw[:1] != _SPILLED or not fds:
                raise OSError(errno.EBADMSG, "not a packet of ours")
            try:
                content = linux.read_sealed_memfd(fds[0], self.max_bytes + 1)
            except ValueError as error:
                raise OSError(errno.EMSGSIZE, str(error)) from error
        except BaseException:
            close_fds(fds)
            raise
        os.close(fds[0])
        return content, fds[1:]

    def wait_readable(self, timeout: float | None) -> bool:
        """Wait until there is something to receive, or the other end is gone; False on time-out."""
        return wait_readable(self.fileno(), timeout)

    # -- the end

    def shut_receiving(self) -> None:
        """Refuse every later packet, whoever holds this end; what is queued can still be taken, then comes EOF."""
        try:
            self._socket.shutdown(socket.SHUT_RD)
        except OSError as error:
            if error.errno not in (errno.ENOTCONN, errno.EBADF):
                raise

    def is_shut(self) -> bool:
        """Whether `shut_receiving` was called by any holder of this end, or nobody holds the other any more."""
        poll = select.poll()
        poll.register(self.fileno(), select.POLLRDHUP)
        return bool(poll.poll(0))

    def close(self) -> None:
        """Close this end."""
        self._socket.close()

    def detach(self) -> int:
        """Give the fd away: it is the caller's to close now."""
        return self._socket.detach()

    def duplicate(self) -> PacketSocket:
        """Return a second object on the same end, with an fd of its own."""
        return PacketSocket(os.dup(self.fileno()))

    @override
    def __repr__(self) -> str:
        return f"<PacketSocket fd={self.fileno()}>"

    @override
    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to a child of `multiprocessing`. Inside messages `wire` carries it instead."""
        assert_by_inheritance(self)
        return _rebuild, (reduction.DupFd(self.fileno()),)


class NotByValueError(RuntimeError):
    """A channel was pickled by itself. It travels in messages, and as an argument of a process."""


def assert_by_inheritance(channel: object) -> None:
    """Raise `NotByValueError` unless `multiprocessing` is just pickling the arguments of a child."""
    if context.get_spawning_popen() is None:
        raise NotByValueError(f"a {type(channel).__name__} travels in messages and to children, not as plain bytes")


def close_fds(fds: Sequence[int]) -> None:
    """Close fds that came with a packet and that nobody wants."""
    for fd in fds:
        os.close(fd)


def wait_readable(fd: int, timeout: float | None) -> bool:
    """Wait until there is something to read, or the other end is gone; False on time-out."""
    return _wait(fd, select.POLLIN, timeout)


def wait_writable(fd: int, timeout: float | None) -> bool:
    """Wait until the kernel says that there is much room again, or the other end is gone; False on time-out."""
    return _wait(fd, select.POLLOUT, timeout)


class _Socket(socket.SocketType):
    """A socket that may simply be dropped: refs come and go with messages, nobody closes them by hand.

    The type in C: `socket.socket` has a layer of Python around it, for files and for enums, that is not used here.
    """

    __slots__ = ()

    def __del__(self) -> None:
        self.close()


def _wait(fd: int, events: int, timeout: float | None) -> bool:
    poll = select.poll()
    poll.register(fd, events)
    return bool(poll.poll(None if timeout is None else min(max(0.0, timeout * 1000), 0x7FFF_FFFF)))


def _send_again_later(error: OSError) -> bool:
    if error.errno in _FULL:
        return False
    if error.errno == errno.ECONNRESET:  # the kernel's other word for it, when packets of the other end were unread
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) from error
    raise error


def _fds_in(ancillary: list[tuple[int, int, bytes]]) -> tuple[int, ...]:
    fds = array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return tuple(fds)


def _rebuild(fd: Any) -> PacketSocket:
    return PacketSocket(fd.detach())
