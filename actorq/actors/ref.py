"""The address of an actor. It names the actor, not a process: it stays good when the actor is started again."""

from __future__ import annotations

import queue
import time
from typing import TYPE_CHECKING, Any, override

from actorq.actors.exits import ExitKind, ExitReason
from actorq.actors.mailbox import ASK, DEFAULT_PUT_SECONDS, FRAME, TELL
from actorq.actors.messages import AwaitDown, Down, KillChild, ListChildren, StopChild, SupervisorRequest
from actorq.actors.reply import PendingReply
from actorq.actors.wire import pack
from actorq.errors import ActorDiedError, ActorError, ActorStoppedError, AskTimeoutError, MailboxFullError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actorq.actors.packets import PacketSocket, Part

DEFAULT_ASK_SECONDS = 5.0
STOP_MARGIN = 10.0
"""How much longer than the child's own time a stop may take: the kill, and the supervisor's other work."""


class ActorRef:
    """Talk to an actor. Refs may be sent in messages and given to actors as arguments."""

    __slots__ = ("_mailbox", "_supervisor", "name", "token")

    def __init__(self, name: str, token: str, mailbox: PacketSocket, supervisor: PacketSocket | None) -> None:
        """Made by the runtime. The writing ends of the actor's mailbox and of its supervisor's."""
        self.name = name
        self.token = token
        """Which supervisor of which system; with the name it is the actor's identity."""
        self._mailbox = mailbox
        self._supervisor = supervisor

    # -- talking to the actor

    def tell(self, message: object, timeout: float = DEFAULT_PUT_SECONDS) -> None:
        """Send a message. Returns once the kernel has it; waits only while the mailbox is full."""
        data, fds = pack(message)
        self._send(TELL, data, fds=fds, timeout=timeout)

    def ask(self, message: object, timeout: float | None = DEFAULT_ASK_SECONDS) -> Any:
        """Send a message and return what the actor's `receive` returned for it, or raise what it raised.

        `ActorDiedError`: it died with the request in hand. `ActorStoppedError`: it will never handle it.
        `AskTimeoutError`: no answer in time (None: wait for as long as the actor lives).
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        pending = self.ask_later(message, timeout)
        try:
            return pending.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        except AskTimeoutError:
            raise AskTimeoutError(self.name, timeout or 0.0) from None

    def ask_later(self, message: object, timeout: float | None = DEFAULT_ASK_SECONDS) -> PendingReply:
        """Send a message and return what will hold the answer; the timeout is for the sending alone."""
        if (self.token, self.name) == _self.identity:
            raise ActorError(f"actor {self.name!r} asks itself, and would wait for itself")
        data, fds = pack(message)
        pending = PendingReply(self.name)
        try:
            self._send(ASK, data, fds=[pending.their_fd, *fds], timeout=timeout)
        except BaseException:
            pending.close()
            raise
        pending.sent()
        return pending

    def send(self, *parts: Part, fds: Sequence[int] = (), timeout: float = DEFAULT_PUT_SECONDS) -> None:
        """Send the parts as one frame, to an actor with `frames = True`."""
        self._send(FRAME, *parts, fds=fds, timeout=timeout)

    def try_send(self, *parts: Part, fds: Sequence[int] = ()) -> bool:
        """Send the parts as one frame if there is room now."""
        try:
            return self._mailbox.try_send(FRAME, *parts, fds=fds)
        except BrokenPipeError:
            raise ActorStoppedError(self.name) from None

    # -- talking about the actor, to its supervisor

    def stop(self, timeout: float | None = None) -> None:
        """Let it handle what waits, stop it for good, and return when it is dead.

        It is killed when that takes longer than the timeout (None: than `shutdown` of its spec).
        """
        self.stop_later(timeout).wait(None if timeout is None else timeout + STOP_MARGIN)

    def stop_later(self, timeout: float | None = None) -> PendingReply:
        """Begin what `stop` does."""
        if (self.token, self.name) == _self.identity:
            raise ActorError(f"actor {self.name!r} would wait for its own end; Actor.stop() ends it")
        return self._ask_supervisor(StopChild(self.name, timeout))

    def kill(self) -> None:
        """Kill its present incarnation with SIGKILL and return when it is dead. Its restart rule applies."""
        self._ask_supervisor(KillChild(self.name)).wait(DEFAULT_ASK_SECONDS)

    def is_alive(self) -> bool:
        """Whether a process runs as this actor just now."""
        return self.pid() is not None

    def pid(self) -> int | None:
        """Return its process id, None while it is down."""
        try:
            children = self._ask_supervisor(ListChildren()).wait(DEFAULT_ASK_SECONDS)
        except (ActorStoppedError, ActorDiedError):
            return None
        return next((child.pid for child in children if child.name == self.name), None)

    def await_down(self) -> PendingReply:
        """Return what will hold a Down as JSON; EOF says the same, as the supervisor ends with all its actors."""
        return self._ask_supervisor(AwaitDown(self.name))

    # -- inside

    @property
    def mailbox_writer(self) -> PacketSocket:
        """The writing end of the mailbox."""
        return self._mailbox

    @property
    def supervisor_fd(self) -> int:
        """The fd of the writing end of the supervisor's mailbox; -1 for a root, which has none."""
        return -1 if self._supervisor is None else self._supervisor.fileno()

    def _ask_supervisor(self, request: SupervisorRequest) -> PendingReply:
        if self._supervisor is None:
            raise ActorError(f"{self.name!r} is the root of its system; close the system instead")
        return ActorRef(f"supervisor of {self.name}", self.token, self._supervisor, None).ask_later(request)

    def _send(self, kind: bytes, *parts: Part, fds: Sequence[int], timeout: float | None) -> None:
        try:
            self._mailbox.send(kind, *parts, fds=fds, timeout=timeout)
        except queue.Full:
            raise MailboxFullError(self.name, timeout or 0.0) from None
        except BrokenPipeError:
            raise ActorStoppedError(self.name) from None

    @override
    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ActorRef):
            return NotImplemented
        return (self.name, self.token) == (other.name, other.token)

    @override
    def __hash__(self) -> int:
        return hash((self.name, self.token))

    @override
    def __repr__(self) -> str:
        return f"<ActorRef {self.name!r}>"

    @override
    def __reduce__(self) -> tuple[Any, ...]:
        return ActorRef, (self.name, self.token, self._mailbox, self._supervisor)


class _Self:
    """The identity of the actor that this process is, to tell a question to oneself."""

    identity: tuple[str, str] | None = None


_self = _Self()


def this_process_is(ref: ActorRef) -> None:
    """Remember which actor this process runs."""
    _self.identity = (ref.token, ref.name)


def down_of(ref_name: str, pending: PendingReply | None) -> Down:
    """Return the Down that an answered `await_down` holds; None when there was nobody to ask."""
    try:
        if pending is not None:
            return Down.decode(pending.wait(0))
    except (ActorDiedError, ActorStoppedError):
        pass  # its supervisor ended, and it with it
    return Down(ref_name, None, ExitReason(ExitKind.GONE, "ended with its supervisor"))
