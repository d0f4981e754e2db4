"""The loop of an actor: one thread, one wait set, one thing at a time.

    take what waits in the mailbox, up to a batch  ->  timers that are due  ->  before_wait  ->  outboxes
         ^                                                                                          |
         +---------------- further fds that are ready  <-  wait, unless there is more to do  <------+

It never polls for messages: with nothing to do it sleeps in `epoll_wait`. (Not in the call that takes the next message,
which would be one call less: if it is killed there, the kernel looks for a message before it looks for the kill, and
one that was sent after the kill goes with it instead of to its successor.) The one exception is an outbox whose
receiver is full, for which the kernel has no timely event (see packets.py): then it sleeps in slices of 1 to 8 ms.
"""

from __future__ import annotations

import errno
import logging
import time
from itertools import chain
from typing import TYPE_CHECKING

from actorq.actors import linux
from actorq.actors.mailbox import ASK, DOWN, FRAME, STOP, TELL
from actorq.actors.messages import Down
from actorq.actors.packets import Packet, close_fds
from actorq.actors.program import unpack_message
from actorq.actors.reply import Reply
from actorq.actors.timer import Timer, Timers
from actorq.clock import SYSTEM_CLOCK
from actorq.errors import UnhandledMessageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from actorq.actors.actor import Actor
    from actorq.actors.outbox import Outbox
    from actorq.actors.packets import PacketSocket

BATCH_MESSAGES = 256
BATCH_BYTES = 4 << 20
BATCH_SECONDS = 0.010
"""After so many messages, bytes or seconds the timers and further fds have their turn, however much still waits."""
SHORTEST_SLICE = 0.001
LONGEST_SLICE = 0.008
LONGEST_WAIT = 86400.0
"""The kernel takes 24 days at most, and no infinity."""

logger = logging.getLogger("actorq")


