"""Registry: who is connected, and whose process has died.

A client connects for itself: it sends the server end of its channel, a pidfd of its own process and, as a consumer,
a slot, which is shared memory in which it notes the task in hand, and a pidfd of its supervisor. The Registry passes
them to Router and writer, keeps duplicates for the next ones, and waits for the kernel to say that the process is dead.
Only then does it tell the writer, behind everything that the dead one had sent; a stopped or slow process is not dead
and keeps its tasks. Clients that were not started by this host come in by the door.

A new Registry gets the channels from Router and writer and learns from the writer whom else to watch: the log knows
every session with its boot id, process id and start time.
"""

from __future__ import annotations

import errno
import logging
import os
import select
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, override

from actorq import failpoints
from actorq.actors.actor import Actor
from actorq.actors.exits import ExitKind
from actorq.actors.linux import boot_id, pidfd_kill, pidfd_open, process_start_time, raise_fd_limit
from actorq.actors.packets import Packet, close_fds
from actorq.brokers.door import answer
from actorq.brokers.messages import (
    Attach,
    Channel,
    Connect,
    Detach,
    EventOwner,
    Gone,
    Greeted,
    RegistryStarted,
    RouterStarted,
    WriterStarted,
)
from actorq.brokers.post import Post, messages_in
from actorq.brokers.slot import read_slot

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from actorq.actors.listener import Listener
    from actorq.actors.mailbox import Mailbox
    from actorq.actors.messages import Down
    from actorq.brokers.session import Brokers

logger = logging.getLogger("actorq")

ME = EventOwner.REGISTRY

HANG_UP_SECONDS = 1.0
"""How long a consumer that has closed its channel may take to end before it is killed."""

CAUSE_SECONDS = 1.0
"""How long to wait for a supervisor that lives to say how a process died, once the kernel has said that it did. As a
rule it says so within a millisecond; but its word may have died with the Registry before us, or its host be stopped."""

NO_DESCRIPTOR = frozenset({errno.EMFILE, errno.ENFILE})

AGAIN_SECONDS = 0.5
"""After something for which there was no descriptor left: how long until it is tried again."""

KNOCKS_AT_ONCE = 16

MAX_ENDED = 1024
"""How many deaths are remembered; a writer that starts anew has forgotten at most what was in its mailbox."""


@dataclass(slots=True)
class Client:
    """A session and the process behind it."""

    session: str
    role: str
    pid: int
    pidfd: int
    channel: int | None = None
    slot: int | None = None
    supervisor: int | None = None
    """Of a consumer: whoever started it. If that one has died as well, the task in hand is not to blame."""
    is_dead: bool = False
    """The kernel has said so; only the cause may still be missing."""

    def fds(self) -> tuple[int, ...]:
        """Return the descriptors in the order in which they travel."""
        return tuple(fd for fd in (self.channel, self.pidfd, self.slot, self.supervisor) if fd is not None)


class HangUpTimer(NamedTuple):
    """A client closed its channel, if a consumer a while ago."""

    session: str
    pidfd: int


class CauseTimer(NamedTuple):
    """A process died a moment ago and nobody has said how."""

    session: str


class WatchAgain(NamedTuple):
    """These sessions could not be watched: session, role, pid, start, boot."""

    sessions: list[list[Any]]


class AttachAgain(NamedTuple):
    """The channel of this session could not be passed on."""

    session: str


class OpenDoorAgain(NamedTuple):
    """There was no descriptor left for somebody who knocked."""


