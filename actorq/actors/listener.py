"""A named socket: the way in for processes that nobody here has started.

It lies in the file system under a name, for its owner alone (mode 0600), and the kernel says who connects. Whoever does
gets a channel like any other, a SEQPACKET socket.

The kernel takes names of up to 107 bytes only. So the name is looked up through an open descriptor: of the folder when
the socket is made, of the socket itself when somebody connects. That also keeps what was opened from being exchanged.
"""

from __future__ import annotations

import os
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, override

from actorq.actors import linux
from actorq.actors.packets import PacketSocket
from actorq.actors.wire import Fd
from actorq.stdio import above_stdio

if TYPE_CHECKING:
    from pathlib import Path

MAX_NAME_BYTES = 80
"""Of the name within its folder."""

BACKLOG = 256
"""How many may wait while the process that answers starts anew."""

_CREDENTIALS = struct.Struct("iii")  # struct ucred: pid, uid, gid


class Peer(NamedTuple):
    """Who is at the other end, by the kernel's word. The pid is 0 if it lives in a pid namespace not seen from here."""

    pid: int
    uid: int


class Listener:
    """The listening end. It may be handed to other processes; one of them answers at a time."""

    def __init__(self, fd: Fd) -> None:
        self._fd = fd

    @classmethod
    def bind(cls, path: Path) -> Listener:
        """Make the socket, in place of one that is there. Nobody else may do the same at the same time."""
        linux.require_linux()
        if len(os.fsencode(path.name)) > MAX_NAME_BYTES:
            raise ValueError(f"the name of a socket is at most {MAX_NAME_BYTES} bytes long: {path.name!r}")
        with suppress(FileNotFoundError):
            path.unlink()
        folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            os.fchmod(made.fileno(), 0o600)  # the file gets the mode of the socket
            made.bind(f"/proc/self/fd/{folder}/{path.name}")
            made.listen(BACKLOG)
            made.setblocking(False)
            return cls(Fd(above_stdio(made.detach())))
        finally:
            made.close()
            os.close(folder)

    def fileno(self) -> int:
        """Return the descriptor, which is readable when somebody waits to be let in."""
        return self._fd.fileno()

    def accept(self) -> tuple[PacketSocket, Peer] | None:
        """Let in the next one that waits: its channel, and who it is. None when nobody waits.

        OSError (EMFILE, ENFILE) when there is no descriptor left; it then waits on.
        """
        listening = socket.socket(fileno=self.fileno())
        try:
            listening.setblocking(False)
            accepted, _ = listening.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return None
        finally:
            listening.detach()
        peer = peer_of(accepted)
        return PacketSocket(accepted.detach()), peer

    def shut(self) -> None:
        """Refuse everybody who comes from here on, whichever process still holds the socket."""
        listening = socket.socket(fileno=self.fileno())
        try:
            listening.shutdown(socket.SHUT_RDWR)
        finally:
            listening.detach()

    def close(self) -> None:
        """Close this process's descriptor."""
        self._fd.close()

    @override
    def __repr__(self) -> str:
        return f"<Listener {self._fd}>"

    @override
    def __reduce__(self) -> tuple[Any, ...]:
        return Listener, (self._fd,)


def connect(path: Path) -> tuple[PacketSocket, Peer] | None:
    """Connect to the socket of that name; None when nobody listens there any more, or never did.

    Never waits: BlockingIOError when as many wait already as may. PermissionError when it is somebody else's.
    """
    linux.require_linux()
    try:
        named = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    connecting = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connecting.setblocking(False)
        connecting.connect(f"/proc/self/fd/{named}")
        peer = peer_of(connecting)
        return PacketSocket(above_stdio(connecting.detach())), peer
    except ConnectionRefusedError:
        return None
    finally:
        connecting.close()
        os.close(named)


def peer_of(connected: socket.socket) -> Peer:
    """Return who is at the other end: of a listening socket, who made it listen."""
    data = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(data)
    return Peer(pid, uid)
