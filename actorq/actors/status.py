"""What a child tells the process that forked it, on a channel of its own.

The child's end also is a *lifeline*: its children, if it has any, inherit it, so that the channel ends only when the
last process below has ended.
"""

from __future__ import annotations

import contextlib
import pickle
import queue
import traceback
from dataclasses import dataclass, field
from enum import Enum

from actorq.actors.packets import PacketSocket, close_fds
from actorq.actors.reply import encode_error


class News(Enum):
    """What can be told; the values are what travels."""

    STARTED = b"S"  # __init__ and on_start are through; for a supervisor: all its children run
    FAILED = b"F"  # they raised
    PROGRESS = b"P"  # it has waited for a message
    LAST_WORDS = b"L"  # the last line of the traceback that ends it
    ESCALATED = b"E"  # a supervisor gives up, or an actor met an error that makes its supervisor give up
    GONE = b"G"  # of the root to its host: the child of this serial will not be started again


@dataclass(frozen=True, slots=True)
class Failure:
    """An error on its way through processes that cannot import its class."""

    text: str
    """The traceback."""
    encoded: bytes = field(repr=False)
    """For `reply.decode_error`, where the class is at hand."""

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Make an error ready for the trip."""
        return cls("".join(traceback.format_exception(error)), encode_error(error))


class Status:
    """The child's end."""

    def __init__(self, socket: PacketSocket) -> None:
        self._socket = socket

    def fileno(self) -> int:
        """Return the fd."""
        return self._socket.fileno()

    def started(self) -> None:
        """Tell that it runs."""
        self._send(News.STARTED)

    def failed(self, failure: Failure) -> None:
        """Tell that it could not start."""
        self._send(News.FAILED, pickle.dumps((failure.text, failure.encoded)))

    def progress(self) -> None:
        """Tell that it has waited for a message."""
        self._send(News.PROGRESS)

    def last_words(self, text: str) -> None:
        """Tell what ends it."""
        self._send(News.LAST_WORDS, text.encode("utf-8", "replace")[:4096])

    def escalated(self, failure: Failure) -> None:
        """Tell that this supervisor gives up, or should."""
        self._send(News.ESCALATED, pickle.dumps((failure.text, failure.encoded)))

    def gone(self, serial: str) -> None:
        """Tell that a child has ended for good."""
        self._send(News.GONE, serial.encode())

    def _send(self, news: News, data: bytes = b"") -> None:
        # The reader never is far behind; after 5 s it is stopped or worse, and we rather go on than hang with it.
        # And when it has ended we are about to.
        with contextlib.suppress(BrokenPipeError, queue.Full):
            self._socket.send(news.value, data, timeout=5.0)


class StatusReader:
    """The forking process's end."""

    def __init__(self, socket: PacketSocket) -> None:
        self._socket = socket
        self.has_ended = False
        """Whether no process holds the other end any more."""

    def fileno(self) -> int:
        """Return the fd, to be waited on."""
        return self._socket.fileno()

    def read(self) -> list[tuple[News, bytes]]:
        """Return the news there are. Sets `has_ended`."""
        news: list[tuple[News, bytes]] = []
        while not self.has_ended:
            try:
                packet = self._socket.try_receive()
            except EOFError:
                self.has_ended = True
                break
            if packet is None:
                break
            close_fds(packet.fds)
            news.append((News(packet.data[:1]), packet.data[1:]))
        return news

    def close(self) -> None:
        """Listen no more."""
        self._socket.close()


def failure_in(data: bytes) -> Failure:
    """Return the failure that FAILED and ESCALATED carry."""
    return Failure(*pickle.loads(data))  # noqa: S301 -- a text and bytes, from a process that we forked