class Registry(Actor):
    """The actor that watches the processes of all sessions."""

    frames = True

    def __init__(
        self, writer: Mailbox, router: Mailbox, door: Listener | None = None, brokers: Brokers | None = None
    ) -> None:
        """Watch for these brokers, and give their mailboxes to whoever knocks at the door."""
        self._door = door
        self._brokers = brokers
        self._writer = Post(self, writer, ME)
        self._router = Post(self, router, ME)
        self._clients: dict[str, Client] = {}
        self._ended: dict[str, Gone] = {}
        """What the writer was told lately, to be repeated to a new one that still shows the session."""

    @override
    def on_start(self) -> None:
        if failpoints.ARMED:
            failpoints.hit("registry.starting")
        raise_fd_limit()  # three for each client, and here runs no code of the user's that it could surprise
        self._boot = boot_id()
        self._router.send(RegistryStarted())
        self._writer.send(RegistryStarted())
        if self._door is not None:
            self.listen(self._door.fileno(), self._answer_door)

    @override
    def receive_frames(self, frames: Iterator[Packet]) -> None:
        for message, fds in messages_in(frames):
            if failpoints.ARMED:
                failpoints.hit("registry.received")
            match message:
                case Connect(session, role, pid):
                    self._connect(session, role, pid, fds)
                    self._attach(self._clients[session], self._writer, self._router)
                case RouterStarted():
                    for client in self._clients.values():
                        self._attach(client, self._router)
                case Channel(session, role, pid, is_routed):
                    if session not in self._clients or self._clients[session].channel is None:
                        self._connect(session, role, pid, fds)
                        self._attach(self._clients[session], self._writer if is_routed else self._router)
                    else:
                        close_fds(fds)
                case WriterStarted(_, sessions):
                    for client in self._clients.values():
                        self._attach(client, self._writer)
                    logged = {session for session, *_ in sessions}
                    self._ended = {session: gone for session, gone in self._ended.items() if session in logged}
                    self._watch_logged(sessions)
                case Greeted(sessions):
                    self._watch_logged(sessions)
                case _:
                    logger.error("message dropped: not for the Registry: %r", message)
                    close_fds(fds)

    @override
    def on_down(self, down: Down) -> None:
        """Hear from the supervisor how one of its consumers ended."""
        for client in list(self._clients.values()):
            # The news may come late, and the pid belong to the next one by now: that one is alive, says its pidfd.
            if client.pid == down.pid and client.role == "consumer" and not pidfd_kill(client.pidfd, 0):
                # What our own supervision ends is charged to no task.
                is_charged = down.reason.kind is not ExitKind.SHUTDOWN
                # A handler that leaves with status 0 has ended its process like any other that leaves.
                cause = "exit status 0" if down.reason.kind is ExitKind.NORMAL else str(down.reason)
                self._end(client, cause, is_charged=is_charged)
                return

    @override
    def on_timer(self, message: object) -> None:
        match message:
            case HangUpTimer(session, pidfd):
                client = self._clients.get(session)
                if client is None or client.pidfd != pidfd or client.is_dead:
                    return
                if client.role == "consumer":
                    # It hears us no more and can finish nothing; its death is then awaited like any other.
                    logger.warning("consumer killed: it closed its channel session=%s pid=%d", session, client.pid)
                    pidfd_kill(pidfd)
                else:
                    self._end(client, "closed")
            case CauseTimer(session):
                client = self._clients.get(session)
                if client is not None:
                    self._end(client, "process died")
            case WatchAgain(sessions):
                self._watch_logged(sessions)
            case OpenDoorAgain() if self._door is not None:
                self.listen(self._door.fileno(), self._answer_door)
            case AttachAgain(session):
                client = self._clients.get(session)
                if client is not None:
                    self._attach(client, self._writer, self._router)

    def _answer_door(self) -> None:
        """Let in those who wait, a few at a time: whoever is in already must not wait for them."""
        assert self._door is not None
        assert self._brokers is not None
        try:
            for _ in range(KNOCKS_AT_ONCE):
                accepted = self._door.accept()
                if accepted is None:
                    return
                answer(*accepted, self._brokers)
        except OSError as error:
            if error.errno not in NO_DESCRIPTOR:
                raise
            # They wait on; but the kernel says again and again that they do.
            logger.error("no descriptor left for those who want to join; trying again")  # noqa: TRY400 -- one line
            self.unlisten(self._door.fileno())
            self.after(AGAIN_SECONDS, OpenDoorAgain())

    def _connect(self, session: str, role: str, pid: int, fds: Sequence[int]) -> None:
        """Watch a client that came with its descriptors."""
        if failpoints.ARMED:
            failpoints.hit("registry.connecting")
        self._forget(session)
        channel, pidfd, *others = fds
        client = Client(session, role, pid, pidfd, channel)
        if others:
            client.slot, client.supervisor = others
        self._clients[session] = client
        self.listen(pidfd, lambda: self._died(client))
        self.listen(channel, lambda: self._hung_up(client), select.EPOLLRDHUP | select.EPOLLHUP)

    def _watch_logged(self, sessions: list[list[Any]]) -> None:
        """Watch those that the log knows and nobody here; declare dead at once who is."""
        unwatched = []
        for session, role, pid, start, boot in sessions:
            try:
                self._watch_one(session, role, pid, start, boot)
            except OSError as error:
                if error.errno not in NO_DESCRIPTOR:
                    raise
                unwatched.append([session, role, pid, start, boot])
        if unwatched:
            logger.error("no descriptor left to watch %d sessions; trying again", len(unwatched))
            self.after(AGAIN_SECONDS, WatchAgain(unwatched))

    def _watch_one(self, session: str, role: str, pid: int, start: int, boot: str) -> None:
        if session in self._clients:
            return
        if session in self._ended:
            self._writer.send(self._ended[session])
            return
        pidfd = open_process(pid, start) if boot == self._boot else None
        if pidfd is None:
            self._writer.send(Gone(session, "found dead", ""))
            return
        client = Client(session, role, pid, pidfd)
        self._clients[session] = client
        self.listen(pidfd, lambda: self._died(client))

    def _attach(self, client: Client, *brokers: Post) -> None:
        if client.channel is None:
            return
        if failpoints.ARMED:
            failpoints.hit("registry.attaching")
        try:
            for broker in brokers:
                broker.send_with(Attach(client.session, client.role, client.pid), client.fds())
        except OSError as error:  # a mailbox is full, and what waits for it needs descriptors of its own
            if error.errno not in NO_DESCRIPTOR:
                raise
            self.after(AGAIN_SECONDS, AttachAgain(client.session))

    def _hung_up(self, client: Client) -> None:
        assert client.channel is not None
        self.unlisten(client.channel)
        # Not at once for publishers either: one that has made a new channel has told us so before it closed this one.
        seconds = HANG_UP_SECONDS if client.role == "consumer" else 0
        self.after(seconds, HangUpTimer(client.session, client.pidfd))

    def _died(self, client: Client) -> None:
        if failpoints.ARMED:
            failpoints.hit("registry.dead")
        self.unlisten(client.pidfd)
        client.is_dead = True
        if client.supervisor is None:  # a publisher, or a consumer that is not connected: nobody can say more
            self._end(client, "process died")
            return
        # The kernel kills a consumer with its supervisor: a worker was killed as a whole, or its host was.
        self.listen(client.supervisor, lambda: self._end(client, "its supervisor died", is_charged=False))
        self.after(CAUSE_SECONDS, CauseTimer(client.session))

    def _end(self, client: Client, cause: str, *, is_charged: bool = True) -> None:
        """Tell the writer, behind everything that the dead process had put into its mailbox."""
        task = read_slot(client.slot) if is_charged and client.slot is not None else ""
        gone = self._ended[client.session] = Gone(client.session, cause, task)
        while len(self._ended) > MAX_ENDED:
            self._ended.pop(next(iter(self._ended)))
        self._writer.send(gone)
        if failpoints.ARMED:
            failpoints.hit("registry.ended")
        self._router.send(Detach(client.session))
        self._forget(client.session)

    def _forget(self, session: str) -> None:
        client = self._clients.pop(session, None)
        if client is None:
            return
        self.unlisten(client.pidfd)
        for fd in (client.channel, client.supervisor):
            if fd is not None:
                self.unlisten(fd)
        close_fds(client.fds())


def open_process(pid: int, start: int) -> int | None:
    """Return a pidfd of the process that has this pid and start time, or None when that one is dead."""
    try:
        pidfd = pidfd_open(pid)
    except ProcessLookupError:
        return None
    # The pid may have been given to another process meanwhile; its start time tells, now that the pidfd holds it.
    try:
        if process_start_time(pid) == start:
            pidfd, found = -1, pidfd
            return found
    finally:
        if pidfd >= 0:
            os.close(pidfd)
    return None