class Loop:
    """Runs one actor in this process."""

    def __init__(
        self, name: str, mailbox: PacketSocket, on_progress: Callable[[], None], stop_token: bytes = b""
    ) -> None:
        """Read from the mailbox's reading end; `on_progress` is called when the loop first gets to wait.

        Only a stop marker with this token counts: one that was meant for a former incarnation, which died before it
        came to it, stops nobody.
        """
        self.name = name
        self.is_stopping = False
        self.exit_status = 0
        self.stop_token = stop_token
        self._mailbox = mailbox
        self._on_progress = on_progress
        self._epoll = linux.new_epoll()
        self._epoll.register(mailbox.fileno(), linux.EPOLLIN)
        self._listeners: dict[int, _Listener] = {}
        self._timers = Timers(SYSTEM_CLOCK)
        self._backed_up: dict[Outbox, None] = {}  # those that keep something; a set in order
        self._slice = SHORTEST_SLICE
        self._reply: Reply | None = None
        self._may_be_more = False
        """The mailbox was not seen to be empty when frames were taken from it last."""
        self._special: tuple[bytes, tuple[int, ...]] | None = None
        """The packet that ended them because it is no frame; it is handled once they are."""

    # -- life

    def run(self, actor: Actor) -> None:
        """Handle messages until `stop`, or the marker that means the same. An error that gets here ends the actor."""
        drain = self._drain_frames if actor.frames else self._drain
        has_progressed = False
        while not self.is_stopping:
            has_more = drain(actor)
            if not self.is_stopping:
                self._timers.fire_due()
            if actor.before_wait():
                has_more = True
            self._flush_outboxes()
            if self.is_stopping:
                return
            if not has_progressed:
                has_progressed = True
                self._on_progress()
            self._call_listeners(0.0 if has_more else self._seconds_to_wait())

    def _call_listeners(self, timeout: float | None) -> None:
        # Taken down before the first is called: it may close an fd, and the next one to be opened gets that number.
        # What the kernel said of the old one must not be taken for news of the new one.
        ready = [(fd, self._listeners.get(fd)) for fd, _events in self._epoll.poll(timeout)]
        for fd, listener in ready:
            if self.is_stopping:
                return
            if listener is not None and self._listeners.get(fd) is listener:
                listener.callback()

    def handle_waiting(self, actor: Actor) -> None:
        """Handle the messages that wait now, a batch at most; for a listener whose news must not overtake them."""
        self._drain(actor)

    def stop(self) -> None:
        """Handle nothing after the message in hand."""
        self.is_stopping = True

    def flush_before_exit(self, seconds: float) -> None:
        """Send what the outboxes still hold, as long as it takes but not longer than that."""
        deadline = SYSTEM_CLOCK.now() + seconds
        while self._flush_outboxes() and SYSTEM_CLOCK.now() < deadline:
            # The kernel calls a mailbox writable only once most of it has been read: to wait for that would wait for
            # more room than the next message needs.
            time.sleep(SHORTEST_SLICE)

    def descriptors(self) -> dict[str, int]:
        """Return the fds that belong to the loop, by what they are for."""
        return {"wait set": self._epoll.fileno(), "mailbox, reading end": self._mailbox.fileno()}

    # -- what an actor asks of it

    def listen(self, fd: int, callback: Callable[[], None], events: int) -> None:
        """Call back whenever the fd is ready for one of the events, or hung up."""
        if fd in self._listeners:
            self.unlisten(fd)  # the fd may have been closed meanwhile, and its number be that of another file now
        self._epoll.register(fd, events)
        self._listeners[fd] = _Listener(callback)

    def unlisten(self, fd: int) -> None:
        """Call back no more. Also right after the fd was closed; harmless when nobody listened."""
        if self._listeners.pop(fd, None) is None:
            return
        try:
            self._epoll.unregister(fd)
        except OSError as error:
            if error.errno not in (errno.EBADF, errno.ENOENT):  # closed before: the kernel has forgotten it by itself
                raise

    def after(self, seconds: float, action: Callable[[], None]) -> Timer:
        """Have something done later."""
        return self._timers.after(seconds, action)

    def add_outbox(self, outbox: Outbox) -> None:
        """Flush this outbox whenever there is something in it."""
        outbox.on_kept = lambda: self._backed_up.setdefault(outbox)
        if outbox.pending:
            outbox.on_kept()

    def reply_later(self) -> Reply:
        """Take over the answer to the ask in hand."""
        reply, self._reply = self._reply, None
        if reply is None:
            raise RuntimeError("no ask in hand, or its answer was taken before")
        return reply

    # -- the mailbox

    def _drain(self, actor: Actor) -> bool:
        """Handle what waits; True when there may be more."""
        take = self._mailbox.take
        enough = SYSTEM_CLOCK.now() + BATCH_SECONDS
        for _ in range(BATCH_MESSAGES):
            try:
                taken = take()
            except EOFError:  # shut: nobody can send any more
                self.stop()
                return False
            except OSError as error:
                self._lament(error)
                continue
            if taken is None:
                return False
            raw, fds = taken
            if raw[1:2] == TELL:
                self._tell(actor, raw, fds)
            else:
                self._handle(actor, raw, fds)
            if self.is_stopping:
                return False
            if SYSTEM_CLOCK.now() >= enough:
                break
        return True

    def _drain_frames(self, actor: Actor) -> bool:
        """Hand over the frames that wait; True when there may be more."""
        self._may_be_more = True
        self._special = None
        frames = self._waiting_frames()
        for first in frames:
            actor.receive_frames(chain((first,), frames))
        if self._special is not None:
            self._handle(actor, *self._special)
        return self._may_be_more

    def _waiting_frames(self) -> Iterator[Packet]:
        """Take one frame after the other, each when the one before it was handled: meanwhile more may have come."""
        take = self._mailbox.take
        size = 0
        enough = SYSTEM_CLOCK.now() + BATCH_SECONDS
        for _ in range(BATCH_MESSAGES):
            if self.is_stopping or SYSTEM_CLOCK.now() >= enough:
                return
            try:
                taken = take()
            except EOFError:
                self.stop()
                return
            except OSError as error:
                self._lament(error)
                continue
            if taken is None:
                self._may_be_more = False
                return
            raw, fds = taken
            if raw[1:2] != FRAME:
                self._special = taken
                return
            yield Packet(raw[2:], fds)
            size += len(raw)
            if size >= BATCH_BYTES:
                return

    def _lament(self, error: OSError) -> None:
        # No fd left for those that came with it, or not a packet of ours. Its asker, if any, reads EOF at once.
        logger.error("actor %s cannot receive a message, which is lost: %s", self.name, error)

    def _handle(self, actor: Actor, raw: bytes, fds: tuple[int, ...]) -> None:
        kind, data = raw[1:2], raw[2:]
        if kind == STOP:
            close_fds(fds)
            if data == self.stop_token:
                actor.stop_requested()
        elif kind == DOWN:
            close_fds(fds)
            actor.on_down(Down.decode(data))
        elif kind == ASK and fds:
            self._ask(actor, data, fds)
        elif kind == FRAME:
            close_fds(fds)
            logger.error("%s", UnhandledMessageError(self.name, f"a frame of {len(data)} bytes, but frames is False"))
        else:
            close_fds(fds)
            logger.error("%s", UnhandledMessageError(self.name, f"a packet of kind {kind!r} and {len(data)} bytes"))

    def _tell(self, actor: Actor, raw: bytes, fds: tuple[int, ...]) -> None:
        try:
            message = unpack_message(raw[2:], fds)
        except Exception:
            # Not the actor's fault, and its state is whole: nothing to start again for.
            logger.exception("actor %s was sent a message that cannot be unpickled here", self.name)
            return
        try:
            actor.receive(message)
        except UnhandledMessageError as error:
            logger.error("%s", error)  # noqa: TRY400 -- one line says all of it

    def _ask(self, actor: Actor, data: bytes, fds: tuple[int, ...]) -> None:
        reply = self._reply = Reply(fds[0])
        try:
            if actor.frames:
                raise UnhandledMessageError(self.name, "an ask, but it takes frames only")
            message = unpack_message(data, fds[1:])
            value = actor.receive(message)
        except Exception as error:
            if self._reply is reply:
                reply.fail(error)
            else:
                raise  # the answer was taken over for later; nobody would hear of this
        else:
            if self._reply is reply:
                reply.send(value)
        finally:
            self._reply = None

    # -- waiting

    def _flush_outboxes(self) -> bool:
        """Send what is kept; True when some of it found no room."""
        for outbox in list(self._backed_up):
            if outbox.flush():
                self._slice = SHORTEST_SLICE
            if not outbox.pending:
                self._backed_up.pop(outbox, None)
        return bool(self._backed_up)

    def _seconds_to_wait(self) -> float | None:
        seconds = self._timers.seconds_to_next()
        if seconds is not None:
            seconds = min(seconds, LONGEST_WAIT)
        if self._backed_up:
            seconds = self._slice if seconds is None else min(seconds, self._slice)
            self._slice = min(self._slice * 2, LONGEST_SLICE)
        else:
            self._slice = SHORTEST_SLICE
        return seconds


class _Listener:
    """A callback, told from the one that listens to the same number later."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback = callback
