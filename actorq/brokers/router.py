"""Router: moves frames to clients and never waits for one.

Each client has a channel (a SEQPACKET socket, so that a killed Router tears no frame) and an outbox; a client that
does not read fills its own outbox and stops nobody else. How much can pile up there is bounded by what the client may
have in flight: a publisher's window, a consumer's credit.

What the writer has to say to a client, it says through the channel itself, if there is room: that saves a process on
the way. What finds none comes here to wait, with all that others say: the scheduler's repetitions, news of a restart.
No client depends on the order of what comes on these two ways.

The Registry holds a duplicate of every channel and hands them to the next Router, so that clients notice the death of
one only as a pause. What was in its hand is lost; that is why clients and scheduler repeat whenever a Router starts.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, override

from actorq import failpoints
from actorq.actors.actor import Actor
from actorq.actors.linux import raise_fd_limit
from actorq.actors.packets import Packet, close_fds
from actorq.brokers.channels import Channels
from actorq.brokers.messages import (
    Attach,
    Connected,
    Deliver,
    Detach,
    EventOwner,
    RegistryStarted,
    RouterStarted,
    WriterStarted,
    encode,
)
from actorq.brokers.post import Post, messages_in

if TYPE_CHECKING:
    from collections.abc import Iterator

    from actorq.actors.mailbox import Mailbox
    from actorq.actors.outbox import Outbox

logger = logging.getLogger("actorq")

ME = EventOwner.ROUTER


class Router(Actor):
    """The actor that has an outbox for each client."""

    frames = True

    def __init__(self, registry: Mailbox, scheduler: Mailbox) -> None:
        self._registry = Post(self, registry, ME)
        self._scheduler = Post(self, scheduler, ME)
        self._channels = Channels()
        self._outboxes: dict[str, Outbox] = {}

    @override
    def on_start(self) -> None:
        if failpoints.ARMED:
            failpoints.hit("router.starting")
        raise_fd_limit()  # three for each client, as in the Registry
        self._registry.send(RouterStarted())

    @override
    def receive_frames(self, frames: Iterator[Packet]) -> None:
        for message, fds in messages_in(frames):
            if failpoints.ARMED:
                failpoints.hit("router.received")
            match message:
                case Deliver(entries, body):
                    self._deliver(entries, body)
                case Attach() as attach:
                    self._attach(attach, fds)
                case Detach(session):
                    self._detach(session)
                case WriterStarted() as news:
                    for outbox in self._outboxes.values():
                        outbox.send(encode(ME, news))
                case RegistryStarted():
                    if failpoints.ARMED:
                        failpoints.hit("router.handing_over")
                    self._channels.hand_over(self._registry, is_routed=True)
                case _:
                    logger.error("message dropped: not for the Router: %r", message)
                    close_fds(fds)

    def _deliver(self, entries: list[list[object]], body: bytes) -> None:
        at = 0
        for session, length in entries:
            assert isinstance(session, str)
            assert isinstance(length, int)
            if failpoints.ARMED:
                failpoints.hit("router.delivering")
            outbox = self._outboxes.get(session)
            if outbox is not None:
                outbox.send(body[at : at + length])
            # Otherwise it is dead, or not attached yet and will repeat when it is.
            at += length

    def _attach(self, attach: Attach, fds: tuple[int, ...]) -> None:
        if failpoints.ARMED:
            failpoints.hit("router.attaching")
        self._detach(attach.session)
        client = self._channels.attach(attach, fds)
        outbox = self._outboxes[attach.session] = self.outbox(client.channel)
        outbox.send(encode(ME, RouterStarted()))
        if failpoints.ARMED:
            failpoints.hit("router.attached")
        if attach.role == EventOwner.CONSUMER:
            self._scheduler.send(Connected(attach.session))

    def _detach(self, session: str) -> None:
        outbox = self._outboxes.pop(session, None)
        if outbox is not None:
            if failpoints.ARMED:
                failpoints.hit("router.detaching")
            outbox.close()
            self._channels.detach(session)
