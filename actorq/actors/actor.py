"""An actor: a process that owns its state and handles one message at a time.

    system = ActorSystem()
    ref = system.spawn(Counter, 10)         the class and its arguments travel to a new process
                │
                ▼
        __init__(10), on_start()            spawn returns, or raises what these raised
                │
        ┌──▶ receive(message) ──┐           for each tell and ask, each timer, each Down
        └───────────────────────┘
                │ stop() or ref.stop(): what was sent before is still handled
                ▼
            on_stop()

An error in `receive` goes to the asker if the message was an ask, and the actor lives on. Any other error that leaves
one of its methods ends the actor; its supervisor starts a new one on the same mailbox, whose state is what `__init__`
makes it. The message in hand is gone, those behind it are handled by the new one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, override

from actorq.actors import linux
from actorq.actors.outbox import Outbox
from actorq.actors.ref import down_of
from actorq.errors import ActorStoppedError, UnhandledMessageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from actorq.actors.loop import Loop
    from actorq.actors.mailbox import Mailbox
    from actorq.actors.messages import Down
    from actorq.actors.packets import Packet, PacketSocket
    from actorq.actors.ref import ActorRef
    from actorq.actors.reply import PendingReply, Reply
    from actorq.actors.status import Status
    from actorq.actors.timer import Timer
    from actorq.errors import ActorqError


class Actor:
    """Subclass it, keep state in attributes, and answer in `receive`."""

    frames: ClassVar[bool] = False
    """True: it is sent bytes (`ref.send`), gets them in batches in `receive_frames`, and never unpickles anything."""

    hopeless: ClassVar[tuple[type[ActorqError], ...]] = ()
    """Errors that its next incarnation would meet as well. Its supervisor then gives up at once, with this error."""

    ref: ActorRef
    """Its own address. Like `name`, it is there before `__init__` is called."""
    name: str
    _loop: Loop
    _status: Status
    _watched: dict[ActorRef, PendingReply]

    # -- to be overridden

    def on_start(self) -> None:
        """Prepare for work; the spawner waits for the end of it. Called once, after `__init__`."""

    def receive(self, message: object) -> object:
        """Handle one message. What it returns, or raises, is the answer to an ask.

        End your own with `case _: return super().receive(message)`: what nobody handles is then reported, not dropped.
        """
        raise UnhandledMessageError(self.name, repr(message))

    def receive_frames(self, frames: Iterator[Packet]) -> None:
        """Handle the frames that wait (up to a limit), in order. Their fds are yours to close.

        Each is taken from the mailbox when it is asked for, so what comes while you handle one is among them.
        """
        raise UnhandledMessageError(self.name, f"a frame of {len(next(frames).data)} bytes")

    def on_timer(self, message: object) -> None:
        """Handle what `after` was given."""
        self.receive(message)

    def on_down(self, down: Down) -> None:
        """Handle the end of a watched actor."""
        self.receive(down)

    def before_wait(self) -> bool:
        """Do what is better done once for many messages. Called each time before the loop looks for new ones.

        Return True if there is more to do: then the loop does not wait for any.
        """
        return False

    def on_stop(self) -> None:
        """Tidy up: the last call, when it stops in order (not when it is killed or crashes)."""

    # -- to be used

    def stop(self) -> None:
        """End after the message in hand, as if nothing had happened (`ExitKind.NORMAL`)."""
        self._loop.stop()

    def after(self, seconds: float, message: object) -> Timer:
        """Have the message handled (by `on_timer`) that much later. Timers end with the incarnation."""
        return self._loop.after(seconds, lambda: self.on_timer(message))

    def reply_later(self) -> Reply:
        """Take over the answer to the ask in hand, so that `receive` may return without it. Answer it once."""
        return self._loop.reply_later()

    def watch(self, ref: ActorRef) -> None:
        """Have `on_down` called once, when the present incarnation of that actor has ended; at once if none lives."""
        if ref in self._watched:
            return
        try:
            pending = ref.await_down()
        except ActorStoppedError:
            down = down_of(ref.name, None)
            self._loop.after(0, lambda: self.on_down(down))
            return
        self._watched[ref] = pending
        self.listen(pending.fileno(), lambda: self._watched_ended(ref))

    def unwatch(self, ref: ActorRef) -> None:
        """Do not care any more. Harmless when it was not watched."""
        pending = self._watched.pop(ref, None)
        if pending is not None:
            self.unlisten(pending.fileno())
            pending.close()

    def listen(self, fd: int, callback: Callable[[], None], events: int = linux.EPOLLIN) -> None:
        """Call back, between messages, whenever the fd is ready (as `epoll` has it, level-triggered) or hung up."""
        self._loop.listen(fd, callback, events)

    def unlisten(self, fd: int) -> None:
        """Call back no more. The fd stays open; unlisten before you close it."""
        self._loop.unlisten(fd)

    def outbox(
        self,
        target: Mailbox | PacketSocket,
        limit_bytes: int | None = None,
        on_broken: Callable[[], None] | None = None,
    ) -> Outbox:
        """Return a way to send to the target without ever waiting for it."""
        outbox = Outbox.to(target, limit_bytes, on_broken)
        self._loop.add_outbox(outbox)
        return outbox

    # -- the runtime's

    def stop_requested(self) -> None:
        """Stop on behalf of the supervisor: its marker has come up in the mailbox. Not to be overridden by users."""
        self._loop.stop()

    has_children: ClassVar[bool] = False
    """Whether it is a supervisor, whose start ends when its children run: it says so itself."""

    def attach_to(self, loop: Loop, ref: ActorRef, status: Status) -> None:
        """Become the actor of this process; the runtime's first call, before `__init__`."""
        self._loop = loop
        self._status = status
        self._watched = {}
        self.ref = ref
        self.name = ref.name

    def _watched_ended(self, ref: ActorRef) -> None:
        pending = self._watched.pop(ref)
        self.unlisten(pending.fileno())
        self.on_down(down_of(ref.name, pending))

    @override
    def __repr__(self) -> str:
        return f"<{type(self).__name__} {getattr(self, 'name', 'not started')!r}>"
