"""Objects as bytes plus fds.

Pickle, protocol 5, in which every channel (`PacketSocket`, and with it each `Mailbox` and `ActorRef`; a
`multiprocessing` Connection; a plain `Fd`) becomes an index into the fds that travel attached to the packet. The kernel
duplicates them into the receiver, so nothing can be lost between the two and nobody has to stay alive for it.
"""

from __future__ import annotations

import io
import os
import pickle
import threading
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, override

from actorq.actors.packets import MAX_FDS, NotByValueError, PacketSocket, assert_by_inheritance, close_fds

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Fd:
    """Any file descriptor, to be sent inside a message. It owns the fd: closed with the object unless detached."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        """Return the fd, -1 once closed or detached."""
        return self._fd

    def detach(self) -> int:
        """Give the fd away: it is the caller's to close now."""
        fd, self._fd = self._fd, -1
        return fd

    def close(self) -> None:
        """Close the fd."""
        if self._fd >= 0:
            os.close(self.detach())

    def __del__(self) -> None:
        self.close()

    @override
    def __repr__(self) -> str:
        return f"Fd({self._fd})"

    @override
    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to a child of `multiprocessing`; inside messages `pack` sees to it."""
        assert_by_inheritance(self)
        return _rebuild, (reduction.DupFd(self._fd),)


def _rebuild(fd: Any) -> Fd:
    return Fd(fd.detach())


_CONNECTION = b"multiprocessing.connection"  # alone among channels, plain pickle writes its fd as a number


class Attached(list[int]):
    """Fds to be attached to a packet. They belong to the objects that were packed; this keeps those alive."""

    def __init__(self) -> None:
        super().__init__()
        self.owners: list[object] = []


def pack(value: object) -> tuple[bytes, Sequence[int]]:
    """Return the pickle and the fds to attach to it."""
    # Most messages hold no channel: those need no pickler of ours, which would cost 2 µs more.
    try:
        data = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except NotByValueError:
        pass
    else:
        if _CONNECTION not in data:
            return data, ()
    buffer = io.BytesIO()
    pickler = _Pickler(buffer)
    pickler.dump(value)
    if len(pickler.fds) > MAX_FDS:
        raise ValueError(f"{len(pickler.fds)} fds in one message; the kernel carries {MAX_FDS}")
    return buffer.getvalue(), pickler.fds


type Loads = "Callable[[bytes | memoryview], Any]"


def unpack(data: bytes | memoryview, fds: Sequence[int] = (), loads: Loads = pickle.loads) -> Any:
    """Return the object again. It owns the fds now; those that it does not use are closed, also on error."""
    if not fds:
        return loads(data)
    outer, _arrived.fds = _arrived.fds, list(fds)
    try:
        return loads(data)
    finally:
        close_fds([fd for fd in _arrived.fds if fd >= 0])
        _arrived.fds = outer


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.fds = Attached()

    @override
    def reducer_override(self, obj: Any) -> Any:
        # Asked for each object that is not a plain builtin: 0.1 µs.
        if isinstance(obj, PacketSocket):
            return _socket, (self._attach(obj),)
        if isinstance(obj, Fd):
            return _fd, (self._attach(obj),)
        if isinstance(obj, Connection):
            return _connection, (self._attach(obj), obj.readable, obj.writable)
        return NotImplemented

    def _attach(self, owner: PacketSocket | Fd | Connection) -> int:
        fd = owner.fileno()
        if fd < 0:
            raise pickle.PicklingError("a closed channel cannot travel in a message")
        self.fds.append(fd)
        self.fds.owners.append(owner)
        return len(self.fds) - 1


class _Arrived(threading.local):
    """The fds of the packet that this thread unpacks; -1 where an object has taken its own."""

    def __init__(self) -> None:
        self.fds: list[int] = []

    def claim(self, index: int) -> int:
        fd, self.fds[index] = self.fds[index], -1
        return fd


_arrived = _Arrived()


def _socket(index: int) -> PacketSocket:
    return PacketSocket(_arrived.claim(index))


def _fd(index: int) -> Fd:
    return Fd(_arrived.claim(index))


def _connection(index: int, readable: bool, writable: bool) -> Connection:
    return Connection(_arrived.claim(index), readable, writable)
