"""A client's side of the conversation with the brokers: one session, its channel, its numbered requests.

Used by publishers in any process and by consumers. A session is connected (the Registry knows its process and passes
its channel to the Router) before it says hello to the writer, so that the answer has a way back. Whenever a broker
starts anew, whatever is not acknowledged is sent again; when both ends of the channel died, the session makes a new
one. A session that has joined the brokers of another process outlives them all: it goes on with those that come next.
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from actorq import failpoints
from actorq.actors.linux import boot_id, pidfd_open, process_start_time
from actorq.actors.packets import PacketSocket
from actorq.brokers.messages import (
    Acknowledged,
    Confirm,
    Connect,
    EventOwner,
    Forgotten,
    Gap,
    Hello,
    Idle,
    MalformedEventError,
    Push,
    Recall,
    Refused,
    RouterStarted,
    Steered,
    WriterStarted,
    encode,
    message_in,
)
from actorq.brokers.requests import Request, Requests
from actorq.errors import ActorStoppedError, MailboxFullError
from actorq.tasks.ids import new_session

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from actorq.actors.mailbox import Mailbox
    from actorq.brokers.messages import Message, ToClient
    from actorq.brokers.slot import Slot

logger = logging.getLogger("actorq")

CHANNEL_BYTES = 1 << 20

REPEAT_SECONDS = 1.0
"""Whoever waits for an answer repeats after so much silence. Every known loss is announced by a new epoch, so this is
the safety net below the net."""

FIRST_NAP_SECONDS = 0.0005
SHORT_NAP_SECONDS = 0.02
"""Before a new channel replaces one that ended: at first, and the most for those who must not be kept waiting."""

SILENCES = 3
"""So many repetitions in a row without any answer are not bad luck."""

SEND_AGAIN_SECONDS = 0.2
"""How long a repetition waits for room in the writer's mailbox; it is not the last one."""


class Brokers(NamedTuple):
    """The mailboxes that a client needs."""

    writer: Mailbox
    scheduler: Mailbox
    registry: Mailbox


WRITER, SCHEDULER, REGISTRY = range(3)

type Finder = Callable[[], Brokers | None]
"""Returns the brokers that run now, if any do."""


