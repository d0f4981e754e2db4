"""What a supervisor must know to start a child, and to start it again."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, override

from actorq.actors.mailbox import Mailbox
from actorq.actors.packets import PacketSocket
from actorq.actors.program import Program, describe_program
from actorq.actors.ref import ActorRef
from actorq.actors.reply import refuse_rest
from actorq.actors.restart import Restart
from actorq.actors.wire import Fd, pack
from actorq.errors import ActorStartError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from actorq.actors.actor import Actor

DEFAULT_SHUTDOWN = 5.0
DEFAULT_STARTUP = 60.0


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """A child, as data."""

    name: str
    """Unique under its supervisor; without `/`."""
    actor: type[Actor]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    restart: Restart | str = Restart.PERMANENT
    shutdown: float = DEFAULT_SHUTDOWN
    """Seconds that it may take to stop before it is killed. A supervisor has as long as its children together."""
    mailbox: Mailbox | None = None
    """Kept over restarts; made when none is given. It ends with the actor, when that is not started again."""
    forgive_progress: bool = False
    """Restarts count only for incarnations that died before they ever waited for a message, and only those in a row."""
    notify: ActorRef | Mailbox | None = None
    """Gets a Down for each end of an incarnation of this child, also of those that are started again."""
    startup: float = DEFAULT_STARTUP
    """Seconds that `__init__` and `on_start` may take before it is killed and counts as failed."""

    def seal(self) -> SealedSpec:
        """Return the same with class and arguments pickled: what travels to supervisors and stays with them.

        `ActorStartError` when something in it cannot be pickled.
        """
        if not self.name or "/" in self.name:
            raise ActorStartError(self.name, "a name is a text without `/`")
        # The specs that a supervisor is given are sealed here, so that we know the mailboxes of those below it.
        inner: list[SealedSpec] = []
        args = tuple(_seal_specs_in(value, inner) for value in self.args)
        kwargs = {key: _seal_specs_in(value, inner) for key, value in self.kwargs.items()}
        try:
            payload, attached = pack((self.actor, args, kwargs))
        except Exception as error:
            reason = f"its class or its arguments cannot be sent to a process: {type(error).__name__}: {error}"
            raise ActorStartError(self.name, reason) from error
        return SealedSpec(
            name=self.name,
            serial=os.urandom(8).hex(),
            payload=payload,
            fds=tuple(Fd(os.dup(fd)) for fd in attached),
            inner_readers=_inner_readers(inner, attached),
            program=describe_program(),
            restart=Restart(self.restart),
            shutdown=max(self.shutdown, sum(spec.shutdown for spec in inner)),
            startup=self.startup,
            mailbox=_both_ends(self.name, self.mailbox),
            forgive_progress=self.forgive_progress,
            notify=_writer_of(self.notify),
            has_children=getattr(self.actor, "has_children", False),
        )

    @override
    def __reduce__(self) -> tuple[Any, ...]:
        return _as_is, (self.seal(),)


@dataclass(frozen=True, slots=True)
class SealedSpec:
    """A spec that a supervisor can hold without importing anything of the user's."""

    name: str
    serial: str
    """Which spec this is, also when another one bears the same name later."""
    payload: bytes
    fds: tuple[Fd, ...]
    inner_readers: tuple[int, ...]
    """Which of the fds are the reading ends of the mailboxes below it, where it is a supervisor."""
    program: Program
    restart: Restart
    shutdown: float
    startup: float
    mailbox: Mailbox
    forgive_progress: bool
    notify: PacketSocket | None
    has_children: bool

    def end_mailboxes(self) -> int:
        """Let nobody send to it, or to those below it, any more; see `refuse_rest`. Return how much was dropped.

        For whoever knows that it will not be started again.
        """
        dropped = refuse_rest(self.mailbox)
        for index in self.inner_readers:
            if (fd := self.fds[index].fileno()) >= 0:
                dropped += refuse_rest(Mailbox.of_ends(f"below {self.name}", PacketSocket(os.dup(fd)), None))
        return dropped

    def with_open_mailbox(self) -> SealedSpec:
        """Return the same, with a new mailbox if its own was ended: then it is another actor with the same name."""
        assert self.mailbox.reader is not None
        return replace(self, mailbox=Mailbox(name=self.name)) if self.mailbox.reader.is_shut() else self


def _seal_specs_in(value: Any, inner: list[SealedSpec]) -> Any:
    match value:
        case ChildSpec():
            inner.append(value.seal())
            return inner[-1]
        case list() | tuple() if any(isinstance(item, ChildSpec) for item in value):
            return [_seal_specs_in(item, inner) for item in value]
    return value


def _inner_readers(inner: list[SealedSpec], attached: Sequence[int]) -> tuple[int, ...]:
    readers = {spec.mailbox.reader.fileno() for spec in inner if spec.mailbox.reader is not None}
    readers |= {spec.fds[index].fileno() for spec in inner for index in spec.inner_readers}
    return tuple(index for index, fd in enumerate(attached) if fd in readers)


def _as_is(spec: SealedSpec) -> SealedSpec:
    return spec


def _both_ends(name: str, mailbox: Mailbox | None) -> Mailbox:
    """Return a mailbox of the actor's name, on duplicates of the given ends: the giver may close his own."""
    if mailbox is None:
        return Mailbox(name=name)
    if mailbox.reader is None or mailbox.writer is None:
        raise ActorStartError(name, f"its mailbox {mailbox!r} needs both ends here")
    return Mailbox.of_ends(name, mailbox.reader.duplicate(), mailbox.writer.duplicate())


def _writer_of(target: ActorRef | Mailbox | None) -> PacketSocket | None:
    if target is None:
        return None
    writer = target.mailbox_writer if isinstance(target, ActorRef) else target.writer
    if writer is None:
        raise ValueError(f"{target!r} has no writing end here")
    return writer.duplicate()
