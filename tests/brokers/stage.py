"""One real broker in this process: real mailboxes and descriptors, and a loop that turns when the test says so."""

from __future__ import annotations

import gc
import os
import resource
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from actorq.actors import Mailbox
from actorq.actors.loop import Loop
from actorq.brokers.messages import Event, EventOwner

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from actorq.actors import Actor, Packet
    from actorq.brokers.messages import Message


class Stage:
    """An actor that has started, and its mailbox."""

    def __init__(self, cls: type[Actor], *arguments: Any, inbox: Mailbox | None = None, **options: Any) -> None:
        self.inbox = Mailbox(1 << 20, cls.__name__) if inbox is None else inbox
        assert self.inbox.reader is not None
        self.loop = Loop(cls.__name__, self.inbox.reader, lambda: None)
        ref: Any = SimpleNamespace(name=cls.__name__)
        status: Any = None
        self.actor: Any = cls.__new__(cls)
        self.actor.attach_to(self.loop, ref, status)
        self.actor.__init__(*arguments, **options)  # type: ignore[misc]  # it knows its name by now
        self.actor.on_start()

    def give(self, *messages: Message | bytes, fds: Sequence[int] = ()) -> None:
        """Send messages, or frames as they are, and let the actor handle them and whatever else has happened."""
        for message in messages:
            frame = message if isinstance(message, bytes) else Event(EventOwner.PUBLISHER, message).encode()
            self.inbox.send(frame, fds=fds)
        self.turn()

    def turn(self) -> None:
        """Do what the loop does between two waits."""
        self.loop._drain_frames(self.actor)
        self.actor.before_wait()
        self.loop._flush_outboxes()
        self.loop._call_listeners(0.0)


def said(box: Mailbox) -> list[Any]:
    """Return the messages that have come to a mailbox."""
    return [Event.decode(packet.data).message for packet in packets(box)]


def packets(box: Mailbox) -> list[Packet]:
    """Return what has come to a mailbox, with the descriptors."""
    found = []
    while (packet := box.receive(0.0)) is not None:
        found.append(packet)
    return found


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Let the kernel give this process no further descriptor."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Sockets that an earlier test has dropped give back theirs now, and not in the middle of this one.
    gc.collect()
    gc.disable()
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, before[1]))
    try:
        yield
    finally:
        gc.enable()
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@contextmanager
def limits_kept() -> Iterator[None]:
    """Take back what a broker does to the limits of its process."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
