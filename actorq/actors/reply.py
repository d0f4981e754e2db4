"""The answer to an ask, on a Pipe of its own.

The asker makes the Pipe (a socket pair, as `multiprocessing.Pipe()` is), attaches the replier's end to the request and
closes its own copy of it at once. From then on the kernel keeps count: when the last copy is gone without an answer,
in a mailbox or in a process, the asker reads EOF and knows that nobody will answer. So it never waits for the dead.

    asker    [end] <============== one answer ============== [end]   attached to the request, then the replier's

The replier never waits: one answer always fits into an empty socket, and an asker that has gone is nobody's trouble.
"""

from __future__ import annotations

import logging
import pickle
import traceback
from typing import TYPE_CHECKING, Any

from actorq.actors.mailbox import ASK, TELL
from actorq.actors.packets import PacketSocket, close_fds
from actorq.actors.program import unpack_message
from actorq.actors.wire import pack
from actorq.errors import ActorDiedError, ActorStoppedError, AskTimeoutError, RemoteError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actorq.actors.mailbox import Mailbox

_VALUE = b"v"
_ERROR = b"e"
_STOPPED = b"s"
_RAW = b"r"

logger = logging.getLogger("actorq")


class Reply:
    """The replier's end. Answers once; dropped without an answer it says that the actor died."""

    __slots__ = ("_socket",)

    def __init__(self, fd: int) -> None:
        self._socket = PacketSocket(fd)

    def fileno(self) -> int:
        """Return the fd; it hangs up when the asker no longer waits."""
        return self._socket.fileno()

    def send(self, value: object) -> None:
        """Answer. A value that does not pickle becomes an error for the asker."""
        try:
            data, fds = pack(value)
        except Exception as error:  # noqa: BLE001 -- pickling runs code of the value's class; the asker hears of it
            self.fail(error)
            return
        self._send(_VALUE, data, fds)

    def send_raw(self, data: bytes) -> None:
        """Answer with bytes that the asker gets as they are."""
        self._send(_RAW, data)

    def fail(self, error: BaseException) -> None:
        """Answer with an error, which is raised in the asker."""
        self._send(_ERROR, encode_error(error))

    def fail_encoded(self, encoded: bytes) -> None:
        """Answer with an error that another process has encoded."""
        self._send(_ERROR, encoded)

    def stopped(self) -> None:
        """Answer that the actor has stopped and did not handle the request."""
        self._send(_STOPPED, b"")

    def close(self) -> None:
        """Say no more."""
        self._socket.close()

    def _send(self, code: bytes, data: bytes, fds: Sequence[int] = ()) -> None:
        try:
            if not self._socket.try_send(code, data, fds=fds):
                logger.error("an answer of %d bytes found no kernel memory and is lost", len(data))
        except BrokenPipeError:
            pass  # the asker has given up, or died: what it wanted was done, and nobody is left to hear it
        finally:
            self._socket.close()


class PendingReply:
    """The asker's end."""

    __slots__ = ("_name", "_socket", "_theirs")

    def __init__(self, name: str) -> None:
        self._name = name
        self._socket, self._theirs = PacketSocket.pair(None)

    def fileno(self) -> int:
        """Return the fd, readable once there is an answer or nobody is left to give one."""
        return self._socket.fileno()

    @property
    def their_fd(self) -> int:
        """The end to be attached to the request."""
        return self._theirs.fileno()

    def sent(self) -> None:
        """Close our copy of the replier's end: the request is under way."""
        self._theirs.close()

    def wait(self, timeout: float | None) -> Any:
        """Return the answer or raise the error that was the answer. `ActorDiedError` when none will come."""
        try:
            try:
                packet = self._socket.receive(timeout)
            except EOFError:
                raise ActorDiedError(self._name) from None
            if packet is None:
                raise AskTimeoutError(self._name, timeout or 0.0)
        finally:
            self.close()
        code, data = packet.data[:1], packet.data[1:]
        if code == _VALUE:
            return unpack_message(data, packet.fds)
        close_fds(packet.fds)
        if code == _RAW:
            return data
        if code == _STOPPED:
            raise ActorStoppedError(self._name)
        raise decode_error(data)

    def is_answered(self, timeout: float | None) -> bool:
        """Whether `wait` would return at once, waiting up to the timeout for that."""
        return self._socket.wait_readable(timeout)

    def close(self) -> None:
        """Wait no longer."""
        self._socket.close()
        self._theirs.close()


def encode_error(error: BaseException) -> bytes:
    """Return the error as bytes: itself where it survives the trip, else its type and text; and its traceback."""
    text = "".join(traceback.format_exception(error))
    try:
        data, fds = pack(error)
        same = not fds and type(pickle.loads(data)) is type(error)  # noqa: S301 -- what we have just written
    except Exception:  # noqa: BLE001 -- any class may do anything in its pickling; then the text is what we have
        same = False
    return pickle.dumps((data if same else None, type(error).__qualname__, text))


def decode_error(encoded: bytes) -> BaseException:
    """Return the error that `encode_error` was given, with the remote traceback as its cause."""
    data, type_name, text = pickle.loads(encoded)  # noqa: S301 -- only between the actors of one program
    remote = RemoteError(type_name, text)
    if data is None:
        return remote
    try:
        error = unpack_message(data)
    except Exception:  # noqa: BLE001 -- its class may exist only in the process that raised it
        return remote
    if not isinstance(error, BaseException):
        return remote
    error.__cause__ = remote
    return error


def refuse_rest(mailbox: Mailbox) -> int:
    """Close a mailbox for good: no later message gets in, the asks in it are answered with `ActorStoppedError`.

    Return how many other messages were dropped. Harmless when it was done before.
    """
    reader = mailbox.reader
    dropped = 0
    if reader is None or reader.fileno() < 0:
        return dropped
    # First the door, then the room: in the other order a message could slip in between and never hear anything.
    reader.shut_receiving()
    while True:
        try:
            taken = reader.take()
        except EOFError:
            return dropped
        except OSError as error:
            logger.warning("a message left in mailbox %r cannot be read: %s", mailbox.name, error)
            dropped += 1
            continue
        if taken is None:
            return dropped
        raw, fds = taken
        if raw[1:2] == ASK and fds:
            Reply(fds[0]).stopped()
            close_fds(fds[1:])
        else:
            close_fds(fds)
            # Whoever speaks in frames has a protocol of his own for what was not answered; a tell has none.
            dropped += raw[1:2] == TELL
