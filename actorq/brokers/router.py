"""Router: moves frames to clients and never waits for one.

Each client has a channel (a SEQPACKET socket, so that a killed Router tears no frame) and an outbox; a client that
does not read fills its own outbox and stops nobody else. How much can pile up there is bounded by what the client may
have in flight: a publisher's window, a consumer's credit.

The Registry holds a duplicate of every channel and hands them to the next Router, so that clients notice the death of
one only as a pause. What was in its hand is lost; that is why clients and scheduler repeat whenever a Router starts.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, NamedTuple, override

from actorq import failpoints
from actorq.actors import Actor, Mailbox, Outbox, Packet, PacketSocket
from actorq.actors.linux import raise_fd_limit
from actorq.actors.packets import close_fds
from actorq.brokers.messages import (
    Attach,
    Channel,
    Connected,
    Deliver,
    Detach,
    Event,
    EventOwner,
    RegistryStarted,
    RouterStarted,
    WriterStarted,
)
from actorq.brokers.post import Post, messages_in

if TYPE_CHECKING:
    from actorq.brokers.messages import ToClient

logger = logging.getLogger("actorq")

ME = EventOwner.ROUTER


class Client(NamedTuple):
    """A connected session. The descriptors besides the channel are kept for the next Registry only."""

    attach: Attach
    channel: PacketSocket
    outbox: Outbox
    other_fds: tuple[int, ...]


class Router(Actor):
    """The actor that owns the channels to all clients."""

    frames = True

    def __init__(self, registry: Mailbox, scheduler: Mailbox) -> None:
        self._registry = Post(self, registry, ME)
        self._scheduler = Post(self, scheduler, ME)
        self._clients: dict[str, Client] = {}

    @override
    def on_start(self) -> None:
        if failpoints.ARMED:
            failpoints.hit("router.starting")
        raise_fd_limit()  # three for each client, as in the Registry
        self._registry.send(RouterStarted())

    @override
    def receive_frames(self, frames: list[Packet]) -> None:
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
                    for client in self._clients.values():
                        self._tell(client, news)
                case RegistryStarted():
                    self._hand_over()
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
            client = self._clients.get(session)
            if client is not None:
                client.outbox.send(body[at : at + length])
            # Otherwise it is dead, or not attached yet and will repeat when it is.
            at += length

    def _attach(self, attach: Attach, fds: tuple[int, ...]) -> None:
        if failpoints.ARMED:
            failpoints.hit("router.attaching")
        self._detach(attach.session)
        channel = PacketSocket(fds[0])
        client = Client(attach, channel, self.outbox(channel), fds[1:])
        self._clients[attach.session] = client
        self._tell(client, RouterStarted())
        if failpoints.ARMED:
            failpoints.hit("router.attached")
        if attach.role == EventOwner.CONSUMER:
            self._scheduler.send(Connected(attach.session))

    def _detach(self, session: str) -> None:
        client = self._clients.pop(session, None)
        if client is not None:
            if failpoints.ARMED:
                failpoints.hit("router.detaching")
            client.outbox.close()
            client.channel.close()
            for fd in client.other_fds:
                os.close(fd)

    def _tell(self, client: Client, message: ToClient) -> None:
        client.outbox.send(Event(ME, message).encode())

    def _hand_over(self) -> None:
        """Give a new Registry what its predecessor knew: who is connected, and how to see them die."""
        for client in self._clients.values():
            if failpoints.ARMED:
                failpoints.hit("router.handing_over")
            attach = client.attach
            fds = (client.channel.fileno(), *client.other_fds)
            self._registry.send_with(Channel(attach.session, attach.role, attach.pid), fds)
