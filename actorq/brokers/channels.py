"""The channels to clients, as a broker holds them.

Each is the server end of a client's SEQPACKET socket. Several brokers hold duplicates of it: whoever sends, a packet
is there whole or not at all, and the client sees the end of its channel only when none of them is left. Whoever holds
it hands it to a new Registry, together with what else the client came with: a pidfd and, of a consumer, its slot.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from actorq.actors.packets import PacketSocket
from actorq.brokers.messages import Attach, Channel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from actorq.brokers.post import Post


class Client(NamedTuple):
    """A connected session. The descriptors besides the channel are kept for the next Registry only."""

    attach: Attach
    channel: PacketSocket
    other_fds: tuple[int, ...]

    def close(self) -> None:
        """Close all that it came with."""
        self.channel.close()
        for fd in self.other_fds:
            os.close(fd)


class Channels:
    """The clients of one broker, by session."""

    def __init__(self) -> None:
        self._clients: dict[str, Client] = {}

    def __repr__(self) -> str:
        return f"<Channels to {len(self._clients)} clients>"

    def __iter__(self) -> Iterator[Client]:
        return iter(self._clients.values())

    def attach(self, attach: Attach, fds: tuple[int, ...]) -> Client:
        """Take a client up, with its descriptors, in place of what was known of the same session."""
        self.detach(attach.session)
        client = self._clients[attach.session] = Client(attach, PacketSocket(fds[0]), fds[1:])
        return client

    def detach(self, session: str) -> None:
        """Let go of a client."""
        client = self._clients.pop(session, None)
        if client is not None:
            client.close()

    def try_send(self, session: str, frame: bytes) -> bool:
        """Send a frame to a client, if it is here and there is room now."""
        client = self._clients.get(session)
        if client is None:
            return False
        try:
            return client.channel.try_send(frame)
        except BrokenPipeError:  # it may have made a new one
            self.detach(session)
            return False

    def hand_over(self, registry: Post, *, is_routed: bool) -> None:
        """Give a new Registry what its predecessor knew: who is connected, and how to see them die."""
        for attach, channel, other_fds in self._clients.values():
            news = Channel(attach.session, attach.role, attach.pid, is_routed)
            registry.send_with(news, (channel.fileno(), *other_fds))