class Session:
    """One session with the brokers. Not for several threads, and not across a fork."""

    def __init__(
        self,
        brokers: Brokers | None,
        owner: EventOwner,
        slot: Slot | None = None,
        greet: Callable[[Hello], Hello] | None = lambda hello: hello,
        find: Finder | None = None,
    ) -> None:
        """Begin a session; without `greet` it never asks the writer for anything, and the log will not know it.

        With `find` it looks for others when these brokers are gone; without, every call raises ActorStoppedError then.
        """
        self.id = new_session()
        self.requests = Requests()
        self._brokers = brokers
        self._find = find
        self._owner = owner
        self._slot = slot
        self._channel: PacketSocket | None = None
        self._nap = FIRST_NAP_SECONDS
        self._silences = 0
        self.connections = 0
        """How many channels there have been; whoever waits for `fileno` to be readable waits anew when it grows."""
        self.is_unsure = False
        """The writer has been asked for what it has acknowledged last, and has not answered."""
        self.is_forgotten = False
        """The log has lost what was acknowledged to us: by a failed sync, or an older file is in its place."""
        if greet is not None:
            hello = Hello(self.id, owner, os.getpid(), process_start_time(os.getpid()) or 0, boot_id())
            self.requests.add(self.encode(greet(hello)))

    def __repr__(self) -> str:
        return f"<Session {self.id} {self._owner} {self.requests}>"

    def encode(self, message: Message) -> bytes:
        """Return a message of this client as a frame."""
        return encode(self._owner, message)

    @property
    def is_lost(self) -> bool:
        """Whether there are no brokers at the moment: what is sent stays with us until some are found."""
        return self._brokers is None

    def connect(self, timeout: float) -> None:
        """Make a channel and hand its server end to the Registry; the Router then greets and the hello goes out."""
        if self._brokers is None and self._find is not None:
            self._brokers = self._find()
        before = self._channel
        self._channel, server = PacketSocket.pair(CHANNEL_BYTES)
        self.connections += 1
        if failpoints.ARMED:
            failpoints.hit("session.connecting")
        pidfd = pidfd_open(os.getpid())
        fds = [server.fileno(), pidfd]
        if self._slot is not None:
            supervisor = pidfd_open(os.getppid())
            fds += [self._slot.fd, supervisor]
        try:
            self._give(REGISTRY, self.encode(Connect(self.id, self._owner, os.getpid())), timeout, fds)
        finally:
            server.close()
            if before is not None:  # not earlier: the Registry must hear of the new one first
                before.close()
            os.close(pidfd)
            if self._slot is not None:
                os.close(supervisor)
        if failpoints.ARMED:
            failpoints.hit("session.connected")

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when the brokers say something."""
        assert self._channel is not None
        return self._channel.fileno()

    def send(self, request: Request, timeout: float) -> None:
        """Send a request to the writer; waits only while its mailbox is full. Raises MailboxFullError."""
        if failpoints.ARMED:
            failpoints.hit("session.sending")
        self._give(WRITER, request.frame, timeout)
        if failpoints.ARMED:
            failpoints.hit("session.sent")

    def send_again(self, number: int = 0) -> None:
        """Send all requests from the number on that are not acknowledged, as far as there is room.

        The rest is repeated like what was lost on the way: from the gap, or after a while of silence.
        """
        try:
            for request in self.requests.since(number):
                self.send(request, SEND_AGAIN_SECONDS)
        except MailboxFullError:
            logger.debug("session %s: the writer's mailbox is full", self.id)

    def repeat_after_silence(self) -> int:
        """Send again what has not been answered for REPEAT_SECONDS; return how often that was in vain.

        After a few times the brokers are looked for anew: ours may be those of a host that is none any more.
        """
        self._silences += 1
        if self._find is not None and self._silences % SILENCES == 0:
            self._brokers = None
            try:
                self.connect(SEND_AGAIN_SECONDS)
            except MailboxFullError:
                logger.debug("session %s: the Registry's mailbox is full", self.id)
        self.send_again()
        if self.is_unsure:
            self._ask_whether_known()
        return self._silences

    def ask_scheduler(self, message: Message, timeout: float) -> None:
        """Send a question to the scheduler; its answer comes through the channel."""
        self._give(SCHEDULER, self.encode(message), timeout)

    def receive(self, timeout: float) -> ToClient | None:
        """Return the next message for this client, or None after the timeout.

        What concerns the protocol is dealt with here: acknowledgements are noted, gaps and new epochs repaired, and a
        dead channel is replaced. They are returned nevertheless, for whoever wants to know.
        """
        assert self._channel is not None
        deadline = time.monotonic() + timeout
        try:
            packet = self._channel.receive(timeout)
        except (EOFError, ConnectionError):
            # Router and Registry died together and took the channel with them, or had no descriptor left for it. Their
            # successors have our mailboxes; those that are short of descriptors are not to be asked in a hot loop.
            longest = max(timeout, SHORT_NAP_SECONDS) if self._find is None else SHORT_NAP_SECONDS
            time.sleep(min(self._nap, longest))
            if self._find is not None:
                # The mailboxes may live on in a host that was stopped and has lost its brokers; the door tells.
                self._brokers = None
            self._silences = 0
            self._nap = min(self._nap * 2, REPEAT_SECONDS)
            try:
                self.connect(max(0.1, deadline - time.monotonic()))
            except MailboxFullError:
                logger.debug("session %s: the Registry's mailbox is full", self.id)  # the new channel says EOF as well
            return None
        if packet is None:
            return None
        if failpoints.ARMED:
            failpoints.hit("session.received")
        self._nap = FIRST_NAP_SECONDS
        message = message_in(packet.data)
        if not isinstance(message, FOR_CLIENTS):
            raise MalformedEventError(f"not for a client: {message!r}")
        if isinstance(message, FROM_WRITER):
            self._silences = 0
        match message:
            case Acknowledged(_, number):
                self.requests.acknowledge(number)
                self.is_unsure = False
            case Forgotten():
                self.is_forgotten = True
            case Refused(_, number):
                self.requests.acknowledge(number - 1)  # all before it are in, and that may not have been said before
            case Gap(_, expected):
                self.send_again(expected)
                if expected <= self.requests.acknowledged:  # an old one that comes late, or the log has lost something
                    self._ask_whether_known()
            case RouterStarted() | WriterStarted():
                self.send_again()
                # Whatever is on its way: a gap is told once, and may have been told where we had no channel yet.
                self._ask_whether_known()
        return message

    def _ask_whether_known(self) -> None:
        """Ask the writer, as a consumer, for what it has acknowledged last: forgotten, it would wait for ever."""
        if self._slot is not None and self.requests.acknowledged >= 0:
            self.is_unsure = True
            try:
                self._give(WRITER, self.encode(Confirm(self.id, self.requests.acknowledged)), SEND_AGAIN_SECONDS)
            except MailboxFullError:
                logger.debug("session %s: the writer's mailbox is full", self.id)

    def tell_registry(self, *parts: bytes) -> None:
        """Pass on what the Registry must hear of others, if it runs; it is not missed otherwise."""
        if self._brokers is not None and self._brokers.registry.writer is not None:
            with suppress(BrokenPipeError):
                self._brokers.registry.writer.try_send(*parts)

    def close(self) -> None:
        """Hang up; the Registry then lets the session end."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def _give(self, broker: int, frame: bytes, timeout: float, fds: Sequence[int] = ()) -> None:
        """Send a frame, or keep silent while there are no brokers: what matters is repeated when some are found."""
        if self._brokers is None:
            return
        try:
            give(self._brokers[broker], frame, timeout, fds)
        except ActorStoppedError:
            if self._find is None:
                raise
            self._brokers = None


def give(mailbox: Mailbox, frame: bytes, timeout: float, fds: Sequence[int] = ()) -> None:
    """Send a frame. Raises MailboxFullError, or ActorStoppedError when the brokers will never run again."""
    try:
        if not mailbox.try_send(frame, fds=fds):
            mailbox.send(frame, fds=fds, timeout=timeout)
    except BrokenPipeError:
        raise ActorStoppedError(mailbox.name) from None


FROM_WRITER = (Acknowledged, Gap, Refused, Forgotten)

FOR_CLIENTS = (*FROM_WRITER, WriterStarted, RouterStarted, Push, Recall, Idle, Steered)
